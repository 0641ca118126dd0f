"""Files that outlive a process: written whole or not at all, read back without pickle."""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from spaces import Student
from trainers.families import Network, build


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a kill at any moment, finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def digest(*values: object) -> str:
    """A short name for values: 16 hex digits of SHA-256 over their JSON, or over their bytes as they are."""
    sha = hashlib.sha256()
    for value in values:
        sha.update(value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode())
    return sha.hexdigest()[:16]


def weights_bytes(network: nn.Module) -> bytes:
    """The network's tensors as a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content: bytes = safetensors.torch.save(tensors)
    return content


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


def filled(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """`network` with its layers resized to the shapes of `tensors`, and these in them.

    Pruning changes the channel counts of layers and nothing else of a network: its family, depth and the shapes of its
    tensors say all of it.

    Raises:
        ValueError: the tensors have other names than the network's.
    """
    if unlike := sorted(network.state_dict().keys() ^ tensors.keys()):
        raise ValueError(
            f"weights must have the names of the network they are for, but differ in {', '.join(unlike[:3])}; "
            "the description and the weights belong to different networks"
        )
    for name, module in network.named_modules():
        weight = tensors.get(f"{name}.weight", torch.zeros(()))
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = weight.shape[0]
        for key, old in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            new = tensors[f"{name}.{key}"]
            setattr(module, key, nn.Parameter(new.clone()) if isinstance(old, nn.Parameter) else new.clone())
    network.load_state_dict(dict(tensors))
    return network


def save_student(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a trial's files; the result comes last, so that a folder with a result is whole."""
    for name in sorted(files, key=lambda name: name == "result.json"):
        write_whole(folder / name, files[name])


def load_student(folder: Path) -> Network:
    """The student of a trial's folder, in eval mode."""
    return load_network(json.loads((folder / "student.json").read_text()), folder / "student.safetensors")
