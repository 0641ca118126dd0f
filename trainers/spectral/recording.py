"""The operations of a forward pass, as they reach PyTorch's dispatcher."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Running = tuple[tuple[str, nn.Module], ...]
"""The modules that are being called, from the outermost, with their names."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operation, or the end of a module's call, which only has outputs."""

    name: str
    """Without overload, and without the underscore of operations that work in place; empty at the end of a call."""
    given: Mapping[str, Any]
    """Arguments by their names in the operation's schema."""
    outputs: Sequence[Tensor]
    running: Running
    is_pointwise: bool = False
    is_in_place: bool = False

    @property
    def inputs(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [leaf for leaf in tree_leaves(list(self.given.values())) if isinstance(leaf, Tensor)]


def record(model: nn.Module, image_shape: tuple[int, ...]) -> tuple[list[Step], list[Tensor]]:
    """The steps by which a network's outputs come from two all-zero images, and these outputs.

    Steps whose outputs nothing is made of are left out. No gradients are recorded; the network is run as it is.
    """
    images = torch.zeros(2, *image_shape, device=next(model.parameters()).device)
    recorder = _Recorder()
    with _watched(model, recorder), torch.no_grad(), recorder:
        outputs = model(images)
    found = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return _needed(recorder.steps, found), found


def place_of(tensor: Tensor) -> object:
    """By what a tensor is known: the memory that it lies in, since a view may come back as another object.

    It is its own as long as the tensor is held.
    """
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)


def _needed(steps: Sequence[Step], outputs: Iterable[Tensor]) -> list[Step]:
    live, found = {place_of(tensor) for tensor in outputs}, list[Step]()
    for step in reversed(steps):
        # what works in place may change what other views see
        if not step.name or step.is_in_place or not live.isdisjoint(map(place_of, step.outputs)):
            live.update(map(place_of, step.inputs))
            found.append(step)
    return found[::-1]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes down every operation while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.running: Running = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        named = kwargs or {}
        outputs = func(*args, **named)
        if tensors := [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]:
            given = {
                argument.name: args[place] if place < len(args) else named.get(argument.name, argument.default_value)
                for place, argument in enumerate(func._schema.arguments)
            }
            name = func._schema.name.partition("::")[2].removesuffix("_")
            is_pointwise = torch.Tag.pointwise in func.tags
            self.steps.append(Step(name, given, tensors, self.running, is_pointwise, func._schema.is_mutable))
        return outputs

    def end(self, outputs: object) -> None:
        """The module that was called last is done."""
        tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        self.steps.append(Step("", {}, tensors, self.running))
        self.running = self.running[:-1]

    def begin(self, name: str, module: nn.Module) -> None:
        """A module is called."""
        self.running = (*self.running, (name, module))


@contextmanager
def _watched(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Tells the recorder which modules are called; kernels that take a whole module at once are off."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda module, _, name=name: recorder.begin(name, module)))
        hooks.append(module.register_forward_hook(lambda _, __, outputs: recorder.end(outputs)))
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for hook in hooks:
            hook.remove()
