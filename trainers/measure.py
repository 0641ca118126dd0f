"""Measures a network: the inputs of the rows of `trainers.metrics`, and the calls that compute them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.data.dataset import Split, pixels
from trainers.families import Network, by_member, combined
from trainers.metrics import METRICS, Cost, Quality
from trainers.predictions import Predictions

EVALUATION_BATCH = 512
"""At most; a network with large maps is given fewer images at a time.

Sums over batches of another size may round differently. Residual networks and VGGs gave the same numbers to the bit
with any size, on CPUs with AVX-512 and AVX2; where layers are linear or depthwise, the eighth digit of a logit may be
another (torch 2.15, AMD EPYC).
"""
LARGEST_MAP = 2**25
"""Numbers in the largest tensor on a batch's way through a network: 128 MiB. Some five are there at a time."""


def outputs(network: nn.Module, split: Split) -> Tensor:
    """Every member's logits (members, N, classes) of all images of a split, in eval mode; the mode is restored.

    members is 1 for any module that is not a `Network` of several.
    """
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    members = network.members if isinstance(network, Network) else 1
    of_batch = network.outputs if isinstance(network, Network) else network
    size = batch_size(network, split.images.shape[1:], LARGEST_MAP)
    with torch.no_grad():
        parts = [by_member(of_batch(pixels(images.to(device))), members) for images in in_batches(split.images, size)]
    network.train(training)
    return torch.cat(parts, dim=1)


def batch_size(
    network: nn.Module, image_shape: Sequence[int], largest: int = LARGEST_MAP, most: int = EVALUATION_BATCH
) -> int:
    """How many images a network is given at a time, so that no tensor on the way has more than `largest` numbers.

    Args:
        network: in any mode, which is restored; one image of zeros goes through it, and two.
        image_shape: (C, H, W).
        largest: tensors may have more for a single image; those whose size does not depend on images are not counted.
        most: images.
    """
    training, device = network.training, next(network.parameters()).device
    network.eval()
    sizes = []
    for images in (1, 2):
        with torch.no_grad(), Sizes() as seen:
            (network.outputs if isinstance(network, Network) else network)(
                torch.zeros(images, *image_shape, device=device)
            )
        sizes.append(seen.numbers)
    network.train(training)
    each = max((two - one for one, two in zip(*sizes, strict=False)), default=0)
    return max(1, min(most, largest // max(1, each)))


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, notes how many numbers each tensor has that torch computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for each of its operations."""
        result = func(*args, **(kwargs or {}))
        self.numbers += [tensor.numel() for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        return result


def in_batches(images: Tensor, size: int) -> Sequence[Tensor]:
    """Images (N, ...) in parts of at most `size`; but of EVALUATION_BATCH they are evenly large, so that none has few.

    A last part of a few images is what rounds differently most often.
    """
    if size >= EVALUATION_BATCH:
        return torch.split(images, size)
    return torch.tensor_split(images, max(1, math.ceil(len(images) / size)))


def predictions(network: nn.Module, split: Split) -> Tensor:
    """Logits (N, classes) of all images of a split, averaged over members, in eval mode; the mode is restored."""
    logits = outputs(network, split)
    return combined(logits.flatten(0, 1), len(logits))


def quality(logits: Tensor, labels: Tensor, names: Sequence[str] = ("accuracy", "nll")) -> dict[str, float]:
    """Quality measurements of one prediction: logits (N, classes) against labels (N,).

    Raises:
        Diverged: not all logits are finite.
    """
    return _computed(Predictions(logits[None], labels), names)


def all_quality(predictions: Predictions) -> dict[str, float]:
    """Every quality measurement that can be computed from the predictions, in the order of METRICS."""
    return _computed(predictions, [name for name, row in METRICS.items() if isinstance(row, Quality)])


def _computed(predictions: Predictions, names: Sequence[str]) -> dict[str, float]:
    rows = [row for name in names if isinstance(row := METRICS[name], Quality)]
    values = {row.name: row.compute(predictions) for row in rows}
    return {name: value for name, value in values.items() if value is not None}


def ensemble_nlls(members: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Calibrated negative log-likelihood of an ensemble of 1, 2, ... of the members.

    Args:
        members: every member's logits, (M, N, classes).
        labels: (N,).

    Returns:
        M numbers: each the mean over the M ensembles of neighbouring members in a ring; made non-increasing.
    """
    M = len(members)
    nlls: list[float] = []
    for size in range(1, M + 1):
        rings = range(M) if size < M else range(1)
        ensembles = [torch.stack([members[(first + i) % M] for i in range(size)]) for first in rings]
        own = [_computed(Predictions(those, labels), ["calibrated_nll"])["calibrated_nll"] for those in ensembles]
        nlls.append(min([sum(own) / len(own), *nlls[-1:]]))
    return tuple(nlls)


def cost(network: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, float]:
    """The cost measurements of a network for one image (C, H, W), except timed ones; its mode is restored."""
    return _cost(network, image_shape, timed=False)


def timings(network: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, float]:
    """The timed measurements of a network for one image (C, H, W); its mode is restored.

    They depend on torch's current number of threads, the machine and its load.
    """
    return _cost(network, image_shape, timed=True)


def _cost(network: nn.Module, image_shape: tuple[int, int, int], *, timed: bool) -> dict[str, float]:
    training = network.training
    network.eval()
    rows = [row for row in METRICS.values() if isinstance(row, Cost) and row.timed == timed]
    values = {row.name: row.compute(network, image_shape) for row in rows}
    network.train(training)
    return values


def measure(
    network: nn.Module,
    split: Split,
    *,
    temperature: float | None = None,
    ensemble_nlls: Sequence[float] | None = None,
    timed: bool = False,
) -> dict[str, float]:
    """The measurements of METRICS, in their order, of an ordinary (folded) network on one split.

    Args:
        network: in any mode.
        split: the images.
        temperature: for the `calibrated` measurements; None fits it on these images, as for validation data.
        ensemble_nlls: of the teacher on the same split; without it there is no deep-ensemble equivalent.
        timed: whether to include timed measurements.

    Raises:
        Diverged: not all of the network's outputs are finite.
    """
    _, c, h, w = split.images.shape
    predicted = Predictions(outputs(network, split), split.labels, temperature=temperature, ensemble_nlls=ensemble_nlls)
    measured = {**all_quality(predicted), **cost(network, (c, h, w))}
    return {**measured, **timings(network, (c, h, w))} if timed else measured
