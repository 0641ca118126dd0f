"""What is measured of a network, and how each measurement reads as an objective."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainers.data.dataset import Split, pixels
from trainers.loop import Diverged
from trainers.store import weights_bytes

EVALUATION_BATCH = 512
"""Fixed, because sums over batches of another size round differently."""


@dataclass(frozen=True)
class Metric:
    """One measurement: which direction is better, on which scale it is compared, its unit."""

    direction: Literal["min", "max"]
    scale: Literal["linear", "log"]
    unit: str


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric("max", "linear", "share of images"),
        "nll": Metric("min", "linear", "nats"),
        "parameters": Metric("min", "log", "numbers"),
        "macs": Metric("min", "log", "multiply-adds an image"),
        "size_bytes": Metric("min", "log", "bytes"),
    }
)


def predictions(network: nn.Module, split: Split) -> torch.Tensor:
    """Logits (N, classes) of all images of a split, in eval mode; the network's mode is restored."""
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    with torch.no_grad():
        logits = [network(pixels(images.to(device))) for images in torch.split(split.images, EVALUATION_BATCH)]
    network.train(training)
    return torch.cat(logits)


def quality(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Accuracy and mean negative log-likelihood of logits (N, classes) against labels (N,).

    Raises:
        Diverged: the logits are not all numbers.
    """
    labels = labels.to(logits.device)
    if not logits.isfinite().all():
        raise Diverged(
            "a network's outputs must be finite, but are not; lower the learning rate or the transfer weight"
        )
    hits = int((logits.argmax(1) == labels).sum())
    return {"accuracy": hits / len(labels), "nll": float(F.cross_entropy(logits.double(), labels))}


def cost(network: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, float]:
    """Parameters, multiply-adds for one image of (C, H, W), and bytes of the weights' file."""
    device = next(network.parameters()).device
    training = network.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, *image_shape, device=device))
    network.train(training)
    return {
        "parameters": float(sum(parameter.numel() for parameter in network.parameters())),
        "macs": counter.get_total_flops() / 2,
        "size_bytes": float(len(weights_bytes(network))),
    }


def measure(network: nn.Module, split: Split) -> dict[str, float]:
    """Every measurement of METRICS, of an ordinary (folded) network on one split."""
    _, c, h, w = split.images.shape
    return {**quality(predictions(network, split), split.labels), **cost(network, (c, h, w))}


def worst(name: str, teacher: Mapping[str, float], classes: int) -> float:
    """The value that is worth nothing when hypervolume is reckoned: nothing right, guessing, the teacher's own cost."""
    return {"accuracy": 0.0, "nll": math.log(classes)}.get(name, teacher.get(name, math.nan))


def best(name: str) -> float:
    """The value that nothing can beat; 1 where the scale is logarithmic."""
    return {"accuracy": 1.0, "nll": 0.0}.get(name, 1.0)
