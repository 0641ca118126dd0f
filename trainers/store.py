"""Networks as files, written and read back without pickle; what is read is checked first."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import safetensors.torch
import torch
from pydantic import Field, JsonValue, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError
from torch import Tensor, nn

from spaces import BadInput, Student
from spaces.errors import one_line, shown
from spaces.recipe import Part
from trainers.depths import shape_of
from trainers.families import Network, outline
from trainers.files import Damaged, read_whole, write_whole
from trainers.networks import own_network_of
from trainers.spectral.dependencies import counts_in
from trainers.spectral.flow import counts_heads
from trainers.spectral.layers import open_attention
from trainers.spectral.removal import resize
from trainers.spectral.units import Count
from trainers.teacher_spec import TeacherSpec

Model = TypeVar("Model", bound=nn.Module)


def weights_bytes(network: nn.Module) -> bytes:
    """The network's tensors as a safetensors file; one that the network uses in several places is there once."""
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors_of(network).items()
    }
    content: bytes = safetensors.torch.save(tensors)
    return content


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """What `network.state_dict()` holds, each tensor under the first of its names only."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = network.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors.items() if first.setdefault(id(tensor), name) == name}


def _untie(network: nn.Module, names: Iterable[str]) -> None:
    """Part tensors that the network uses in several places, where a file has one for each: spectral layers do."""
    for name in (network.state_dict().keys() - tensors_of(network).keys()) & {*names}:
        owner, _, key = name.rpartition(".")
        module = network.get_submodule(owner)
        tied = getattr(module, key)
        own = tied.detach().clone()
        setattr(module, key, nn.Parameter(own) if isinstance(tied, nn.Parameter) else own)


_USUAL = TeacherSpec()


def network_description(
    student: Student,
    image_shape: tuple[int, int, int],
    classes: int,
    teacher: TeacherSpec = _USUAL,
    *,
    reordered: bool = False,
) -> dict[str, Any]:
    """What `load_network` needs besides the tensors: JSON.

    Args:
        student: whose network it is.
        image_shape: (C, H, W).
        classes: number of logits.
        teacher: of one member: what a student is that starts as the teacher.
        reordered: whether the teacher's classes may come in another order than the data's.
    """
    shape = {"image_shape": list(image_shape), "classes": classes}
    if student.start == "teacher":
        if teacher.network is not None:
            own = {"network": teacher.network, "arguments": teacher.arguments, "taps": teacher.taps}
            return {"format": 2, **own, "reordered": reordered, **shape}
        student = teacher.student
    family, depth = shape_of(student)
    return {
        "format": 1,
        "family": family,
        "depth": depth,
        "width": student.width,
        "members": student.members,
        **shape,
    }


class _Description(Part, ABC):
    """What `network_description` writes, as far as it can be of a network at all."""

    format: int
    image_shape: list[Annotated[int, Field(ge=1, le=2**16)]] = Field(min_length=3, max_length=3)
    classes: int = Field(ge=1, le=2**24)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.image_shape
        return c, h, w

    @property
    @abstractmethod
    def is_own(self) -> bool:
        """Whether code of the user's makes the network."""

    @abstractmethod
    def made(self, tensors: int) -> Network:
        """The network before it was cut, of which the shapes are right; `tensors`: how many it has at most."""


class _OfFamily(_Description):
    """Of a network of one of the families."""

    family: str
    depth: int = Field(ge=0)
    width: float = Field(gt=0.0, le=64.0)
    members: int = Field(ge=1, le=64)

    @property
    def is_own(self) -> bool:
        """Whether code of the user's makes the network."""
        return ":" in self.family

    def made(self, tensors: int) -> Network:
        """The network's shapes."""
        if self.depth > tensors:  # a layer has a tensor at least
            raise Damaged(f"must have a tensor for each of {self.depth} layers, but has {tensors}")
        student = Student(family=self.family, depth=self.depth or 2, width=self.width, members=self.members)
        return outline(student, self.shape, self.classes)


class _OfNetwork(_Description):
    """Of a network of a library's, or of the user's own."""

    network: str
    arguments: dict[str, JsonValue]
    taps: list[str] | None
    reordered: bool

    @property
    def is_own(self) -> bool:
        """Whether code of the user's makes the network; a library may be gone as well."""
        return True

    def made(self, tensors: int) -> Network:
        """The network, made for real: code that somebody else wrote may compute constants."""
        return own_network_of(self.network, self.arguments, self.shape, self.classes, self.taps, self.reordered)


_FORMATS: Mapping[int, type[_Description]] = {1: _OfFamily, 2: _OfNetwork}


def load_network(description: Mapping[str, Any], weights: Path) -> Network:
    """The network as it was saved, cut channels and all, in eval mode.

    Of one that a function of the user's made, the function is imported and called.

    Raises:
        FileNotFoundError: there are no weights.
        Damaged: the description is of a newer format or of no network, or the tensors are not those of the network that
            it describes.
    """
    described = _described(description)
    return _network(described, read_whole(weights), weights.name)


