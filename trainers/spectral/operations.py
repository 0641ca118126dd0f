"""How each operation of PyTorch couples the axes of the tensors that it takes and makes.

Operations are those that reach PyTorch's dispatcher, of which there are few: a network's own code, and the layers of
any library, come down to these. An operation without a rule keeps all that it takes whole, so that nothing is cut that
cannot be followed.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainers.spectral.axes import Axis, Counting, Coupling, Layout
from trainers.spectral.recording import Step


class Operation:
    """One operation of a forward pass."""

    def __init__(
        self, step: Step, coupling: Coupling, layout_of: Callable[[Tensor], Layout], place: str, counting: Counting
    ) -> None:
        self.name, self.given, self.inputs, self.outputs = step.name, step.given, step.inputs, step.outputs
        self.coupling, self.layout_of, self.place, self.counting = coupling, layout_of, place, counting

    def layout(self, name: str) -> Layout:
        """Of an argument."""
        return self.layout_of(self.given[name])

    def has(self, name: str) -> bool:
        """Whether an argument is a tensor."""
        return isinstance(self.given.get(name), Tensor)

    def keep(self, axes: Sequence[Axis], why: str) -> None:
        """Indices of these are never removed."""
        self.coupling.keep(axes, f"{why}{self.place}")

    def join(self, one: Sequence[Axis], other: Sequence[Axis]) -> None:
        """Couple two dimensions."""
        self.coupling.join(one, other, self.place)

    def dimension(self, name: str, of: Layout) -> int:
        """An argument that counts dimensions, from 0."""
        number: int = self.given[name]
        return number % len(of)

    def broadcast(self, layouts: Sequence[Layout], shape: Sequence[int]) -> Layout:
        """Couple tensors that are combined element by element into one of this shape; returns its layout."""
        found: Layout = []
        for back, size in enumerate(reversed(shape), start=1):
            same = [own[-back] for own in layouts if len(own) >= back and _size(own[-back]) == size]
            for other in same[1:]:
                self.join(same[0], other)
            # one of fixed size, if there is one: then all of them are kept
            found.insert(0, min(same, key=_keyed) if same else fixed([size])[0])
        return found


_BATCH_NORMS = ("_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_with_update")
_ATTENTIONS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
_MAPS = {"1d": 1, "2d": 2, "3d": 3}
_POOLINGS = (
    *(f"avg_pool{maps}" for maps in _MAPS),
    *(f"max_pool{maps}_with_indices" for maps in _MAPS),
    *(f"_adaptive_avg_pool{maps}" for maps in _MAPS),
    *(f"adaptive_max_pool{maps}" for maps in _MAPS),
    *(f"upsample_nearest{maps}" for maps in _MAPS),
    *("upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_nearest_exact2d"),
)


Rule = Callable[[Operation], list[Layout]]
"""Couples the axes of an operation's arguments; returns the layouts of its outputs, as far as they are not fixed."""
RULES: dict[str, Rule] = {}
"""By the name of the operation, without overload and without the underscore of those that work in place."""


def fixed(shape: Sequence[int]) -> Layout:
    """The layout of a tensor whose size is not the network's to change."""
    return [[Axis(size)] if size != 1 else [] for size in shape]


def _size(axes: Sequence[Axis]) -> int:
    size = 1
    for axis in axes:
        size *= axis.size
    return size


def _keyed(axes: Sequence[Axis]) -> bool:
    return any(axis.keys is not None for axis in axes)


def _all(layout: Layout) -> list[Axis]:
    return [axis for axes in layout for axis in axes]


