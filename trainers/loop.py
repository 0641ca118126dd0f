"""The training loop: one for teachers, students and fine-tuning."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainers.computing import SoundConvolutions
from trainers.data.augment import augment
from trainers.data.dataset import Split, pixels
from trainers.families.batch_ensemble import BatchEnsemble
from trainers.spectral.layers import spectral_layers

WARM_UP = 0.05
"""Share of the steps during which the learning rate rises; then it decays to zero as a cosine."""


class Diverged(RuntimeError):
    """The loss, or the network's output, is no longer finite."""


@dataclass(frozen=True)
class Batch:
    """A batch. index: (B,) rows of the split; images: (B, C, H, W) in [0, 1], augmented; labels: (B,)."""

    index: Tensor
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Schedule:
    """How long to train, and at which rates."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    fast_learning_rate: float = 1.0
    """For a BatchEnsemble's fast weights, as a multiple of `learning_rate`."""
    fast_weight_decay: float = 0.0
    max_gradient_norm: float = 0.0
    """What the L2 norm of the gradient of everything that is trained is cut down to; 0 is no limit."""


@dataclass(frozen=True)
class State:
    """Everything from which `fit` continues after an epoch; on a CPU, to the bit."""

    epoch: int
    """Epochs done."""
    step: int
    """Batches done."""
    tensors: Mapping[str, Tensor]
    """Named `modules.` or `momentum.` plus a name in the trained modules, in their order; and `generator`."""

    def fits(self, modules: Iterable[nn.Module]) -> bool:
        """Whether the modules have the same tensors, by name and shape."""
        prefix = "modules."
        shapes = {name.removeprefix(prefix): t.shape for name, t in self.tensors.items() if name.startswith(prefix)}
        return shapes == {name: getattr(t, "shape", None) for name, t in nn.ModuleList(modules).state_dict().items()}


def batches(split: Split, size: int, policy: str, generator: torch.Generator, device: torch.device) -> Iterator[Batch]:
    """One shuffled pass; a last batch with a single image is dropped (batch norm has nothing to average)."""
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
    start: State | None = None,
    on_state: Callable[[Callable[[], State]], object] = lambda state: None,
) -> None:
    """Train `network` (and `others`, a method's adapters) in place by SGD on `loss`.

    Args:
        network: in any mode; it is left in training mode.
        loss: of one batch, a scalar with gradient.
        split: to train on.
        schedule: epochs, batch size, learning rate and so on.
        policy: augmentation.
        generator: for the order of images and the augmentation.
        others: modules whose parameters are trained along with the network's.
        on_epoch: called with the epoch, from 1, and its mean loss; what it raises ends the training.
        start: the state of another process with equal modules; earlier epochs are not repeated.
        on_state: called after `on_epoch` with a function that returns the state; its tensors are copies.

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
    whole, step, done = nn.ModuleList(modules).train(), 0, 0
    if start is not None:
        step, done = start.step, start.epoch
        _restore(start.tensors, whole, optimizer, generator)
    for epoch in range(done + 1, schedule.epochs + 1):
        whole.train()
        sum_loss, count = 0.0, 0
        for batch in batches(split, schedule.batch_size, policy, generator, device):
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * rate(step, total)
            optimizer.zero_grad(set_to_none=True)
            with SoundConvolutions():
                value = loss(batch)
                value.backward()  # type: ignore[no-untyped-call]
            if schedule.max_gradient_norm:
                nn.utils.clip_grad_norm_(whole.parameters(), schedule.max_gradient_norm)
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
        on_state(lambda epoch=epoch, step=step: State(epoch, step, _saved(whole, optimizer, generator)))  # type: ignore[misc]


def _saved(whole: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> dict[str, Tensor]:
    """Copies of everything that changes during training."""
    saved = {f"modules.{name}": value for name, value in whole.state_dict().items()}
    for name, p in whole.named_parameters():
        if (momentum := optimizer.state.get(p, {}).get("momentum_buffer")) is not None:
            saved[f"momentum.{name}"] = momentum
    saved["generator"] = generator.get_state()
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in saved.items()}


def _restore(
    saved: Mapping[str, Tensor], whole: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    """Put back what `_saved` returned, each tensor in the memory layout it had: another may round differently."""
    prefix = "modules."
    whole.load_state_dict({name.removeprefix(prefix): t for name, t in saved.items() if name.startswith(prefix)})
    for name, p in whole.named_parameters():
        if (momentum := saved.get(f"momentum.{name}")) is not None:
            optimizer.state[p]["momentum_buffer"] = torch.empty_like(p, requires_grad=False).copy_(momentum)
    generator.set_state(saved["generator"])


def _groups(modules: Iterable[nn.Module], schedule: Schedule) -> list[dict[str, Any]]:
    """The parameters grouped by `base` learning rate and weight decay."""
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "free": [], "fast": []}
    for module in modules:
        kinds: dict[int, str] = {}
        for _, layer in spectral_layers(module):  # they have their own penalty in the loss
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
        {"params": group, "weight_decay": decays.get(kind, 0.0), "base": rates.get(kind, schedule.learning_rate)}
        for kind, group in groups.items()
        if group
    ]


def rate(step: int, total: int) -> float:
    """The learning rate at `step` of `total`, as a share of its maximum."""
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
