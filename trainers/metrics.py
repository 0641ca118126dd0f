"""The measurements of a network: each is one row, with everything that is known about it.

Importing this needs no torch, so that checking a study file and showing a study are fast: the functions that compute
measurements import it when they are called. `trainers.measure` calls them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.predictions import Predictions

Direction: TypeAlias = Literal["min", "max"]
Scale: TypeAlias = Literal["linear", "log"]
Ends: TypeAlias = Callable[[Direction, float, int], tuple[float, float]]
"""From the study's direction, the teacher's measurement (NaN if not measured), and the number of classes, to the values
between which hypervolume is computed: the worthless one and the unbeatable one."""


@dataclass(frozen=True)
class Metric:
    """One measurement: either Quality or Cost."""

    name: str
    direction: Direction | None
    """The better direction; None if a study may choose."""
    scale: Scale
    """The scale on which values are compared."""
    unit: str
    ends: Ends
    _: KW_ONLY
    least: float = 0.0
    """No network has less, nor more than `most`."""
    most: float = math.inf
    label: str = ""
    """Label of a picture's axis, if the name is not enough."""
    timed: bool = False
    """Measured only in studies that name it: it is not a property of the network alone, and never twice the same."""


@dataclass(frozen=True)
class Quality(Metric):
    """How good a network's predictions are."""

    compute: Callable[[Predictions], float | None]
    """Computes it; None if the predictions lack what it needs."""


@dataclass(frozen=True)
class Cost(Metric):
    """What a network costs, independent of its predictions."""

    compute: Callable[[nn.Module, tuple[int, int, int]], float]
    """Computes it for a network in eval mode and one image (C, H, W)."""


def _nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of logits (N, classes) against labels (N,)."""
    import torch.nn.functional as F

    return float(F.cross_entropy(logits.double(), labels))


def _brier(logits: Tensor, labels: Tensor) -> float:
    """Brier (1950): mean over images of the sum over classes of (p_c - [c = y])^2."""
    import torch.nn.functional as F

    p = logits.double().softmax(1)
    return float((p - F.one_hot(labels, p.shape[1])).square().sum(1).mean())


def _ece(logits: Tensor, labels: Tensor) -> float:
    """15 bins of equal width over the largest probability, gaps weighted by the number of images.

    Naeini, Cooper, Hauskrecht: Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.
    """
    import torch

    p, predicted = logits.double().softmax(1).max(1)
    confidence, right = p.float(), (predicted == labels).float()
    bins = torch.bucketize(confidence, torch.linspace(0, 1, 16, device=p.device), right=True) - 1
    count, confidences, hits = (
        torch.zeros(16, device=p.device).scatter_add_(0, bins, each)
        for each in (torch.ones_like(right), confidence, right)
    )
    gaps = (hits / count).nan_to_num() - (confidences / count).nan_to_num()
    return float((gaps.abs() * (count / count.sum())).sum())


def _balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur of the share of their images that are predicted right (recall)."""
    right, labelled, _ = class_counts(logits, labels)
    occurs = labelled > 0
    return float((right[occurs] / labelled[occurs]).mean())


def _macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Mean of F1 = 2 right / (labelled + predicted) over the classes that occur or are predicted."""
    right, labelled, predicted = class_counts(logits, labels)
    occurs = labelled + predicted > 0
    return float((2 * right[occurs] / (labelled + predicted)[occurs]).mean())


def class_counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each class, how many images are predicted right, labelled so, and predicted so; each (classes,) float64."""
    taken, classes = logits.argmax(1), logits.shape[1]
    right, labelled, predicted = (of.bincount(minlength=classes) for of in (labels[taken == labels], labels, taken))
    return right.double(), labelled.double(), predicted.double()


def _entropy(logits: Tensor) -> float:
    log_p = logits.double().log_softmax(1)
    return float(-(log_p.exp() * log_p).sum(1).mean())


def _diversity(members: Tensor) -> float:
    """Mean over images and ordered pairs of members of KL(p_j || p_i); members: logits (members, N, classes).

    0 for a single network. Nam et al., NeurIPS 2021.
    """
    log_p = members.double().log_softmax(2)
    count = len(log_p)
    if count == 1:
        return 0.0
    # sum over pairs of sum_c p_j (log p_j - log p_i)
    same = (log_p.exp() * log_p).sum(2).sum(0) * count
    crossed = (log_p.exp().sum(0) * log_p.sum(0)).sum(1)
    return max(0.0, float(((same - crossed) / (count * (count - 1))).mean()))


def deep_ensemble_equivalent(calibrated_nll: float, ensemble_nlls: Sequence[float]) -> float:
    """How many of the teacher's members are as good: 0 to M, interpolated linearly; 0 if worse than one member.

    A. Ashukha, A. Lyzhov, D. Molchanov, D. Vetrov: Pitfalls of in-domain uncertainty estimation and ensembling in deep
    learning, ICLR 2020 (arXiv 2002.06470), equation 6, on the teacher's own members instead of up to 100.

    Args:
        calibrated_nll: of the network.
        ensemble_nlls: of the teacher, as `trainers.measure.ensemble_nlls` has them.
    """
    if calibrated_nll >= ensemble_nlls[0]:
        return 1.0 if calibrated_nll == ensemble_nlls[0] else 0.0
    for size, (worse, better) in enumerate(pairwise(ensemble_nlls), start=1):
        if calibrated_nll >= better:
            return size + (worse - calibrated_nll) / (worse - better)
    return float(len(ensemble_nlls))


def _multiply_adds(network: nn.Module, image_shape: tuple[int, int, int]) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *image_shape, device=next(network.parameters()).device))
    return float(counter.get_total_flops() / 2)