def _rule_for_several(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for operations with any number of outputs."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _rule(*names: str) -> Callable[[Callable[[Operation], Layout]], object]:
    """Registers a rule for the first output alone."""
    return lambda rule: _rule_for_several(*names)(lambda op: [rule(op)])


def unknown(op: Operation) -> list[Layout]:
    """What has no rule."""
    for value in op.inputs:
        op.keep(_all(op.layout_of(value)), f"pass through `{op.name}`, which is not followed")
    return []


def elementwise(op: Operation) -> list[Layout]:
    """Element by element, with broadcasting."""
    return [op.broadcast([op.layout_of(value) for value in op.inputs], op.outputs[0].shape)]


# not all of these are tagged as pointwise
_rule_for_several(
    *(
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "elu",
        "celu",
        "prelu",
        "_prelu_kernel",
        "threshold",
        "log_sigmoid_forward",
    ),
    *("detach", "alias", "clone", "_to_copy", "lift_fresh", "lift_fresh_copy", "copy", "fill", "where", "masked_fill"),
    *("native_dropout", "bernoulli", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
)(elementwise)


@_rule("view", "_unsafe_view", "_reshape_alias")
def _view(op: Operation) -> Layout:
    layout, shape = op.layout("self"), op.outputs[0].shape
    found = op.coupling.view(layout, shape, op.place, op.counting)
    if found is None:
        op.keep(_all(layout), "are reshaped")
        return fixed(shape)
    return found


@_rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def _new(op: Operation) -> Layout:
    return fixed(op.outputs[0].shape)


@_rule("permute")
def _permute(op: Operation) -> Layout:
    layout = op.layout("self")
    return [layout[number] for number in op.given["dims"]]


@_rule("transpose", "t")
def _transpose(op: Operation) -> Layout:
    layout = list(op.layout("self"))
    if len(layout) > 1:
        one, other = (op.dimension(name, layout) if name in op.given else at for name, at in (("dim0", 0), ("dim1", 1)))
        layout[one], layout[other] = layout[other], layout[one]
    return layout


@_rule("squeeze")
def _squeeze(op: Operation) -> Layout:
    layout = op.layout("self")
    dims = op.given.get("dim", range(len(layout)))
    several = {number % len(layout) for number in ([dims] if isinstance(dims, int) else dims)} if layout else set()
    return [axes for number, axes in enumerate(layout) if number not in several or _size(axes) != 1]


@_rule("unsqueeze")
def _unsqueeze(op: Operation) -> Layout:
    layout = list(op.layout("self"))
    layout.insert(op.given["dim"] % (len(layout) + 1), [])
    return layout


@_rule("expand")
def _expand(op: Operation) -> Layout:
    return _stretched(op.layout("self"), op.outputs[0].shape)


@_rule("repeat")
def _repeat(op: Operation) -> Layout:
    layout, shape = op.layout("self"), op.outputs[0].shape
    found = _stretched(layout, shape)
    op.keep([axis for axes in layout for axis in axes if axes not in found], "are repeated")
    return found


def _stretched(layout: Layout, shape: Sequence[int]) -> Layout:
    """The layout with each dimension of another size made anew."""
    layout = [[]] * (len(shape) - len(layout)) + layout
    return [own if _size(own) == size else new for own, size, new in zip(layout, shape, fixed(shape), strict=True)]


@_rule_for_several("select", "unbind")
def _select(op: Operation) -> list[Layout]:
    layout = list(op.layout("self"))
    op.keep(layout.pop(op.dimension("dim", layout)), "are picked by their place")
    return [layout] * len(op.outputs)


@_rule("slice")
def _slice(op: Operation) -> Layout:
    layout = op.layout("self")
    number = op.dimension("dim", layout)
    start, stop, step = slice(op.given["start"], op.given["end"], op.given["step"]).indices(_size(layout[number]))
    return _sliced(op, layout, number, [(start, stop, step)])[0]


@_rule_for_several("split", "split_with_sizes")
def _split(op: Operation) -> list[Layout]:
    layout = op.layout("self")
    number, start, parts = op.dimension("dim", layout), 0, []
    for output in op.outputs:
        parts.append((start, start + output.shape[number], 1))
        start += output.shape[number]
    return _sliced(op, layout, number, parts)


@_rule("glu")
def _glu(op: Operation) -> Layout:
    layout = op.layout("self")
    number = op.dimension("dim", layout)
    half = _size(layout[number]) // 2
    one, other = _sliced(op, layout, number, [(0, half, 1), (half, 2 * half, 1)])
    op.join(one[number], other[number])
    return one


def _sliced(op: Operation, layout: Layout, number: int, parts: Sequence[tuple[int, int, int]]) -> list[Layout]:
    size = _size(layout[number])
    found = []
    for start, stop, step in parts:
        own = layout[number]
        if (start, stop, step) != (0, size, 1):
            own = [op.coupling.part(op.coupling.fused(own, op.place), start, stop, step, op.place)]
        found.append([*layout[:number], own, *layout[number + 1 :]])
    return found


@_rule("cat")
def _cat(op: Operation) -> Layout:
    shape = op.outputs[0].shape
    layouts = [op.layout_of(tensor) for tensor in op.given["tensors"] if tensor.dim() == len(shape)]
    number = op.dimension("dim", layouts[0])
    found = list(layouts[0])
    for layout in layouts[1:]:
        for other in range(len(found)):
            if other != number:
                op.join(found[other], layout[other])
    found[number] = [_concatenated(op, [op.coupling.fused(layout[number], op.place) for layout in layouts])]
    return found


def _concatenated(op: Operation, axes: Sequence[Axis]) -> Axis:
    size = sum(axis.size for axis in axes)
    if not _keyed(axes):
        return Axis(size)
    keys: list[int] = []
    for axis in axes:
        if axis.keys is None:
            axis = op.coupling.axis(axis.size)
            op.keep([axis], "are of fixed size")
        keys += axis.keys or ()
    return Axis(size, tuple(keys))


@_rule("stack")
def _stack(op: Operation) -> Layout:
    tensors = op.given["tensors"]
    layout = op.broadcast([op.layout_of(tensor) for tensor in tensors], tensors[0].shape)
    layout.insert(op.given["dim"] % (len(layout) + 1), fixed([len(tensors)])[0])
    return layout


@_rule("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _pad(op: Operation) -> Layout:
    layout, pad = list(op.layout("self")), op.given.get("pad", op.given.get("padding"))
    for place in range(0, len(pad), 2):
        before, after = pad[place : place + 2]
        number = len(layout) - 1 - place // 2
        if min(before, after) < 0:
            op.keep(layout[number], "are cropped")
            layout[number] = fixed([op.outputs[0].shape[number]])[0]
        elif before or after:
            ends = (Axis(before), op.coupling.fused(layout[number], op.place), Axis(after))
            layout[number] = [_concatenated(op, [axis for axis in ends if axis.size])]
    return layout


@_rule("roll", "flip")
def _roll(op: Operation) -> Layout:
    layout = op.layout("self")
    moved = op.given["dims"] or range(len(layout))
    op.keep(_all([layout[number] for number in moved]), "change places")
    return layout


@_rule("index")
def _index(op: Operation) -> Layout:
    layout, indices = op.layout("self"), op.given["indices"]
    by = [number for number, index in enumerate(indices) if index is not None]
    if len(by) != 1 or indices[by[0]].dtype == torch.bool:
        unknown(op)
        return fixed(op.outputs[0].shape)
    op.keep(layout[by[0]], "are picked by their place")
    return [*layout[: by[0]], *fixed(indices[by[0]].shape), *layout[by[0] + 1 :]]


@_rule_for_several(
    "sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "logsumexp", "prod", "any", "all", "norm"
)
def _reduce(op: Operation) -> list[Layout]:
    layout = op.layout("self")
    dims = op.given.get("dim")
    several = [dims] if isinstance(dims, int) else list(dims or range(len(layout)))
    several = [number % len(layout) for number in several]
    if op.name != "sum":  # what has been cut would have added 0
        op.keep(_all([layout[number] for number in several]), "are reduced to one number")
    found: Layout = []
    for number, axes in enumerate(layout):
        if number not in several:
            found.append(axes)
        elif op.given.get("keepdim"):
            found.append([])
    return [found] * len(op.outputs)


@_rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod")
def _along(op: Operation) -> Layout:
    layout = op.layout("self")
    op.keep(layout[op.dimension("dim", layout)], "are normalised together")
    return layout


@_rule("mm")
def _mm(op: Operation) -> Layout:
    one, other = op.layout("self"), op.layout("mat2")
    op.join(one[1], other[0])
    return [one[0], other[1]]


@_rule("addmm")
def _addmm(op: Operation) -> Layout:
    one, other = op.layout("mat1"), op.layout("mat2")
    op.join(one[1], other[0])
    return op.broadcast([[one[0], other[1]], op.layout("self")], op.outputs[0].shape)


@_rule("bmm", "baddbmm")
def _bmm(op: Operation) -> Layout:
    one, other = (op.layout(name) for name in (("batch1", "batch2") if "batch1" in op.given else ("self", "mat2")))
    op.join(one[0], other[0])
    op.join(one[2], other[1])
    found = [one[0], one[1], other[2]]
    return op.broadcast([found, op.layout("self")], op.outputs[0].shape) if "batch1" in op.given else found


@_rule("linear")
def _linear(op: Operation) -> Layout:
    given, weight = op.layout("input"), op.layout("weight")
    op.join(given[-1], weight[1])
    found = [*given[:-1], weight[0]]
    return op.broadcast([found, op.layout("bias")], op.outputs[0].shape) if op.has("bias") else found


@_rule("convolution")
def _convolution(op: Operation) -> Layout:
    given, weight, groups = op.layout("input"), op.layout("weight"), op.given["groups"]
    inputs, outputs = (weight[0], weight[1]) if op.given.get("transposed") else (weight[1], weight[0])
    if groups == 1:
        op.join(given[1], inputs)
    elif op.given.get("transposed"):
        op.keep(_all([given[1], *weight]), "pass through a grouped transposed convolution")
        outputs = fixed([op.outputs[0].shape[1]])[0]
    elif groups == _size(given[1]):
        _join_depthwise(op, given[1], outputs)
    else:
        _join_groups(op, given[1], inputs, outputs, groups)
    if op.has("bias"):
        op.join(outputs, op.layout("bias")[0])
    return [given[0], outputs, *fixed(op.outputs[0].shape[2:])]


def _join_depthwise(op: Operation, given: list[Axis], outputs: list[Axis]) -> None:
    """Each input has its own outputs, as many of them as any other."""
    several = _size(outputs) // max(1, _size(given))
    op.join([*given, *([Axis(several)] if several > 1 else [])], outputs)


def _join_groups(op: Operation, given: list[Axis], inputs: list[Axis], outputs: list[Axis], groups: int) -> None:
    """All groups keep as many inputs, and outputs, as any other: those at the same place in each."""
    op.join([Axis(groups), *inputs], given)
    op.join([Axis(groups), op.coupling.axis(_size(outputs) // groups)], outputs)


@_rule("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", *_BATCH_NORMS)
def _batch_norm(op: Operation) -> Layout:
    layout = op.layout("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if op.has(name):
            op.join(layout[1], op.layout(name)[0])
    if op.given.get("training", not op.has("running_mean")):
        op.keep(_all([layout[0], *layout[2:]]), "pass through a batch norm of other channels")
    return layout


@_rule("native_layer_norm", "_fused_rms_norm")
def _layer_norm(op: Operation) -> Layout:
    layout, count = op.layout("input"), len(op.given["normalized_shape"])
    op.keep(_all(layout[-count:]), "pass through a normalisation over channels")
    for name in ("weight", "bias"):
        if op.has(name):
            op.broadcast([layout[-count:], op.layout(name)], op.given["normalized_shape"])
    return layout


@_rule("native_group_norm")
def _group_norm(op: Operation) -> Layout:
    layout = op.layout("input")
    op.keep(layout[1], "pass through a normalisation over channels")
    for name in ("weight", "bias"):
        if op.has(name):
            op.join(layout[1], op.layout(name)[0])
    return layout


@_rule(*_ATTENTIONS)
def _attention(op: Operation) -> Layout:
    query, key, value = (op.layout(name) for name in ("query", "key", "value"))
    for one, other in zip(query[:-2] + query[-1:], key[:-2] + key[-1:], strict=True):
        op.join(one, other)
    for one, other in zip(key[:-1], value[:-1], strict=True):
        op.join(one, other)
    for name in ("attn_mask", "attn_bias"):
        if op.has(name):
            op.broadcast([[*query[:-1], key[-2]], op.layout(name)], [*map(_size, query[:-1]), _size(key[-2])])
    return [*query[:-1], value[-1]]


@_rule_for_several(*_POOLINGS)
def _pool(op: Operation) -> list[Layout]:
    """Pooling and resizing; the last dimensions are the map."""
    layout = op.layout("self" if "self" in op.given else "input")
    kept = len(layout) - _MAPS[next(end for end in _MAPS if end in op.name)]
    op.keep(_all(layout[kept:]), "are pooled")
    return [[*layout[:kept], *fixed(output.shape[kept:])] for output in op.outputs]
