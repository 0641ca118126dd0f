"""What is measured of a network, and how each measurement reads as an objective. Without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One measurement: which direction is better, on which scale it is compared, its unit."""

    direction: Literal["min", "max"] | None
    """None where either may be wanted."""
    scale: Literal["linear", "log"]
    unit: str
    least: float = 0.0
    """No network measures less, nor more than `most`."""
    most: float = math.inf


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric("max", "linear", "share of images", most=1.0),
        "nll": Metric("min", "linear", "nats"),
        "brier": Metric("min", "linear", "mean squared error of the probabilities, summed over classes", most=2.0),
        "ece": Metric("min", "linear", "mean gap between confidence and accuracy, 15 bins", most=1.0),
        "calibrated_nll": Metric("min", "linear", "nats"),
        "calibrated_brier": Metric("min", "linear", "as brier", most=2.0),
        "calibrated_ece": Metric("min", "linear", "as ece", most=1.0),
        "entropy": Metric(None, "linear", "nats"),
        "diversity": Metric("max", "linear", "nats between members"),
        "deep_ensemble_equivalent": Metric("max", "linear", "members of the teacher"),
        "parameters": Metric("min", "log", "numbers", least=1.0),
        "macs": Metric("min", "log", "multiply-adds an image", least=1.0),
        "size_bytes": Metric("min", "log", "bytes", least=1.0),
        "latency_ms": Metric("min", "log", "milliseconds for one image"),
    }
)
"""`calibrated_*`: after temperature scaling (Guo et al., ICML 2017; arXiv 1706.04599).
`latency_ms` is measured only where it is asked for: it is no property of the student alone, and never twice the same.
"""


def ends(
    name: str, direction: Literal["min", "max"], teacher: Mapping[str, float], classes: int
) -> tuple[float, float]:
    """The values of a measurement between which hypervolume is reckoned: worth nothing, and unbeatable.

    Nothing right, guessing, the teacher's own cost on the one side; on the other what cannot be better, or 1 where the
    scale is logarithmic (of latency, a microsecond). Measurements of uncertainty, whose direction the study chooses,
    have the same two ends.
    """
    guessing = math.log(classes)
    known: dict[str, tuple[float, float]] = {
        "accuracy": (0.0, 1.0),
        "nll": (guessing, 0.0),
        "calibrated_nll": (guessing, 0.0),
        "brier": (1.0 - 1.0 / classes, 0.0),
        "calibrated_brier": (1.0 - 1.0 / classes, 0.0),
        "ece": (1.0, 0.0),
        "calibrated_ece": (1.0, 0.0),
        "entropy": (0.0, guessing) if direction == "max" else (guessing, 0.0),
        "diversity": (0.0, guessing),
        "latency_ms": (teacher.get("latency_ms", math.nan), 1e-3),
        "deep_ensemble_equivalent": (0.0, max(1.0, teacher.get("deep_ensemble_equivalent", 1.0))),
    }
    return known.get(name, (teacher.get(name, math.nan), 1.0))
