"""A network's predictions for the images of a split, as needed by quality measurements."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from trainers.families import combined
from trainers.loop import Diverged


class Predictions:
    """A network's logits, raw and calibrated, with the true labels.

    Args:
        members: every member's logits, (members, N, classes).
        labels: (N,).
        temperature: for the `calibrated` measurements; None fits it on these images.
        ensemble_nlls: of the teacher on the same images (`ensemble_nlls`), for a comparison with it.

    Raises:
        Diverged: the members' mean prediction is not finite.
    """

    def __init__(
        self,
        members: Tensor,
        labels: Tensor,
        *,
        temperature: float | None = None,
        ensemble_nlls: Sequence[float] | None = None,
    ) -> None:
        self.members, self.ensemble_nlls = members, ensemble_nlls
        self.labels = labels.to(members.device)
        self.logits = combined(members.flatten(0, 1), len(members))
        """(N, classes), averaged over members."""
        self._temperature = temperature
        if not self.logits.isfinite().all():
            raise Diverged(
                "a network's outputs must be finite, but are not; lower the learning rate or the transfer weight"
            )

    @cached_property
    def calibrated(self) -> Tensor:
        """(N, classes) logits after temperature scaling."""
        temperature = self._temperature
        if temperature is None:
            temperature = fitted_temperature(self.logits, self.labels)
        return self.logits.double() / temperature


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """tau that minimises the negative log-likelihood of logits / tau, within 1/20 and 20."""
    z, y = logits.double().cpu(), labels.cpu()
    minimum = minimize_scalar(
        lambda log_tau: float(F.cross_entropy(z / math.exp(log_tau), y)),
        bounds=(-math.log(20.0), math.log(20.0)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(minimum.x))
