"""What a data set is in memory: three splits of uint8 images, their labels, and what is to be known of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

GREY_LEVELS = 256


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


@dataclass(frozen=True, eq=False)
class Split:
    """images: (N, C, H, W) uint8; labels: (N,) int64. Their order is fixed, but it may go class by class."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        import torch

        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be (N, C, H, W) uint8, but are {_kind(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be ({len(self.images)},) int64, but are {_kind(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)


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
        import torch

        level = torch.arange(GREY_LEVELS, dtype=torch.float64) / (GREY_LEVELS - 1)
        images = self.train.images
        count = torch.stack(
            [torch.bincount(images[:, c].flatten(), minlength=GREY_LEVELS) for c in range(self.channels)]
        )
        share = count.double() / count.sum(dim=1, keepdim=True)  # (C, 256)
        mean = share @ level
        std = (share * (level - mean[:, None]).square()).sum(dim=1).sqrt().clamp_min(1 / (GREY_LEVELS - 1))
        return mean.float(), std.float()

    def arrays(self) -> dict[str, np.ndarray]:
        """The data as NumPy arrays on the same memory, for Ray's object store; `from_arrays` is the way back."""
        return {
            f"{split}.{field}": tensor.numpy()
            for split, part in self.splits().items()
            for field, tensor in (("images", part.images), ("labels", part.labels))
        }

    @classmethod
    def from_arrays(cls, name: str, class_names: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> Dataset:
        """The images and labels on the very memory of `arrays`, read-only arrays included; nothing is copied."""

        def split(which: str) -> Split:
            return Split(shared_tensor(arrays[f"{which}.images"]), shared_tensor(arrays[f"{which}.labels"]))

        return cls(name, class_names, split("train"), split("validation"), split("test"))

    def splits(self) -> dict[str, Split]:
        """By their names."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"
