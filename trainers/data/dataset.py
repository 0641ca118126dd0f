"""What a data set is in memory: three splits of uint8 images, their labels, and what is to be known of them."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spaces.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

GREY_LEVELS = 256
CHUNK = 2**24
"""Bytes of images that are looked at together, where all are."""


def pixels(images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 in 0..255 as a network reads it: float32 in [0, 1], on the same device."""
    import torch

    return images.to(torch.float32) / (GREY_LEVELS - 1)


def shared_tensor(array: np.ndarray) -> Tensor:
    """A tensor on the very memory of `array`, writable or not. Whoever writes into it writes into what others read."""
    import torch

    with warnings.catch_warnings():
        # Ray's object store hands out read-only arrays, one memory for all workers. torch has no read-only tensors and
        # warns of them; a copy would silence it too, at the price of one data set per worker.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def mapped(path: Path) -> Tensor:
    """Images (N, C, H, W) of a file; nothing is read before it is looked at, and nothing may be written.

    Raises:
        BadInput: the file is not there, as on another machine.
    """
    try:
        return shared_tensor(np.load(path, mmap_mode="r"))
    except FileNotFoundError:
        raise BadInput(
            f"images that are larger than `task.memory` must be in {path} on every machine that carries out trials, "
            "but are not on this one; name a home that all machines share by --home or DUX_HOME, or raise `task.memory`"
        ) from None


@dataclass(frozen=True, eq=False)
class Split:
    """images: (N, C, H, W) uint8; labels: (N,) int64. Their order is fixed, but it may go class by class."""

    images: Tensor
    labels: Tensor
    file: Path | None = None
    """That the images are mapped from (`mapped.ImageFile`), where they are not held in memory."""

    def __post_init__(self) -> None:
        import torch

        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be (N, C, H, W) uint8, but are {_kind(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be ({len(self.images)},) int64, but are {_kind(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    def content(self) -> Iterator[bytes]:
        """Its images and then its labels, in parts."""
        import torch

        for part in torch.split(self.images, max(1, CHUNK // max(1, math.prod(self.images.shape[1:])))):
            yield part.numpy().tobytes()
        yield self.labels.numpy().tobytes()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with fixed splits: images of all splits have the same (C, H, W)."""

    name: str
    class_names: tuple[str, ...]
    """What labels 0, 1, ... stand for."""
    train: Split
    validation: Split
    test: Split
    preparation: str = "as they are in the files"
    """How the images come from those of the files, for who feeds an exported student."""
    notes: tuple[str, ...] = ()
    """What the data's owner may not expect of them, a line each."""
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """What was read, below `task.root`: size in bytes, and the first 16 hex digits of SHA-256."""
    known_mean_std: tuple[Tensor, Tensor] | None = None
    """What `mean_std` is, where another process has computed it."""

    def __post_init__(self) -> None:
        for split in self.splits().values():
            if split.images.shape[1:] != self.image_shape:
                raise ValueError(
                    f"all splits of {self.name} must hold images of one shape, but train has {self.image_shape} and "
                    f"another {tuple(split.images.shape[1:])}"
                )
            if len(split) and not 0 <= split.labels.min() <= split.labels.max() < self.classes:
                raise ValueError(f"labels of {self.name} must be in 0..{self.classes - 1}")

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def colour(self) -> str:
        """What the channels are."""
        return "grey" if self.channels == 1 else "RGB"

    @property
    def channels(self) -> int:
        return self.image_shape[0]

    @property
    def height(self) -> int:
        return self.image_shape[1]

    @property
    def width(self) -> int:
        return self.image_shape[2]

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the train pixels in [0, 1], each (C,) float32.

        Exact up to the last rounding, since grey levels are counted and not summed as floats. The deviation is never
        below one grey level, so that dividing by it is safe for a channel that is the same everywhere.
        """
        return self.known_mean_std or self._mean_std

    @cached_property
    def _mean_std(self) -> tuple[Tensor, Tensor]:
        import torch

        level = torch.arange(GREY_LEVELS, dtype=torch.float64) / (GREY_LEVELS - 1)
        count = torch.zeros(self.channels, GREY_LEVELS, dtype=torch.int64)
        for images in torch.split(self.train.images, max(1, CHUNK // math.prod(self.image_shape))):
            for c in range(self.channels):
                count[c] += torch.bincount(images[:, c].flatten(), minlength=GREY_LEVELS)
        share = count.double() / count.sum(dim=1, keepdim=True)  # (C, 256)
        mean = share @ level
        std = (share * (level - mean[:, None]).square()).sum(dim=1).sqrt().clamp_min(1 / (GREY_LEVELS - 1))
        return mean.float(), std.float()

    def content(self) -> tuple[Iterator[bytes], dict[str, tuple[int, ...]]]:
        """All images and labels, in parts, and the shape of each tensor by its name; wherever they are held."""
        ordered = sorted(self.splits().items())
        shapes = {
            f"{split}.{field}": tuple(tensor.shape)
            for split, part in self.splits().items()
            for field, tensor in (("images", part.images), ("labels", part.labels))
        }
        return itertools.chain.from_iterable(part.content() for _, part in ordered), shapes

    def arrays(self) -> dict[str, np.ndarray]:
        """The data as NumPy arrays on the same memory, for Ray's object store; `from_arrays` is the way back.

        Of images in files it has the files' names, as bytes.
        """
        arrays = {}
        for split, part in self.splits().items():
            if part.file is None:
                arrays[f"{split}.images"] = part.images.numpy()
            else:
                arrays[f"{split}.file"] = np.frombuffer(os.fsencode(part.file), np.uint8)
            arrays[f"{split}.labels"] = part.labels.numpy()
        if self.train.file is not None:  # to look at all of them takes a while
            arrays["mean_std"] = np.stack([values.numpy() for values in self.mean_std()])
        return arrays

    @classmethod
    def from_arrays(cls, name: str, class_names: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> Dataset:
        """The images and labels on the very memory of `arrays`, read-only arrays included; nothing is copied.

        Raises:
            BadInput: a file is not there.
        """

        def split(which: str) -> Split:
            labels = shared_tensor(arrays[f"{which}.labels"])
            if (file := arrays.get(f"{which}.file")) is None:
                return Split(shared_tensor(arrays[f"{which}.images"]), labels)
            path = Path(os.fsdecode(file.tobytes()))
            return Split(mapped(path), labels, path)

        known = arrays.get("mean_std")
        return cls(
            name,
            class_names,
            split("train"),
            split("validation"),
            split("test"),
            known_mean_std=None if known is None else (shared_tensor(known[0]), shared_tensor(known[1])),
        )

    def splits(self) -> dict[str, Split]:
        """By their names."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"
