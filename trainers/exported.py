"""Networks that `torch.export.save` wrote, read without running code of the file's, and made of layers again.

An exported program is a list of PyTorch's operations on tensors; it cannot be trained (its batch norms and dropouts are
those of the mode that it was exported in), and has no layers whose units could be cut. So operations with weights of
their own become the layers that they came from: what `read_exported` returns has a mode, features and units like any
network. The other operations stay as they are.

`torch.export.load` unpickles, and has sizes evaluated as Python; therefore the file is searched first, and only
tensors, JSON, and PyTorch's own operations are let through.
"""

import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export.pt2_archive import PT2ArchiveReader
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from spaces import BadInput
from spaces.errors import brief, shown

HOW = "torch.export.export(network.eval(), (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))"
"""How a network is exported for images in batches of any size."""
_aten = torch.ops.aten
_RECORDS = re.compile(
    r"models/model\.json|data/(weights|constants)/(model_(weights|constants)_config\.json|(weight|tensor)_\d+)"
    r"|data/sample_inputs/model\.pt|archive_(format|version)|byteorder|\.data/(version|serialization_id)|extra/.*"
)
"""Those of an archive that are read as tensors, JSON or text; the sample inputs are looked at besides."""
_OPERATIONS = re.compile(
    r"torch\.ops\.aten\.(?!(from_file|save)\b)\w+(\.\w+)?|math\.[a-z]\w*|torch\.sym_[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
"""All of PyTorch's own but those that open files, which a network could have any content written into."""
_SIZES = re.compile(
    r"(Symbol\('[a-z]+\d+'(, [a-z]+=(True|False))*\)|[a-z]\d+|Add|Mul|Pow|Integer|Rational|Max|Min|Mod|PythonMod"
    r"|FloorDiv|CleanDiv|CeilDiv|True|False|\d+|[-+*/(),<>= &|~])*"
)
"""Sizes that are computed: torch has sympy evaluate them, which runs any Python."""
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def read_exported(path: Path) -> nn.Module:
    """The network in a `.pt2` file, in eval mode, as a graph of ordinary layers.

    Args:
        path: as `torch.export.save` wrote it.

    Raises:
        BadInput: it is no such file, could run code as it is read, takes batches of one size only, or something other
            than a tensor of images, or puts out more than a tensor.
    """
    called = f"`task.teacher.network: {path}`"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{called} must be a file that can be read, but {error.strerror}") from None
    with _as_bad_input(called), _quiet():
        _check_content(content, called)
        from torch.export.pt2_archive._package import load_pt2  # `torch.export.load` falls back to what unpickles

        program = load_pt2(io.BytesIO(content)).exported_programs["model"]
        module = program.module(check_guards=False)
    _check_interface(module.graph, called)
    with _as_bad_input(called):
        return _in_layers(module).eval()


@contextmanager
def _as_bad_input(called: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # torch raises anything for a damaged file, and for one of another version
        reason = brief(error)
        raise BadInput(
            f"{called} must be a file that torch.export.save of this PyTorch ({torch.__version__}) or an older one "
            f"wrote, but {reason}"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, torch's warnings about a file are not shown: what is wrong with it is told in a line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _check_content(content: bytes, called: str) -> None:
    """Raise BadInput where reading the archive could run code."""

    def refuse(what: str) -> None:
        raise BadInput(
            f"{called} must be only tensors and PyTorch's own operations, but it could run code or open files "
            f"({what}), which Dux does not let it; export it anew with this PyTorch, or name its class in `network` "
            "and its state_dict in `weights`"
        )

    archive = PT2ArchiveReader(io.BytesIO(content))
    names = archive.get_file_names()
    for name in names:
        if not _RECORDS.fullmatch(name) or names.count(name) > 1:
            refuse(shown(name))
    for name in names:
        if name.endswith(".json"):
            for key, value in _pairs(json.loads(archive.read_string(name))):
                if what := _suspicious(key, value):
                    refuse(what)
        elif name.startswith("data/sample_inputs/"):
            inputs = archive.read_bytes(name)
            try:
                torch.load(io.BytesIO(inputs), map_location="cpu", weights_only=True)
            except Exception:
                refuse("its sample inputs")


def _pairs(value: object) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key, inner
            yield from _pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(inner)


def _suspicious(key: str, value: Any) -> str:
    """What about a pair of the archive's JSON could run code; empty if nothing."""
    if key in ("target", "as_operator") and not _OPERATIONS.fullmatch(str(value)):
        return shown(value)
    if key == "use_pickle" and value is not False:
        return "a pickled tensor"
    if key in ("expr_str", "as_expr") and isinstance(value, str) and not _SIZES.fullmatch(value):
        return shown(value)
    if key in ("in_spec", "out_spec") and isinstance(value, str):
        kinds = {inner for name, inner in _pairs(json.loads(value)) if name == "type"}
        return shown(sorted(map(str, kinds - _CONTAINERS))) if kinds - _CONTAINERS else ""
    return ""


def _check_interface(graph: Graph, called: str) -> None:
    """Raise BadInput unless it takes images in batches of any size, and puts out a tensor."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for node in inputs]
    if len(values) != 1 or not isinstance(values[0], torch.Tensor) or values[0].dim() != 4:
        kinds = ", ".join(f"{tuple(v.shape)}" if isinstance(v, torch.Tensor) else type(v).__name__ for v in values)
        raise BadInput(f"{called} must take one tensor of images (B, C, H, W), but takes {kinds or 'none'}")
    batch = values[0].shape[0]
    if isinstance(batch, int):
        images = "1 image" if batch == 1 else f"{batch} images"
        raise BadInput(
            f"{called} must take batches of any size, but was exported for exactly {images} at a time; export it with "
            f"`{HOW}`, of 2 images or more"
        )
    outputs = _outputs(graph)
    if len(outputs) != 1:
        raise BadInput(f"{called} must put out one tensor of logits, but puts out {len(outputs)}; export only these")


def _outputs(graph: Graph) -> list[Node]:
    return list(next(node for node in reversed(graph.nodes) if node.op == "output").all_input_nodes)


def _in_layers(module: GraphModule) -> GraphModule:
    """The same network, in which operations with weights of their own are calls of layers."""
    graph = module.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (_outputs(graph)[0],)
    graph.set_codegen(CodeGen())
    for target, lift in _LIFTS.items():
        _replace(module, target, lift)
    graph.eliminate_dead_code()
    return GraphModule(module, graph)


def _replace(module: GraphModule, target: object, lift: "Lift") -> None:
    """Turn the calls of an operation into calls of layers, where nothing else needs their weights."""
    graph = module.graph
    for own, nodes in _calls(graph, target).items():
        given = _given(nodes[0])
        if any(_constants(_given(node)) != _constants(given) for node in nodes):
            continue
        stem = _name(own) if isinstance(own, str) else nodes[0].name
        name = stem if str(own).endswith(".weight") else _free(module, stem)
        inside = [node for node in graph.nodes if node.op == "get_attr" and _is_of(str(node.target), own, stem)]
        counting = _counting(inside) if lift is _batch_norm else []
        if any(user not in (*nodes, *counting) for node in inside for user in node.users):
            continue
        tensors = {
            key: _attribute(module, str(value.target))
            for key, value in given.items()
            if isinstance(value, Node) and value.op == "get_attr"
        }
        if (layer := lift(given, tensors)) is None:
            continue
        for node in counting[::-1]:
            graph.erase_node(node)
        module.add_submodule(name, layer)
        for node in nodes:
            with graph.inserting_before(node):
                call = graph.call_module(name, (_given(node)["input" if "input" in given else "self"],))
            call.meta = dict(node.meta)
            node.replace_all_uses_with(call)
            graph.erase_node(node)


def _calls(graph: Graph, target: object) -> dict[object, list[Node]]:
    """The calls of an operation by the name of their weight, which is one of the network's; each alone if it has none.

    Calls with a weight that is computed are left out.
    """
    calls: dict[object, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target is target:
            given = _given(node)
            weight = given.get("weight")
            if "weight" not in given:
                calls[node] = [node]
            elif isinstance(weight, Node) and weight.op == "get_attr":
                calls.setdefault(str(weight.target), []).append(node)
    return calls


def _free(module: nn.Module, name: str) -> str:
    """A name that no module or tensor has: `name`, or one like it."""
    owner, _, key = name.rpartition(".")
    return name if not hasattr(module.get_submodule(owner), key) else _free(module, f"{name}_")


Lift = Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], nn.Module | None]
"""The layer that an operation with these arguments, and these tensors among them, came from; None where it is none."""


def _given(node: Node) -> dict[str, Any]:
    """The arguments of a call by their names in the operation's schema."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    return {
        argument.name: node.args[place]
        if place < len(node.args)
        else node.kwargs.get(argument.name, argument.default_value)
        for place, argument in enumerate(arguments)
    }


def _constants(given: Mapping[str, Any]) -> dict[str, object]:
    """All arguments but the input; tensors by their names."""
    return {
        key: f"%{value.target}" if isinstance(value, Node) else value for key, value in given.items() if key != "input"
    }


def _name(weight: str) -> str:
    """What the layer of a weight is called: `stem.0` of `stem.0.weight`, `attn.in_proj` of `attn.in_proj_weight`."""
    return weight.removesuffix("weight").rstrip("._") or "layer"


def _is_of(name: str, weight: object, layer: str) -> bool:
    """Whether a tensor belongs to the layer of a weight."""
    if isinstance(weight, str) and weight.endswith(".weight"):
        return name.startswith(f"{layer}.")
    return name in (weight, f"{layer}_bias")


def _counting(inside: list[Node]) -> list[Node]:
    """The nodes that count a batch norm's batches, which its layer does itself; in the order of the graph."""
    nodes: list[Node] = []
    pending = [node for node in inside if str(node.target).endswith(".num_batches_tracked")]
    while pending:
        for user in pending.pop().users:
            if user.op == "output":
                return []
            if user not in nodes:
                nodes.append(user)
                pending.append(user)
    return nodes


def _attribute(module: nn.Module, name: str) -> torch.Tensor:
    owner, _, key = name.rpartition(".")
    tensor: torch.Tensor = getattr(module.get_submodule(owner), key)
    return tensor


def _filled(layer: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The layer with these tensors, themselves and not copies."""
    for key, tensor in tensors.items():
        setattr(layer, key, nn.Parameter(tensor.detach()) if key in ("weight", "bias") else tensor.detach())
    return layer


def _convolution(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module | None:
    if (given["bias"] is None) != ("bias" not in tensors):
        return None
    outputs, inputs, height, width = tensors["weight"].shape
    layer = nn.Conv2d(
        inputs * given["groups"],
        outputs,
        (height, width),
        _pair(given["stride"]),
        given["padding"] if isinstance(given["padding"], str) else _pair(given["padding"]),
        _pair(given["dilation"]),
        given["groups"],
        given["bias"] is not None,
        device="meta",
    )
    return _filled(layer, tensors)


def _pair(numbers: Any) -> tuple[int, int]:
    several = [*numbers] if isinstance(numbers, list | tuple) else [numbers]
    return several[0], several[-1]


def _linear(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module | None:
    if (given["bias"] is None) != ("bias" not in tensors):
        return None
    outputs, inputs = tensors["weight"].shape
    return _filled(nn.Linear(inputs, outputs, given["bias"] is not None, device="meta"), tensors)


def _batch_norm(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module | None:
    if {"weight", "bias", "running_mean", "running_var"} - tensors.keys():
        return None  # without weights, or with the statistics of the batch: an operation like any other
    kind = nn.BatchNorm2d if given["input"].meta["val"].dim() == 4 else nn.BatchNorm1d
    momentum = given["momentum"] or None  # of an average over all batches, it is 0 in eval mode
    layer = kind(len(tensors["weight"]), given["eps"], momentum)
    return _filled(layer, tensors)


def _layer_norm(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module | None:
    if (given["bias"] is None) != ("bias" not in tensors):
        return None
    shape = [*given["normalized_shape"]]
    return _filled(nn.LayerNorm(shape, given["eps"], bias=given["bias"] is not None, device="meta"), tensors)


def _relu(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module | None:
    return nn.ReLU()


def _relu_in_place(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module | None:
    """None where another operation could see what it changes: one after it, or one of a tensor with the same memory."""
    value: Node = given["self"]
    base: Any = value.args[0] if value.target is _aten.add_.Tensor else value
    is_new = base.op == "call_module" or base.target in _NEW
    return nn.ReLU() if is_new and len(value.users) == len(base.users) == 1 else None


_NEW = (_aten.add.Tensor, _aten.conv2d.default, _aten.batch_norm.default, _aten.linear.default, _aten.cat.default)
"""Operations whose outputs have memory of their own."""


def _dropout(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module | None:
    return nn.Dropout(given["p"])


_LIFTS: Mapping[object, Lift] = {
    _aten.conv2d.default: _convolution,
    _aten.conv2d.padding: _convolution,
    _aten.linear.default: _linear,
    _aten.batch_norm.default: _batch_norm,
    _aten.layer_norm.default: _layer_norm,
    _aten.relu.default: _relu,
    _aten.relu_.default: _relu_in_place,
    _aten.dropout.default: _dropout,
}
