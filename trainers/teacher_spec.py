"""The teacher as a study file writes it. Without torch, so that mistakes are reported at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self, TypeGuard

from pydantic import Discriminator, Field, JsonValue, PlainSerializer, PlainValidator, Tag, model_validator

from spaces import BadInput, Student
from spaces.errors import Problems, shown
from spaces.recipe import Part
from trainers.data.pictures import Size
from trainers.depths import check_student

LARGEST_SIDE = 4096
"""Maximum side of images, in pixels."""
MOST_MEMBERS = 64
LIBRARIES = ("torchvision", "timm")
"""Libraries whose networks are named `LIBRARY:NAME`."""
EXPORTED = ".pt2"
"""How the file of a network ends that `torch.export.save` wrote."""
_REGISTERED = ("models:/", "runs:/")
"""How the names of what MLflow stores begin."""
DOWNLOADED = "DEFAULT"
"""Instead of a weights file: the library's own weights, downloaded if necessary."""


def _as_size(raw: object) -> object:
    sides = raw if isinstance(raw, list | tuple) else [raw, raw]
    whole = all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= LARGEST_SIDE for side in sides)
    if raw is not None and not (whole and len(sides) == 2):
        raise ValueError(f"must be a side or [height, width], of 1 to {LARGEST_SIDE} pixels")
    return tuple(sides) if isinstance(raw, list) else raw


Sides = Annotated[Size | None, PlainValidator(_as_size), PlainSerializer(lambda size: size)]
"""A side, or [height, width], in pixels."""


