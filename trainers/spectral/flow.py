"""What the operations of a forward pass do to the axes of tensors, and from which layers each tensor comes."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.families.batch_ensemble import BatchEnsemble
from trainers.spectral.attention import Attention
from trainers.spectral.axes import Counters, Coupling, Layout
from trainers.spectral.operations import RULES, Operation, elementwise, fixed, unknown
from trainers.spectral.recording import Running, Step, place_of, record

LAYERS = (nn.Conv2d, nn.Linear)
"""Layers whose outputs are units."""
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution")
"""Operations by which a layer makes its outputs."""
_HEADS, _WIDTHS = "head", ("dim", "width", "embed", "embd", "inner", "hidden", "size")
"""What is in the names of attributes that count heads, and in those of the width of all heads together."""


class Flow:
    """A forward pass, followed."""

    def __init__(self, model: nn.Module, image_shape: tuple[int, ...]) -> None:
        """Runs the model, of ordinary layers and in eval mode, on two all-zero images."""
        self.coupling = Coupling()
        self.tensors: dict[str, Layout] = {}
        """Layouts of parameters and buffers, by their first name."""
        self.uses: dict[str, list[str | None]] = {}
        """Of each layer that is used, the batch norms that take its outputs, and None for what else does."""
        self.taken: dict[str, set[str | None]] = {}
        """Of each batch norm, the layers whose outputs it takes, and None for other tensors."""
        self.heads: frozenset[str] = frozenset()
        """The layers that no other layer follows."""
        self._layouts: dict[object, Layout] = {}
        self._nearest: dict[object, frozenset[str]] = {}
        """Of each tensor, the last layers before it."""
        self._makers: dict[object, str] = {}
        """Of the outputs of layers, the layer."""
        self._constants: dict[object, str | None] = {}
        """What is computed from parameters alone, with the layer whose weight is in it."""
        self._enter_parameters(model)
        steps, outputs = record(model, image_shape)
        for step in steps:
            if step.name:
                self._couple(step)
                self._trace_back(step)
            elif isinstance(step.running[-1][1], BatchEnsemble):  # its outputs are those of its layer
                self._makers.update({place_of(tensor): f"{step.running[-1][0]}.layer" for tensor in step.outputs})
        for tensor in outputs:
            place = place_of(tensor)
            self.coupling.keep((axis for axes in self._layout(tensor) for axis in axes), "are the network's outputs")
            self.heads |= self._nearest.get(place, frozenset())
            self._use([place], None, ())
        self.counted = self.coupling.settle()
        """What is used as the product of two axes, one of which can lose indices that modules count."""

    def _enter_parameters(self, model: nn.Module) -> None:
        saved = model.state_dict().keys()
        layers = {f"{name}.weight": name for name, module in model.named_modules() if isinstance(module, LAYERS)}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in saved:
                self.tensors[name] = [[self.coupling.axis(size)] for size in tensor.shape]
            # a buffer that is not saved could not be read back in another size
            self._layouts[place_of(tensor)] = self.tensors.get(name, fixed(tensor.shape))
            self._constants[place_of(tensor)] = layers.get(name)

    def _couple(self, step: Step) -> None:
        rule = elementwise if step.is_pointwise else RULES.get(step.name, unknown)
        where = f" ({step.running[-1][0]})" if step.running and step.running[-1][0] else ""

        def counters(part: int, whole: int) -> Counters:
            return _counters(step.running, part, whole)

        layouts = rule(Operation(step, self.coupling, self._layout, where, counters))
        for number, output in enumerate(step.outputs):
            self._layouts[place_of(output)] = layouts[number] if number < len(layouts) else fixed(output.shape)

    def _trace_back(self, step: Step) -> None:
        """Note where the outputs of an operation come from."""
        given = [place_of(tensor) for tensor in step.inputs]
        layer = next((self._constants[place] for place in given if self._constants.get(place)), None)
        is_constant = bool(given) and all(place in self._constants for place in given)
        maker = layer if step.name in _PRODUCTS and not is_constant else None
        nearest = frozenset([maker]) if maker else frozenset().union(*(self._nearest.get(place, ()) for place in given))
        if step.name not in ("detach", "alias"):
            self._use(given, step.name, step.running)
        for place in map(place_of, step.outputs):
            self._nearest[place] = nearest
            if is_constant:
                self._constants[place] = layer
            if maker:
                self._makers[place] = maker
                self.uses.setdefault(maker, [])

    def _use(self, given: Iterable[object], operation: str | None, running: Running) -> None:
        """Tensors are taken by an operation; by None if they are outputs of the network."""
        makers = {self._makers[place] for place in given if place in self._makers}
        name, module = running[-1] if running else ("", None)
        norm = name if isinstance(module, _BatchNorm) and "batch_norm" in (operation or "") else None
        if norm:
            self.taken.setdefault(norm, set()).update(makers or {None})
        inside = {f"{name}.layer" for name, module in running if isinstance(module, BatchEnsemble)}
        for maker in makers - inside:
            self.uses[maker].append(norm)

    def _layout(self, tensor: Tensor) -> Layout:
        found = self._layouts.get(place_of(tensor))
        return fixed(tensor.shape) if found is None else found


def counts_heads(network: nn.Module, tensors: Iterable[str]) -> str:
    """The first module with some of these tensors that says in an attribute how many heads it has; empty if none does.

    Attention that Dux has opened needs none: its tensors say it.
    """
    for name, module in network.named_modules():
        has_some = any(not name or tensor.startswith(f"{name}.") for tensor in tensors)
        if has_some and not isinstance(module, Attention) and any(_numbers(module, heads=True)):
            return name or type(module).__name__
    return ""


def _counters(running: Sequence[tuple[str, nn.Module]], part: int, whole: int) -> Counters:
    """Attributes of the innermost module that has one for a number of heads of this value."""
    for name, module in reversed(running):
        heads = [(name, key) for key, value in _numbers(module, heads=True) if value == part]
        if heads:
            return (*heads, *((name, key) for key, value in _numbers(module, heads=False) if value == whole))
    return ()


def _numbers(module: nn.Module, *, heads: bool) -> Iterator[tuple[str, int]]:
    """A module's attributes that may count heads, or else widths, with their values."""
    for key, value in vars(module).items():
        is_width = any(word in key.lower() for word in _WIDTHS)
        if type(value) is int and (_HEADS in key.lower() and not is_width if heads else is_width):
            yield key, value
