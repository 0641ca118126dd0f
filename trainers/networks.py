"""Networks that somebody else has trained: made by the name that a study file gives them, and their weights read."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torchvision.models
from safetensors import SafetensorError
from torch import Tensor, nn

from spaces import BadInput
from spaces.errors import known, shown
from spaces.own import own_object
from trainers.families import OwnNetwork
from trainers.seeding import seeded

NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""Under these keys, training scripts put a state dict into what they save."""
_SHOWN = 3


class Normalization(NamedTuple):
    """What a network's images are normalised with, each (C,)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def named_network(reference: str, arguments: Mapping[str, Any], classes: int, *, downloaded: bool = False) -> nn.Module:
    """The network that a study file names.

    Args:
        reference: `torchvision:NAME`, `timm:NAME`, or `package.module:function` (or a class).
        arguments: what it is called with; `num_classes` is added for the two libraries where it is left out.
        classes: of the data.
        downloaded: whether the library's own trained weights are fetched into it.

    Raises:
        BadInput: there is no such network, or it cannot be made so.
    """
    library, _, name = reference.partition(":")
    called = f"`task.teacher.network: {reference}`"
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
        reference, arguments: as `named_network` takes them.
        image_shape: (C, H, W).
        classes: of the data.
        taps, reordered: as `OwnNetwork` takes them.

    Raises:
        BadInput: there is no such network, or it is not for such images and classes.
    """
    with torch.device("cpu"), seeded(torch.Generator().manual_seed(0)):
        network = named_network(reference, arguments, classes)
    called = f"`task.teacher.network: {reference}`"
    return OwnNetwork(network, image_shape, classes, called=called, taps=taps, reordered=reordered)


def _made(function: Any, arguments: Mapping[str, Any], called: str) -> nn.Module:
    try:
        network = function(**arguments)
    except (BadInput, KeyboardInterrupt):
        raise
    except OSError as error:
        raise BadInput(f"{called} must be there, or be fetched from the internet, but {_brief(error)}") from None
    except BaseException as error:  # it may be a script that exits
        raise BadInput(
            f"{called} must be made by `arguments: {shown(dict(arguments))}`, but {_brief(error)}; try it in Python"
        ) from None
    if not isinstance(network, nn.Module):
        raise BadInput(f"{called} must be a torch.nn.Module, but is {shown(network)}")
    return network


def _torchvision(name: str, arguments: Mapping[str, Any], called: str, downloaded: bool) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise BadInput(f"{called} must be a classifier of torchvision's; {known(names, name)}")
    weights = {"weights": "DEFAULT" if downloaded else None}
    return _made(lambda **own: torchvision.models.get_model(name, **weights, **own), arguments, called)


def _timm(name: str, arguments: Mapping[str, Any], called: str, downloaded: bool) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise BadInput(f"{called} must have timm, which is not installed; `pip install timm`") from None
    if not timm.is_model(name):
        raise BadInput(f"{called} must be a network of timm's; {known(timm.list_models(), name)}")
    return _made(lambda **own: timm.create_model(name, pretrained=downloaded, **own), arguments, called)


_LIBRARIES = {"torchvision": _torchvision, "timm": _timm}


def usual_normalization(reference: str, network: nn.Module) -> Normalization | None:
    """What a library's own weights of a network were trained with; None of a network of somebody's own."""
    library, _, name = reference.partition(":")
    if library == "torchvision":
        transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        return Normalization(tuple(transforms.mean), tuple(transforms.std))
    if library == "timm":
        configuration: Mapping[str, Any] = getattr(network, "pretrained_cfg", {})
        return Normalization(tuple(configuration["mean"]), tuple(configuration["std"]))
    return None


class Weights(NamedTuple):
    """A state dict, and how it was found in its file."""

    tensors: dict[str, Tensor]
    note: str
    """What the owner may want to know, empty where that is nothing."""


def read_weights(path: Path) -> Weights:
    """The state dict in a file; no code in it is run.

    Args:
        path: a safetensors file, or what `torch.save` wrote.

    Raises:
        BadInput: it is not there, holds more than weights, or none.
    """
    called = f"`task.teacher.weights: {path}`"
    if not path.is_file():
        raise BadInput(f"`task.teacher.weights` must be a file, but {path} is none")
    try:
        if path.suffix == ".safetensors":
            return Weights(safetensors.torch.load_file(path), "")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise BadInput(
            f"{called} must hold weights alone, but needs code to be read, which Dux does not run; save "
            "`network.state_dict()` by torch.save or safetensors"
        ) from None
    except (SafetensorError, RuntimeError, ValueError, KeyError, EOFError, OSError) as error:
        raise BadInput(f"{called} must be a file of safetensors or of torch.save, but {_brief(error)}") from None
    return _state_dict(content, called)


def _state_dict(content: object, called: str) -> Weights:
    if isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return Weights({str(name): tensor for name, tensor in content.items()}, "")
        for key in NESTED:
            if isinstance(content.get(key), Mapping):
                nested = _state_dict(content[key], called)
                return Weights(nested.tensors, f"its weights were found under `{key}`")
        holds = f"holds {shown(sorted(map(str, content)))}"
    else:
        holds = f"holds {type(content).__name__}"
    raise BadInput(f"{called} must hold a state dict (names and tensors), but {holds}; save `network.state_dict()`")


def load_weights(network: nn.Module, weights: Weights, called: str) -> list[str]:
    """Fill a network with weights whose names may all have one prefix more, or less; returns what was done, in notes.

    Args:
        network: of the same class as the one that was saved.
        weights: as they were read.
        called: what the weights are called in errors.

    Raises:
        BadInput: they are of another network; names which differ.
    """
    own = network.state_dict()
    tensors, notes = weights.tensors, [weights.note] if weights.note else []
    for longer, shorter, said in ((tensors, own, "taken off"), (own, tensors, "put before")):
        prefix = _prefix(longer, shorter)
        if prefix:
            notes.append(f"the prefix `{prefix}` was {said} the names of its weights")
            if longer is tensors:
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            else:
                tensors = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
            break
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # old files have none
    problems = [
        *_listed("it lacks", sorted(own.keys() - tensors.keys() - counters)),
        *_listed("it has, and the network has not,", sorted(tensors.keys() - own.keys())),
        *_listed("of another shape", list(_unlike(own, tensors))),
        *_listed("not finite", [name for name, t in tensors.items() if t.is_floating_point() and not _finite(t)]),
    ]
    if problems:
        raise BadInput(
            f"{called} must be of {type(network).__name__} as `network` and `arguments` make it, but "
            f"{'; '.join(problems)}"
        )
    network.load_state_dict({**{name: own[name] for name in counters}, **tensors})
    return notes


def _prefix(longer: Mapping[str, Tensor], shorter: Mapping[str, Tensor]) -> str:
    """What all names of `longer` begin with and those of `shorter` lack; empty where no one prefix explains them."""
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
            yield f"{name} {tuple(tensor.shape)} and not {tuple(own[name].shape)}"


def _listed(what: str, names: list[str]) -> Iterator[str]:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield f"{what} {', '.join(itertools.islice(names, _SHOWN))}{more}"


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _brief(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
