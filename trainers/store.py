"""Networks as files, written and read back without pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spaces import Student
from trainers.families import Network, build
from trainers.files import write_whole

Model = TypeVar("Model", bound=nn.Module)


def weights_bytes(network: nn.Module) -> bytes:
    """The network's tensors as a safetensors file; one that the network uses in several places is there once."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(network).items()}
    content: bytes = safetensors.torch.save(tensors)
    return content


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """What `network.state_dict()` holds, each tensor under the first of its names only."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = network.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors.items() if first.setdefault(id(tensor), name) == name}


def network_description(student: Student, image_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """What `load_network` needs besides the tensors: JSON."""
    return {
        "format": 1,
        "family": student.family,
        "depth": student.depth,
        "width": student.width,
        "members": student.members,
        "image_shape": list(image_shape),
        "classes": classes,
    }


def load_network(description: Mapping[str, Any], weights: Path) -> Network:
    """The network as it was saved, cut channels and all, in eval mode.

    Raises:
        ValueError: the description is of a newer format, or the tensors are not those of the network it describes.
    """
    if description.get("format") != 1:
        raise ValueError(
            f"format of a student's description must be 1, but got {description.get('format')!r}; update Dux"
        )
    student = Student(**{key: description[key] for key in ("family", "depth", "width", "members")})
    c, h, w = description["image_shape"]
    network = build(student, (c, h, w), description["classes"], generator=torch.Generator().manual_seed(0))
    return filled(network, safetensors.torch.load_file(weights)).eval()


def filled(network: Model, tensors: Mapping[str, Tensor]) -> Model:
    """`network` with its layers resized to the shapes of `tensors`, and these in them.

    Pruning changes the channel counts of layers and nothing else of a network: what makes it anew and the shapes of its
    tensors say all of it. For a network of one's own that is its class:

        network = filled(MyNetwork(), safetensors.torch.load_file("student.safetensors")).eval()

    Args:
        network: freshly made, not yet cut.
        tensors: by the names of `network.state_dict()`, as `weights_bytes` writes them.

    Raises:
        ValueError: the tensors have other names than the network's.
    """
    if unlike := sorted(_tensors(network).keys() ^ tensors.keys()):
        raise ValueError(
            f"weights must have the names of the network they are for, but differ in {', '.join(unlike[:3])}; "
            "the description and the weights belong to different networks"
        )
    new: dict[int, tuple[Tensor, Tensor]] = {}  # the old one beside it, so that its id stays its own
    for name, module in network.named_modules():
        for key, old in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            found = tensors.get(f"{name}.{key}" if name else key)
            if found is not None:
                made = nn.Parameter(found.clone()) if isinstance(old, nn.Parameter) else found.clone()
                new[id(old)] = (old, made)
            if id(old) in new:  # else a buffer that is not kept
                setattr(module, key, new[id(old)][1])
        _resize(module)
    return network


def _resize(module: nn.Module) -> None:
    """Have a layer's sizes say what its tensors are."""
    if isinstance(module, nn.Conv2d):
        outputs, inputs = module.weight.shape[:2]
        if 1 < module.groups == module.in_channels == module.out_channels:  # depthwise: a group is a channel
            module.groups = outputs
        module.out_channels, module.in_channels = outputs, inputs * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm):
        sizes = [t.numel() for t in (module.weight, module.running_mean) if t is not None]
        module.num_features = sizes[0] if sizes else module.num_features
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def save_student(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a trial's files; the result comes last, so that a folder with a result is whole."""
    for name in sorted(files, key=lambda name: name == "result.json"):
        write_whole(folder / name, files[name])


def load_student(folder: Path) -> Network:
    """The student of a trial's folder, in eval mode."""
    return load_network(json.loads((folder / "student.json").read_text()), folder / "student.safetensors")