def _described(description: object) -> _Description:
    version = description.get("format") if isinstance(description, Mapping) else None
    if not isinstance(version, int) or version not in _FORMATS:
        numbers = " or ".join(map(str, _FORMATS))
        raise Damaged(f"format of a student's description must be {numbers}, but got {shown(version)}; update Dux")
    kind = _FORMATS[version]
    try:
        return kind.model_validate(description)
    except ValidationError as error:
        raise Damaged(f"description of a student: {one_line(error, kind)}") from None


def _network(d: _Description, weights: bytes, name: str) -> Network:
    """What `load_network` returns. Nothing that the description asks for is made before the tensors are found to be
    of such a network: those are as large as they are."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise Damaged(f"{name} must hold tensors, but cannot be read as such ({_line(error)})") from None
    c, h, w = d.shape
    try:
        network = d.made(len(tensors))
    except ValidationError as error:
        raise Damaged(f"description of a student: {one_line(error, Student)}") from None
    except Damaged as error:
        raise Damaged(f"{name} {error}") from None
    except (BadInput, RuntimeError) as error:  # the latter torch's: more numbers than it can count
        if d.is_own and isinstance(error, BadInput):
            raise  # what makes it is not there, or does not make what it did
        raise Damaged(f"description of a student must be of a network that can be, but {_line(error)}") from None
    open_attention(network, tensors)
    _untie(network, tensors)
    _check_tensors(tensors_of(network), tensors, name)
    try:
        on = next(network.parameters()).device  # `meta`, but for a network of the user's
        shapes = filled(network, {key: tensor.to(on) for key, tensor in tensors.items()}, d.shape).eval()
        with torch.no_grad():
            found = shapes(torch.zeros(2, c, h, w, device=on))
    except (RuntimeError, ValueError) as error:
        raise Damaged(f"{name} must have layers that fit one another and the images, but {_line(error)}") from None
    if found.shape != (2, d.classes):
        raise Damaged(f"{name} must be of a network with {d.classes} classes, but has {found.shape[1]}")
    return filled(network, tensors)


def _check_tensors(described: Mapping[str, Tensor], tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise Damaged where the tensors cannot be of the network whose uncut ones are `described`."""
    _check_names(described, tensors)
    for key, tensor in tensors.items():
        whole = described[key]
        if tensor.dtype != whole.dtype:
            raise Damaged(f"{name}: `{key}` must be of {whole.dtype}, but is of {tensor.dtype}")
        sizes = list(zip(tensor.shape, whole.shape, strict=False))
        if tensor.dim() != whole.dim() or any(not 1 <= size <= most for size, most in sizes):
            raise Damaged(f"{name}: `{key}` must be {tuple(whole.shape)} or a cut of it, but is {tuple(tensor.shape)}")
        # a buffer of somebody's may be a mask of infinities; one of batch norm's may not
        if (isinstance(whole, nn.Parameter) or "running_" in key) and not bool(torch.isfinite(tensor).all()):
            raise Damaged(f"{name}: `{key}` must be finite, but is not")


def _check_names(described: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    if unlike := sorted(described.keys() ^ tensors.keys()):
        raise Damaged(
            f"weights must have the names of the network they are for, but differ in {', '.join(unlike[:3])}; "
            "the description and the weights belong to different networks"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:150]


def filled(network: Model, tensors: Mapping[str, Tensor], image_shape: tuple[int, ...] | None = None) -> Model:
    """`network` with its layers resized to the shapes of `tensors`, and these in them.

    Pruning changes the channel counts of layers, and how many heads an attention has, and nothing else of a network:
    what makes it anew and the shapes of its tensors say all of it. For a network of one's own that is its class:

        network = filled(MyNetwork(), safetensors.torch.load_file("student.safetensors")).eval()

    Args:
        network: freshly made, not yet cut.
        tensors: by the names of `network.state_dict()`, as `weights_bytes` writes them.
        image_shape: (C, H, W) of its input; only needed where attention of the network's own may have lost heads.

    Raises:
        Damaged: the tensors have other names than the network's.
        BadInput: heads cannot be counted without `image_shape`.
    """
    open_attention(network, tensors)
    _untie(network, tensors)
    own = tensors_of(network)
    _check_names(own, tensors)
    changed = [name for name, tensor in tensors.items() if own[name].shape != tensor.shape]
    counts: Sequence[Count] = ()
    if changed and (counting := counts_heads(network, changed)):
        if image_shape is None:
            raise BadInput(
                f"heads of `{counting}` cannot be counted without `image_shape`; give filled(..., (C, H, W))"
            )
        counts = counts_in(network, image_shape)
    resize(network, {name: tensor.clone() for name, tensor in tensors.items()}, counts)
    return network


def save_student(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a trial's files; the result, which has the others' hashes, comes last: a folder with a result is whole."""
    for name in sorted(files, key=lambda name: name == "result.json"):
        write_whole(folder / name, files[name])


def load_student(folder: Path) -> Network:
    """The student of a trial's folder, in eval mode.

    Raises:
        FileNotFoundError: a file of it is not there.
        Damaged: a file says what no student can be; `check_hashes` tells whether it is the one that was written.
    """
    description, weights = (read_whole(folder / name) for name in ("student.json", "student.safetensors"))
    try:
        described = _described(from_json(description))
    except ValueError as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"student.json must be JSON, but is not ({_line(error)})") from None
    return _network(described, weights, "student.safetensors")
