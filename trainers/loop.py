"""The training loop: one for teachers, students and fine-tuning."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainers.data.augment import augment
from trainers.data.dataset import Split, pixels
from trainers.families.batch_ensemble import BatchEnsemble
from trainers.spectral.layers import spectral_layers

WARM_UP = 0.05
"""Share of the steps over which the learning rate rises; the rest is a cosine to zero."""


class Diverged(RuntimeError):
    """The loss, or what the network puts out, is no longer a number."""


@dataclass(frozen=True)
class Batch:
    """index: (B,) rows of the split; images: (B, C, H, W) in [0, 1], augmented; labels: (B,)."""

    index: Tensor
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    fast_learning_rate: float = 1.0
    """Of a BatchEnsemble's fast weights, as a multiple of `learning_rate`."""
    fast_weight_decay: float = 0.0


def batches(split: Split, size: int, policy: str, generator: torch.Generator, device: torch.device) -> Iterator[Batch]:
    """One shuffled pass; a last batch of a single image is left out (batch norm has nothing to average)."""
    order = torch.randperm(len(split.labels), generator=generator)
    for index in torch.split(order, size):
        if len(index) == 1 < len(order):
            continue
        images = augment(pixels(split.images[index]), policy, generator)
        yield Batch(index, images.to(device, memory_format=torch.channels_last), split.labels[index].to(device))


def fit(
    network: nn.Module,
    loss: Callable[[Batch], Tensor],
    split: Split,
    schedule: Schedule,
    *,
    policy: str,
    generator: torch.Generator,
    others: Iterable[nn.Module] = (),
    on_epoch: Callable[[int, float], object] = lambda epoch, mean_loss: None,
) -> None:
    """Train `network` (and `others`, a method's adapters) in place by SGD on `loss`.

    Args:
        network: in any mode; it is left in training mode.
        loss: of one batch, a scalar with gradient.
        split: what is trained on.
        schedule: epochs, batch size, learning rate and so on.
        policy: augmentation.
        generator: the order of images and the augmentation come from it.
        others: modules whose parameters are trained with the network's.
        on_epoch: called with the epoch, from 1, and its mean loss; what it raises ends the training.

    Raises:
        Diverged: the loss of an epoch is NaN or infinite.
    """
    modules = [network, *others]
    device = next(network.parameters()).device
    groups = _groups(modules, schedule)
    optimizer = torch.optim.SGD(
        groups,
        lr=schedule.learning_rate,
        momentum=schedule.momentum,
        nesterov=schedule.momentum > 0,
    )
    per_epoch = math.ceil(len(split.labels) / schedule.batch_size)
    total = schedule.epochs * per_epoch
    step = 0
    for epoch in range(1, schedule.epochs + 1):
        for module in modules:
            module.train()
        sum_loss, count = 0.0, 0
        for batch in batches(split, schedule.batch_size, policy, generator, device):
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * rate(step, total)
            optimizer.zero_grad(set_to_none=True)
            value = loss(batch)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            sum_loss += value.item()
            count += 1
            step += 1
        mean_loss = sum_loss / max(1, count)
        if not math.isfinite(mean_loss):
            raise Diverged(
                f"the loss must be finite, but is {mean_loss} in epoch {epoch}; lower the learning rate "
                f"(now {schedule.learning_rate:g}) or the transfer weight"
            )
        on_epoch(epoch, mean_loss)


def _groups(modules: Iterable[nn.Module], schedule: Schedule) -> list[dict[str, Any]]:
    """The parameters by how they are trained: `base` learning rate and weight decay."""
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "free": [], "fast": []}
    for module in modules:
        kinds: dict[int, str] = {}
        for _, layer in spectral_layers(module):  # which have their own penalty, in the loss
            kinds |= dict.fromkeys(map(id, layer.parameters()), "free")
        for ensemble in module.modules():
            if isinstance(ensemble, BatchEnsemble):
                kinds |= {id(ensemble.alpha): "fast", id(ensemble.gamma): "fast", id(ensemble.bias): "free"}
        for p in module.parameters():
            if p.requires_grad:
                # biases, batch norms and eigenvalues are vectors
                groups[kinds.get(id(p), "decayed" if p.dim() > 1 else "free")].append(p)
    rates = {"fast": schedule.learning_rate * schedule.fast_learning_rate}
    decays = {"decayed": schedule.weight_decay, "fast": schedule.fast_weight_decay}
    return [
        {"params": found, "weight_decay": decays.get(kind, 0.0), "base": rates.get(kind, schedule.learning_rate)}
        for kind, found in groups.items()
        if found
    ]


def rate(step: int, total: int) -> float:
    """The learning rate at `step` of `total` as a share of its maximum."""
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