class InputSpec(Part):
    """The images that a network was trained on."""

    size: Sides = None
    """Side, or height and width, in pixels; image folders are scaled to it unless `task.image_size` is given."""
    mean: list[float] | None = Field(default=None, min_length=1)
    """What is subtracted from each channel of images in [0, 1]; by default the library's own, else the data set's."""
    std: list[float] | None = Field(default=None, min_length=1)
    """What each channel is divided by."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("must have both mean and std, or neither")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("must have each std above 0")
        return self


class TeacherSpec(Part):
    """The network to compress: either of a family, trained by Dux, or trained outside Dux."""

    family: str = "resnet"
    depth: int = Field(default=20, ge=2, le=10_000)
    width: float = Field(default=1.0, gt=0.0, le=64.0)
    network: str | None = None
    """Instead of a family: `torchvision:NAME`, `timm:NAME`, `package.module:function` (or a class), a `.pt2` file, or
    what MLflow stores, as `models:/NAME/VERSION`."""
    weights: str | None = None
    """Its weights: a safetensors or `torch.save` file, or `DEFAULT`; by default, those that it is built with."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """The arguments of the network's class or function."""
    input: InputSpec = InputSpec()
    taps: list[str] | None = Field(default=None, min_length=1)
    """Modules whose outputs are its features, from shallow to deep; found automatically by default."""
    epochs: int | None = Field(default=None, ge=1, le=100_000)
    """By default 30 for a family, and 0 for a network that is already trained."""
    batch_size: int = Field(default=64, ge=2, le=1_000_000)
    learning_rate: float | None = Field(default=None, gt=0.0)
    """By default 0.1 for a family, and 0.02 for a network that is already trained."""
    weight_decay: float = Field(default=5e-4, ge=0.0)
    members: Annotated[
        Annotated[int, Field(ge=1, le=MOST_MEMBERS), Tag("<number>")]
        | Annotated[list[TeacherSpec], Field(min_length=1, max_length=MOST_MEMBERS), Tag("<networks>")],
        Discriminator(lambda value: "<networks>" if isinstance(value, list) else "<number>"),
    ] = 1
    """Members of an ensemble, whose probabilities are averaged: how many, each trained independently from its own seed;
    or each one as a separate teacher."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    threads: int = Field(default=1, ge=1, le=1024)
    """Torch threads for it, and for what is learned from it; the last digits depend on their number."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        members = self.members
        usual = TeacherSpec.model_fields
        changed = {
            name
            for name in self.model_fields_set
            if getattr(self, name) != usual[name].get_default(call_default_factory=True)
        }
        if self.network is not None and (family := changed & _OF_A_FAMILY):
            raise ValueError(f"must have either a network or a family, but has `network` and {_names(family)}")
        if self.network is None and (own := changed & _OF_A_NETWORK):
            raise ValueError(f"must have a `network` if it has {_names(own)}")
        if isinstance(members, list):
            if each := changed - {"members", "threads"}:
                raise ValueError(f"must give {_names(each)} for each of its members")
            if any(isinstance(member.members, list) or member.count > 1 for member in members):
                raise ValueError("must have members that are single networks")
        elif self.network is not None and members > 1 and not self.training_epochs:
            raise ValueError("must have members that differ: list them, or have them fine-tuned by `epochs`")
        return self

    @property
    def student(self) -> Student:
        """One member's shape as in a recipe, if it is of a family."""
        return Student(family=self.family, depth=self.depth, width=self.width)

    @property
    def count(self) -> int:
        """Members."""
        return self.members if isinstance(self.members, int) else len(self.members)

    @property
    def each(self) -> list[TeacherSpec]:
        """Every member as a separate teacher."""
        if isinstance(self.members, int):
            return [self.model_copy(update={"members": 1})] * self.members
        return list(self.members)

    @property
    def own_code(self) -> list[str]:
        """The user's own code that is imported to build it, as `package.module:name`."""
        named = [member.family if member.network is None else member.network for member in self.each]
        named = [name for name in named if not is_exported(name) and not is_registered(name)]
        return [name for name in named if ":" in name and name.partition(":")[0] not in LIBRARIES]

    @property
    def registered(self) -> list[str]:
        """What MLflow stores of it, by its names there."""
        return [uri for member in self.each for uri in (member.network, member.weights) if is_registered(uri)]

    def fetched(self, fetch: Callable[[str, str], str]) -> TeacherSpec:
        """The same with files in place of what MLflow stores; `fetch` has the key and the name, and returns a path."""
        changed: dict[str, Any] = {}
        for key, uri in (("network", self.network), ("weights", self.weights)):
            if uri is not None and is_registered(uri):
                changed[key] = fetch(key, uri)
        if isinstance(self.members, list):
            changed["members"] = [member.fetched(fetch) for member in self.members]
        return self.model_copy(update=changed)

    @property
    def training_epochs(self) -> int:
        """Of one member."""
        return self.epochs or (30 if self.network is None else 0)

    @property
    def training_rate(self) -> float:
        """Of one member."""
        return self.learning_rate or (0.1 if self.network is None else 0.02)

    def identity(self) -> dict[str, Any]:
        """Everything here that defines it, as JSON."""
        if isinstance(self.members, list):
            return {"members": [member.identity() for member in self.members], "threads": self.threads}
        trained = {
            "epochs": self.training_epochs,
            "batch_size": self.batch_size,
            "learning_rate": self.training_rate,
            "weight_decay": self.weight_decay,
            "members": self.members,
            "seed": self.seed,
            "threads": self.threads,
        }
        if self.network is None:
            return {"family": self.family, "depth": self.depth, "width": self.width, **trained}
        # where a file lies does not matter; its content does
        network = _content(Path(self.network)) if is_exported(self.network) else self.network
        return {"network": network, "arguments": self.arguments, "taps": self.taps, **trained}

    def check(self) -> None:
        """Raise BadInput, with all that is wrong, if a family or its depth does not exist, or a file is missing."""
        problems = Problems()
        for member in self.each:
            with problems.noted():
                member._check_one()
        problems.check()

    def _check_one(self) -> None:
        """`check` of a single network."""
        if self.network is None:
            check_student(self.student)
        elif self.weights is not None and is_exported(self.weights):
            raise BadInput(
                f"`task.teacher.weights` must be a file of weights, but {self.weights} is a whole network; name it in "
                "`network`, and leave `weights` out"
            )
        elif is_exported(self.network) or is_registered(self.network):
            self._check_whole()
        elif ":" not in self.network:
            raise BadInput(
                "`task.teacher.network` must be torchvision:NAME, timm:NAME, package.module:function, a file that ends "
                f"in {EXPORTED}, or models:/NAME/VERSION, but got {shown(self.network)}"
            )
        elif self.weights == DOWNLOADED and self.own_code:
            raise BadInput(
                f"`task.teacher.weights: {DOWNLOADED}` must be for a network of {' or '.join(LIBRARIES)}, but "
                f"`network` is {self.network}; name a file, or leave it out if the function loads them"
            )
        elif self._weights_file is not None and not self._weights_file.is_file():
            raise BadInput(f"`task.teacher.weights` must be a file, but {self._weights_file} is not")

    def _check_whole(self) -> None:
        """`check` of a network that is in a file with its weights."""
        if self.weights is not None or self.arguments:
            raise BadInput(
                f"`task.teacher.network: {self.network}` must have no "
                f"{'`weights`' if self.weights is not None else '`arguments`'}, since the file has the whole network; "
                "leave them out"
            )
        if is_exported(str(self.network)) and not Path(str(self.network)).is_file():
            raise BadInput(f"`task.teacher.network` must be a file, but {self.network} is not")

    @property
    def _weights_file(self) -> Path | None:
        """The file of its weights, where that is on this machine."""
        named = self.weights
        return None if named in (None, DOWNLOADED) or is_registered(named) else Path(str(named))

    def beside(self, folder: Path) -> TeacherSpec:
        """The same, with relative paths of files starting in `folder`."""
        changed: dict[str, Any] = {}
        if self._weights_file is not None:
            changed["weights"] = beside(folder, str(self.weights))
        if self.network is not None and is_exported(self.network):
            changed["network"] = beside(folder, self.network)
        if isinstance(self.members, list):
            changed["members"] = [member.beside(folder) for member in self.members]
        return self.model_copy(update=changed)


_OF_A_FAMILY = frozenset({"family", "depth", "width"})
_OF_A_NETWORK = frozenset({"weights", "arguments", "input", "taps"})


def is_exported(name: str) -> bool:
    """Whether it names a file that `torch.export.save` wrote."""
    return name.endswith(EXPORTED) and not is_registered(name)


def is_registered(name: str | None) -> TypeGuard[str]:
    """Whether it names what MLflow stores."""
    return name is not None and name.startswith(_REGISTERED)


def _content(file: Path) -> str:
    """What stands for a file's content."""
    with file.open("rb") as content:
        return f"{EXPORTED} {hashlib.file_digest(content, 'sha256').hexdigest()}"


def _names(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def beside(folder: Path, path: str) -> str:
    """A path of the user's, absolute; relative ones start in `folder`.

    Raises:
        BadInput: no file can have such a path.
    """
    try:
        absolute = (folder / Path(path).expanduser()).resolve()
        absolute.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"a path must be one that this machine can have, but {shown(path)} is not: {error}") from None
    return str(absolute)
