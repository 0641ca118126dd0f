"""Networks trained outside Dux: builds them from the name in a study file, and reads their weights."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spaces import BadInput
from spaces.errors import brief, known, shown
from spaces.own import own_object
from trainers.families import OwnNetwork
from trainers.seeding import seeded
from trainers.teacher_spec import is_exported, is_registered

NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""Keys under which training scripts store a state dict in what they save."""
_DEEPEST = 4
"""How far down a state dict is looked for."""
_SHOWN = 3
_PICKLES = (b"PK", b"\x80")
"""How files of `torch.save` begin: those of today, and those from before PyTorch 1.6."""
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""torchvision's networks with outputs that only training uses, and the modules that make these: they are left out."""


class Normalization(NamedTuple):
    """Mean and standard deviation for normalising a network's images, each (C,)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def named_network(reference: str, arguments: Mapping[str, Any], classes: int, *, downloaded: bool = False) -> nn.Module:
    """The network that a study file names.

    Args:
        reference: `torchvision:NAME`, `timm:NAME`, `package.module:function` (or a class), or a `.pt2` file.
        arguments: its arguments; for the two libraries `num_classes` is added if it is missing.
        classes: of the data.
        downloaded: whether to download the library's own trained weights into it.

    Raises:
        BadInput: there is no such network, or it cannot be built with these arguments.
    """
    if is_exported(reference):
        from trainers.exported import read_exported  # torch.export takes a second, which others need not wait for

        return read_exported(Path(reference))
    library, _, name = reference.partition(":")
    called = f"`task.teacher.network: {reference}`"
    if is_registered(reference):
        raise BadInput(f"{called} must be fetched from MLflow first, which `dux` does; name the file")
    if library not in _LIBRARIES:
        function = own_object(reference, "task.teacher.network")
        if not callable(function):
            raise BadInput(
                f"{called} must be a class or a function that returns a torch.nn.Module, but is {shown(function)}"
            )
        return _made(function, arguments, called)
    if not downloaded:
        arguments = {"num_classes": classes, **arguments}
    return _LIBRARIES[library](name, arguments, called, downloaded)


def own_network_of(
    reference: str,
    arguments: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    classes: int,
    taps: Sequence[str] | None,
    reordered: bool,
) -> OwnNetwork:
    """The network that a study file names, with Dux's interface; only its shapes are right until it is filled.

    Args:
        reference, arguments: as in `named_network`.
        image_shape: (C, H, W).
        classes: of the data.
        taps, reordered: as in `OwnNetwork`.

    Raises:
        BadInput: there is no such network, or it is not for such images and classes.
    """
    with torch.device("cpu"), seeded(torch.Generator().manual_seed(0)):
        network = named_network(reference, arguments, classes)
    called = f"`task.teacher.network: {reference}`"
    return OwnNetwork(network, image_shape, classes, called=called, taps=taps, reordered=reordered)


def _made(function: Any, arguments: Mapping[str, Any], called: str) -> nn.Module:
    try:
        network = function(**copy.deepcopy(dict(arguments)))  # a constructor may change what it is given
    except (BadInput, KeyboardInterrupt):
        raise
    except OSError as error:
        raise BadInput(f"{called} must exist or be downloadable, but {brief(error)}") from None
    except BaseException as error:  # it may be a script that exits
        raise BadInput(
            f"{called} must accept `arguments: {shown(dict(arguments))}`, but {brief(error)}; try it in Python"
        ) from None
    if not isinstance(network, nn.Module):
        raise BadInput(f"{called} must be a torch.nn.Module, but is {shown(network)}")
    return network


def _torchvision(name: str, arguments: Mapping[str, Any], called: str, downloaded: bool) -> nn.Module:
    from torchvision import models  # here, since it takes seconds to import

    names = models.list_models(module=models)
    if name not in names:
        raise BadInput(f"{called} must be a torchvision classifier; {known(names, name)}")
    given: dict[str, Any] = {"weights": "DEFAULT" if downloaded else None}
    if name in _AUXILIARY:
        given |= {} if downloaded else {"aux_logits": False, "init_weights": True}
        if downloaded and not arguments.get("transform_input"):
            raise BadInput(
                f"{called} must have `arguments: {{transform_input: true}}` for torchvision's own weights, which were "
                "trained with it; add it"
            )
    network = _made(lambda **own: models.get_model(name, **{**given, **own}), arguments, called)
    if name in _AUXILIARY and "aux_logits" not in arguments:
        for part, value in (("aux_logits", False), *((part, None) for part in _AUXILIARY[name])):
            setattr(network, part, value)
    return network


def _timm(name: str, arguments: Mapping[str, Any], called: str, downloaded: bool) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise BadInput(f"{called} needs timm, which is not installed; `pip install timm`") from None
    if not timm.is_model(name):
        raise BadInput(f"{called} must be a timm network; {known(timm.list_models(), name)}")
    return _made(lambda **own: timm.create_model(name, pretrained=downloaded, **own), arguments, called)


_LIBRARIES = {"torchvision": _torchvision, "timm": _timm}


def usual_normalization(reference: str, network: nn.Module) -> Normalization | None:
    """The normalisation with which a library's own weights were trained; None for a user's own network."""
    library, _, name = reference.partition(":")
    if library == "torchvision":
        from torchvision import models

        transforms = models.get_model_weights(name).DEFAULT.transforms()
        return Normalization(tuple(transforms.mean), tuple(transforms.std))
    if library == "timm":
        configuration: Mapping[str, Any] = getattr(network, "pretrained_cfg", {})
        return Normalization(tuple(configuration["mean"]), tuple(configuration["std"]))
    return None


class Weights(NamedTuple):
    """A state dict, and how it was found in its file."""

    tensors: dict[str, Tensor]
    note: str
    """What the owner may want to know; empty if nothing."""


def read_weights(path: Path) -> Weights:
    """The state dict in a file; no code in it is run.

    Args:
        path: a safetensors file, or a file written by `torch.save`.

    Raises:
        BadInput: it is missing, contains more than weights, or no weights.
    """
    called = f"`task.teacher.weights: {path}`"
    if not path.is_file():
        raise BadInput(f"`task.teacher.weights` must be a file, but {path} is not")
    try:
        with path.open("rb") as file:
            start = file.read(9)
            file.seek(0)
            if start[8:] == b"{":  # safetensors, whatever its name: the size of a header, and the header
                return Weights(safetensors.torch.load_file(path), "")
            content = torch.load(file, map_location="cpu", weights_only=True)  # which would go by a path's name
    except UnpicklingError:
        if not start.startswith(_PICKLES):
            raise BadInput(f"{called} must be a safetensors or torch.save file, but is neither") from None
        raise BadInput(
            f"{called} must contain only weights, but reading it would run code, which Dux does not do; save "
            "`network.state_dict()` with torch.save or safetensors"
        ) from None
    except Exception as error:  # torch.load raises anything for a damaged file
        raise BadInput(f"{called} must be a safetensors or torch.save file, but {brief(error)}") from None
    return _state_dict(content, called)


def _state_dict(content: object, called: str, depth: int = 0) -> Weights:
    if isinstance(content, Mapping):
        if _is_state(content):
            return Weights({str(name): tensor for name, tensor in content.items()}, "")
        for key in NESTED if depth < _DEEPEST else ():
            if isinstance(content.get(key), Mapping):
                with suppress(BadInput):
                    nested = _state_dict(content[key], called, depth + 1)
                    others = [shown(name) for name, value in content.items() if name != key and _is_state(value)]
                    unread = f", and {', '.join(others[:_SHOWN])} was not read" if others else ""
                    return Weights(nested.tensors, f"its weights were found under `{key}`{unread}")
        holds = f"contains {shown(sorted(map(str, content)))}"
    else:
        holds = f"contains {type(content).__name__}"
    raise BadInput(f"{called} must contain a state dict (names and tensors), but {holds}; save `network.state_dict()`")


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(t, Tensor) for t in value.values())


def load_weights(network: nn.Module, weights: Weights, called: str) -> list[str]:
    """Fill a network with weights, whose names may all have an additional or a missing prefix; returns notes on this.

    Args:
        network: of the same class as the one that was saved.
        weights: as they were read.
        called: what the weights are called in errors.

    Raises:
        BadInput: they belong to another network; the message names the differences.
    """
    own = network.state_dict()
    odd = [name for name, t in weights.tensors.items() if t.layout is not torch.strided or t.is_quantized or t.is_meta]
    if odd or any(is_lazy(tensor) for tensor in own.values()):
        what = f"`{odd[0]}` is not" if odd else f"{type(network).__name__} has some that are made when it first runs"
        raise BadInput(f"{called} must be ordinary tensors of a network that has all of its own, but {what}")
    tensors, notes = dict(weights.tensors), [weights.note] if weights.note else []
    if "n_averaged" not in own and tensors.pop("n_averaged", None) is not None:
        notes.append("`n_averaged`, how often a torch.optim.swa_utils.AveragedModel averaged, was left out")
    for longer, shorter, said in ((tensors, own, "removed from"), (own, tensors, "added to")):
        prefix = _prefix(longer, shorter)
        if prefix:
            notes.append(f"the prefix `{prefix}` was {said} the names of its weights")
            if longer is tensors:
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            else:
                tensors = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
            break
    auxiliary = _auxiliary(network, tensors)
    if auxiliary:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in auxiliary}
        notes.append("the weights of its auxiliary outputs, which only training uses, were left out")
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # missing in old files
    problems = [
        *_listed("it lacks", sorted(own.keys() - tensors.keys() - counters)),
        *_listed("the network lacks", sorted(tensors.keys() - own.keys())),
        *_listed("shapes differ:", list(_unlike(own, tensors))),
        *_listed("of another kind:", [name for name, t in tensors.items() if name in own and not _alike(t, own[name])]),
        *_listed("not finite", [name for name, _ in network.named_parameters() if not _finite(tensors.get(name))]),
    ]
    if problems:
        raise BadInput(
            f"{called} must belong to {type(network).__name__} as built by `network` and `arguments`, but "
            f"{'; '.join(problems)}"
        )
    network.load_state_dict({**{name: own[name] for name in counters}, **tensors})
    return notes


def _auxiliary(network: nn.Module, names: Iterable[str]) -> set[str]:
    """Those of the names that belong to auxiliary outputs, of a network of torchvision's that was built without."""
    parts = [part for several in _AUXILIARY.values() for part in several if getattr(network, part, network) is None]
    return {name for name in names if name.partition(".")[0] in parts}


def _prefix(longer: Mapping[str, Tensor], shorter: Mapping[str, Tensor]) -> str:
    """The prefix of all names of `longer` that those of `shorter` lack; empty if no single prefix explains them."""
    if not longer or not shorter or longer.keys() & shorter.keys():
        return ""
    for name in shorter:
        for other in longer:
            if other.endswith(f".{name}"):
                prefix = other.removesuffix(name)
                if all(key.startswith(prefix) for key in longer):
                    return prefix
    return ""


def _unlike(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in tensors.items():
        if name in own and own[name].shape != tensor.shape:
            yield f"{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"


def _listed(what: str, names: list[str]) -> Iterator[str]:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield f"{what} {', '.join(itertools.islice(names, _SHOWN))}{more}"


def _alike(tensor: Tensor, own: Tensor) -> bool:
    """Whether both hold real numbers, whole numbers or truth values."""
    return tensor.is_floating_point() == own.is_floating_point() and tensor.is_complex() == own.is_complex()


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(torch.isfinite(tensor).all())
