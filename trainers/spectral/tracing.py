"""A forward pass of which every operation is followed."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.families.batch_ensemble import BatchEnsemble
from trainers.spectral.axes import Counters, Coupling, Layout
from trainers.spectral.operations import RULES, Operation, elementwise, fixed, tensors_in, unknown

LAYERS = (nn.Conv2d, nn.Linear)
"""Layers whose outputs are units."""
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution")
"""Operations by which a layer makes its outputs."""
_HEADS, _WIDTHS = "head", ("dim", "width", "embed", "embd", "inner", "hidden", "size")
"""What is in the names of attributes that count heads, and in those of the width of all heads together."""


def follow(model: nn.Module, image_shape: tuple[int, ...]) -> "Pass":
    """Follow two all-zero images through a network, whose mode and buffers must not matter: it is run as it is."""
    images = torch.zeros(2, *image_shape, device=next(model.parameters()).device)
    followed = Pass(model)
    with _watched(model, followed), torch.no_grad(), followed:
        outputs = model(images)
    followed.finish(outputs)
    return followed


@contextmanager
def _watched(model: nn.Module, followed: "Pass") -> Iterator[None]:
    """Tells `followed` which modules are running; fused kernels that take a whole module at a time are off."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda module, _, name=name: followed.begin(name, module)))
        hooks.append(module.register_forward_hook(lambda _, __, output: followed.end(output)))
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for hook in hooks:
            hook.remove()


class Pass(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The axes of all tensors of a forward pass, and which layers they come from.

    Tensors are known by the memory that they lie in, since a view may come back as another object. What has been seen
    is held, so that no memory is used twice.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.coupling = Coupling()
        self.tensors: dict[str, Layout] = {}
        """Layouts of parameters and buffers, by their first name."""
        self.uses: dict[str, list[str | None]] = {}
        """Of each layer that is used, the batch norms that take its outputs, and None for what else does."""
        self.taken: dict[str, set[str | None]] = {}
        """Of each batch norm, the layers whose outputs it takes, and None for other tensors."""
        self.heads: frozenset[str] = frozenset()
        """The layers that no other layer follows."""
        self._held: list[Tensor] = []
        self._layouts: dict[object, Layout] = {}
        self._nearest: dict[object, frozenset[str]] = {}
        """Of each tensor, the last layers before it."""
        self._makers: dict[object, str] = {}
        """Of the outputs of layers, the layer."""
        self._constants: dict[object, str | None] = {}
        """What is computed from parameters alone, with the layer whose weight is in it."""
        self._running: list[tuple[str, nn.Module]] = []
        layers = {f"{name}.weight": name for name, module in model.named_modules() if isinstance(module, LAYERS)}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self.tensors[name] = [[self.coupling.axis(size)] for size in tensor.shape]
            self._constants[self._hold(tensor, self.tensors[name])] = layers.get(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and follow it."""
        named = kwargs or {}
        outputs = func(*args, **named)
        if tensors := [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]:
            given = {
                argument.name: args[place] if place < len(args) else named.get(argument.name, argument.default_value)
                for place, argument in enumerate(func._schema.arguments)
            }
            name = func._schema.name.partition("::")[2].removesuffix("_")
            rule = elementwise if torch.Tag.pointwise in func.tags else RULES.get(name, unknown)
            where = f" ({self._running[-1][0]})" if self._running and self._running[-1][0] else ""
            layouts = rule(Operation(name, self.coupling, given, tensors, self._layout, where, self._counters))
            self._follow(name, [_key(tensor) for tensor in tensors_in(given)], tensors, layouts)
        return outputs

    def begin(self, name: str, module: nn.Module) -> None:
        """A module is called."""
        self._running.append((name, module))

    def end(self, output: object) -> None:
        """The module that was called last is done."""
        name, module = self._running.pop()
        if isinstance(module, BatchEnsemble) and isinstance(output, Tensor):
            self._makers[_key(output)] = f"{name}.layer"

    def finish(self, outputs: object) -> None:
        """The pass is over, and these are the network's outputs."""
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                key = _key(tensor)
                self.coupling.keep(
                    (axis for axes in self._layout(tensor) for axis in axes), "are the network's outputs"
                )
                self.heads |= self._nearest.get(key, frozenset())
                self._use([key], None)

    def _follow(self, name: str, given: Sequence[object], outputs: Sequence[Tensor], layouts: Sequence[Layout]) -> None:
        """Note where an operation's outputs come from.

        Args:
            name: of the operation.
            given: keys of the tensors that it takes.
            outputs: that it makes.
            layouts: of the outputs, as far as they are not fixed.
        """
        layer = next((self._constants[key] for key in given if self._constants.get(key)), None)
        is_constant = bool(given) and all(key in self._constants for key in given)
        maker = layer if name in _PRODUCTS and not is_constant else None
        nearest = frozenset([maker]) if maker else frozenset().union(*(self._nearest.get(key, ()) for key in given))
        if name not in ("detach", "alias"):
            self._use(given, name)
        for place, output in enumerate(outputs):
            key = self._hold(output, layouts[place] if place < len(layouts) else fixed(output.shape))
            self._nearest[key] = nearest
            if is_constant:
                self._constants[key] = layer
            if maker:
                self._makers[key] = maker
                self.uses.setdefault(maker, [])

    def _use(self, given: Iterable[object], operation: str | None) -> None:
        """Tensors are taken by an operation, or by nobody but the caller of the network."""
        makers = {self._makers[key] for key in given if key in self._makers}
        name, module = self._running[-1] if self._running else ("", None)
        norm = name if isinstance(module, _BatchNorm) and "batch_norm" in (operation or "") else None
        if norm:
            self.taken.setdefault(norm, set()).update(makers or {None})
        inside = {f"{name}.layer" for name, module in self._running if isinstance(module, BatchEnsemble)}
        for maker in makers - inside:
            self.uses[maker].append(norm)

    def _layout(self, tensor: Tensor) -> Layout:
        found = self._layouts.get(_key(tensor))
        return fixed(tensor.shape) if found is None else found

    def _hold(self, tensor: Tensor, layout: Layout) -> object:
        key = _key(tensor)
        self._held.append(tensor)
        self._layouts[key] = layout
        return key

    def _counters(self, part: int, whole: int) -> Counters:
        """Attributes of the innermost module that has one for a number of heads of this value."""
        for name, module in reversed(self._running):
            numbers = {key: value for key, value in vars(module).items() if type(value) is int}
            widths = {key for key in numbers if any(word in key.lower() for word in _WIDTHS)}
            heads = [key for key in numbers.keys() - widths if _HEADS in key.lower() and numbers[key] == part]
            if heads:
                return tuple((name, key) for key in sorted([*heads, *(key for key in widths if numbers[key] == whole)]))
        return ()


def _key(tensor: Tensor) -> object:
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