def _bytes_of_weights(network: nn.Module, image_shape: tuple[int, int, int]) -> float:
    from trainers.store import weights_bytes

    return float(len(weights_bytes(network)))


def _latency_ms(network: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """The median of 30 runs after 5 for warm-up, with torch's current number of threads."""
    import torch

    image = torch.zeros(1, *image_shape, device=next(network.parameters()).device)
    taken = []
    with torch.inference_mode():
        for _ in range(35):
            began = time.perf_counter()
            network(image).argmax().item()  # waits for a GPU
            taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken[5:])


def _between(worst: float, best: float) -> Ends:
    return lambda direction, teacher, classes: (worst, best)


def _from_the_teachers(best: float) -> Ends:
    return lambda direction, teacher, classes: (teacher, best)


def _from_chance(direction: Direction, teacher: float, classes: int) -> tuple[float, float]:
    """For a mean over classes: no guess that does not look at the image has more than 1 / classes, on average.

    Guessing class c with probability q_c where its share of images is p_c has recall q_c and precision p_c: the mean
    recall is 1 / classes, and the mean F1 = 2 p_c q_c / (p_c + q_c) is at most that (with q = p).
    """
    return 1.0 / classes, 1.0


def _from_guessing(direction: Direction, teacher: float, classes: int) -> tuple[float, float]:
    """For a negative log-likelihood."""
    return math.log(classes), 0.0


def _from_guessing_squared(direction: Direction, teacher: float, classes: int) -> tuple[float, float]:
    """For a Brier score."""
    return 1.0 - 1.0 / classes, 0.0


def _up_to_guessing(direction: Direction, teacher: float, classes: int) -> tuple[float, float]:
    """For an uncertainty; more is better, unless the study says otherwise."""
    return (0.0, math.log(classes)) if direction == "max" else (math.log(classes), 0.0)


def _up_to_the_teachers(direction: Direction, teacher: float, classes: int) -> tuple[float, float]:
    return 0.0, max(1.0, teacher)


_ROWS = (
    Quality(
        "accuracy",
        "max",
        "linear",
        "share of images",
        _between(0.0, 1.0),
        lambda p: int((p.logits.argmax(1) == p.labels).sum()) / len(p.labels),
        most=1.0,
        label="accuracy on validation data (fraction correct)",
    ),
    Quality(
        "balanced_accuracy",
        "max",
        "linear",
        "mean over classes of the share of their images",
        _from_chance,
        lambda p: _balanced_accuracy(p.logits, p.labels),
        most=1.0,
        label="balanced accuracy on validation data (mean recall)",
    ),
    Quality(
        "macro_f1",
        "max",
        "linear",
        "mean over classes of F1",
        _from_chance,
        lambda p: _macro_f1(p.logits, p.labels),
        most=1.0,
        label="macro F1 on validation data",
    ),
    Quality(
        "nll",
        "min",
        "linear",
        "nats",
        _from_guessing,
        lambda p: _nll(p.logits, p.labels),
        label="nll on validation data (nats per example)",
    ),
    Quality(
        "brier",
        "min",
        "linear",
        "mean squared error of the probabilities, summed over classes",
        _from_guessing_squared,
        lambda p: _brier(p.logits, p.labels),
        most=2.0,
    ),
    Quality(
        "ece",
        "min",
        "linear",
        "mean gap between confidence and accuracy, 15 bins",
        _between(1.0, 0.0),
        lambda p: _ece(p.logits, p.labels),
        most=1.0,
    ),
    Quality("calibrated_nll", "min", "linear", "nats", _from_guessing, lambda p: _nll(p.calibrated, p.labels)),
    Quality(
        "calibrated_brier",
        "min",
        "linear",
        "as brier",
        _from_guessing_squared,
        lambda p: _brier(p.calibrated, p.labels),
        most=2.0,
    ),
    Quality(
        "calibrated_ece",
        "min",
        "linear",
        "as ece",
        _between(1.0, 0.0),
        lambda p: _ece(p.calibrated, p.labels),
        most=1.0,
    ),
    Quality("entropy", None, "linear", "nats", _up_to_guessing, lambda p: _entropy(p.logits)),
    Quality("diversity", "max", "linear", "nats between members", _up_to_guessing, lambda p: _diversity(p.members)),
    Quality(
        "deep_ensemble_equivalent",
        "max",
        "linear",
        "members of the teacher",
        _up_to_the_teachers,
        lambda p: (
            None if p.ensemble_nlls is None else deep_ensemble_equivalent(_nll(p.calibrated, p.labels), p.ensemble_nlls)
        ),
    ),
    Cost(
        "parameters",
        "min",
        "log",
        "numbers",
        _from_the_teachers(1.0),
        lambda network, image_shape: float(sum(parameter.numel() for parameter in network.parameters())),
        least=1.0,
        label="parameters (count)",
    ),
    Cost(
        "macs",
        "min",
        "log",
        "multiply-adds an image",
        _from_the_teachers(1.0),
        _multiply_adds,
        least=1.0,
        label="multiply-accumulates (per example)",
    ),
    Cost("size_bytes", "min", "log", "bytes", _from_the_teachers(1.0), _bytes_of_weights, least=1.0),
    Cost(
        "latency_ms",
        "min",
        "log",
        "milliseconds for one image",
        _from_the_teachers(1e-3),
        _latency_ms,
        timed=True,
    ),
)

METRICS: Mapping[str, Quality | Cost] = MappingProxyType({row.name: row for row in _ROWS})
"""`calibrated_*`: after temperature scaling (Guo et al., ICML 2017; arXiv 1706.04599)."""

TIMED = frozenset(row.name for row in _ROWS if row.timed)
