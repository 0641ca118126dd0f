"""How a network is measured; `trainers.metrics` says what each measurement means."""

import math
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainers.data.dataset import Split, pixels
from trainers.families import Network, by_member, combined
from trainers.loop import Diverged
from trainers.store import weights_bytes

EVALUATION_BATCH = 512
"""Fixed, because sums over batches of another size round differently."""


def outputs(network: nn.Module, split: Split) -> Tensor:
    """Every member's logits (members, N, classes) of all images of a split, in eval mode; the mode is restored.

    members is 1 for any module that is not a `Network` of several.
    """
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    members = network.members if isinstance(network, Network) else 1
    of_batch = network.outputs if isinstance(network, Network) else network
    with torch.no_grad():
        parts = [
            by_member(of_batch(pixels(images.to(device))), members)
            for images in torch.split(split.images, EVALUATION_BATCH)
        ]
    network.train(training)
    return torch.cat(parts, dim=1)


def predictions(network: nn.Module, split: Split) -> Tensor:
    """Logits (N, classes) of all images of a split, members averaged, in eval mode; the network's mode is restored."""
    found = outputs(network, split)
    return combined(found.flatten(0, 1), len(found))


def quality(logits: Tensor, labels: Tensor) -> dict[str, float]:
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


def calibration(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Brier score and expected calibration error of logits (N, classes) against labels (N,).

    Brier (1950): mean over images of the sum over classes of (p_c - [c = y])^2. Calibration error: 15 bins of equal
    width over the largest probability, gaps weighted by the images in them (Naeini, Cooper, Hauskrecht, AAAI 2015).
    """
    # seconds, because it imports much else; the command line need not wait for it
    from torchmetrics.functional.classification import multiclass_calibration_error

    labels = labels.to(logits.device)
    p = logits.double().softmax(1)
    brier = (p - F.one_hot(labels, p.shape[1])).square().sum(1).mean()
    ece = multiclass_calibration_error(p, labels, p.shape[1], n_bins=15, norm="l1")
    return {"brier": float(brier), "ece": float(ece)}


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """tau that minimises the negative log-likelihood of logits / tau, within 1/20 and 20."""
    z, y = logits.double().cpu(), labels.cpu()
    found = minimize_scalar(
        lambda log_tau: float(F.cross_entropy(z / math.exp(log_tau), y)),
        bounds=(-math.log(20.0), math.log(20.0)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(found.x))


def uncertainty(members: Tensor, labels: Tensor, temperature: float | None = None) -> dict[str, float]:
    """What is measured of predicted probabilities beyond accuracy and likelihood.

    Args:
        members: every member's logits, (members, N, classes).
        labels: (N,).
        temperature: of the `calibrated` measurements; None fits it on these very images.

    Returns:
        brier, ece; the same and nll after temperature scaling of the mean probabilities; entropy of these, in nats;
        diversity: the mean over images and ordered pairs of members of KL(p_j || p_i), 0 for a single network
        (Nam et al., NeurIPS 2021).
    """
    logits = combined(members.flatten(0, 1), len(members))
    if temperature is None:
        temperature = fitted_temperature(logits, labels)
    scaled = logits.double() / temperature
    log_p = logits.double().log_softmax(1)
    return {
        **calibration(logits, labels),
        "calibrated_nll": float(F.cross_entropy(scaled, labels.to(scaled.device))),
        **{f"calibrated_{name}": value for name, value in calibration(scaled, labels).items()},
        "entropy": float(-(log_p.exp() * log_p).sum(1).mean()),
        "diversity": _diversity(members),
    }


def _diversity(members: Tensor) -> float:
    log_p = members.double().log_softmax(2)
    count = len(log_p)
    if count == 1:
        return 0.0
    # sum over pairs of sum_c p_j (log p_j - log p_i)
    same = (log_p.exp() * log_p).sum(2).sum(0) * count
    crossed = (log_p.exp().sum(0) * log_p.sum(0)).sum(1)
    return max(0.0, float(((same - crossed) / (count * (count - 1))).mean()))


def ensemble_curve(members: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Calibrated negative log-likelihood of an ensemble of 1, 2, ... of the members.

    Args:
        members: every member's logits, (M, N, classes).
        labels: (N,).

    Returns:
        M numbers: the mean over the M ensembles of neighbours in a ring; made never to rise.
    """
    M = len(members)
    curve: list[float] = []
    for size in range(1, M + 1):
        rings = range(M) if size < M else range(1)
        chosen = [torch.stack([members[(first + i) % M] for i in range(size)]) for first in rings]
        found = [uncertainty(those, labels)["calibrated_nll"] for those in chosen]
        curve.append(min([sum(found) / len(found), *curve[-1:]]))
    return tuple(curve)


def deep_ensemble_equivalent(calibrated_nll: float, curve: Sequence[float]) -> float:
    """The fewest members of the teacher that are as good: 0 to M, linear between whole numbers; 0 if worse than one.

    A. Ashukha, A. Lyzhov, D. Molchanov, D. Vetrov: Pitfalls of in-domain uncertainty estimation and ensembling in deep
    learning, ICLR 2020 (arXiv 2002.06470), equation 6, on the teacher's own members instead of up to 100.

    Args:
        calibrated_nll: of the network.
        curve: of the teacher, as `ensemble_curve` has it.
    """
    if calibrated_nll >= curve[0]:
        return 1.0 if calibrated_nll == curve[0] else 0.0
    for size, (worse, better) in enumerate(pairwise(curve), start=1):
        if calibrated_nll >= better:
            return size + (worse - calibrated_nll) / (worse - better)
    return float(len(curve))


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


def latency_ms(network: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Milliseconds that one image of (C, H, W) takes in eval mode: the median of 30 after 5 to warm up.

    With as many threads as torch has now, on this machine, as busy as it is; the network's mode is restored.
    """
    image = torch.zeros(1, *image_shape, device=next(network.parameters()).device)
    training = network.training
    network.eval()
    taken = []
    with torch.inference_mode():
        for _ in range(35):
            began = time.perf_counter()
            network(image).argmax().item()  # waits for a GPU
            taken.append(1e3 * (time.perf_counter() - began))
    network.train(training)
    return statistics.median(taken[5:])


def measure(
    network: nn.Module, split: Split, *, temperature: float | None = None, curve: Sequence[float] | None = None
) -> dict[str, float]:
    """The measurements of METRICS but latency, of an ordinary (folded) network on one split.

    Args:
        network: in any mode.
        split: the images.
        temperature: of the `calibrated` measurements; None fits it on these very images, as is done on validation data.
        curve: of the teacher on the same split (`ensemble_curve`); without it there is no deep-ensemble equivalent.

    Raises:
        Diverged: the network's outputs are not all numbers.
    """
    members = outputs(network, split)
    _, c, h, w = split.images.shape
    found = quality(combined(members.flatten(0, 1), len(members)), split.labels)
    found |= uncertainty(members, split.labels, temperature)
    if curve is not None:
        found["deep_ensemble_equivalent"] = deep_ensemble_equivalent(found["calibrated_nll"], curve)
    return {**found, **cost(network, (c, h, w))}
