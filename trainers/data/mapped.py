"""Images in a file that processes map into memory: for data sets that are larger than what may be held as pixels.

The operating system reads what is looked at and forgets what was not for long, so a file may be larger than the memory,
and all processes of a machine share what was read. A file is written once and named by what is in it; its hash is in
the record beside it.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.lib import format as npy

from trainers.files import Damaged, removed_at_last, sealed, unsealed, write_whole

IMAGES, RECORD = "images.npy", "record.json"
_CHUNK = 2**24


@dataclass(frozen=True)
class Room:
    """Where the images of a data set may be held while they are used."""

    memory: float = math.inf
    """Bytes of pixels, of all splits together, that may be held in memory."""
    folder: Path | None = None
    """For files of what is larger; without one all is held in memory."""
    told: Callable[[int, int], object] = lambda done, total: None
    """Called as images are read: how many were, of how many."""

    def needs_files(self, bytes_in_all: int) -> bool:
        """Whether images of so many bytes go into files."""
        return self.folder is not None and bytes_in_all > self.memory

    def lacks(self, bytes_in_all: int, missing: int, image_shape: tuple[int, ...]) -> str:
        """Why the disk cannot take the files that are not there yet; empty if it can.

        Args:
            bytes_in_all: of all splits' images.
            missing: bytes of those that are not in files yet.
            image_shape: (C, H, W), for the message.
        """
        assert self.folder is not None
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
        if missing <= free:
            return ""
        shape = " x ".join(map(str, image_shape))
        return (
            f"images that take more memory than `task.memory` must have room on the disk of {self.folder}, but of "
            f"{_shown(bytes_in_all)} ({shape} each, `task.memory` is {_shown(self.memory)}) {_shown(missing)} are "
            f"missing there and {_shown(free)} are free; free some, name another home by --home or DUX_HOME, lower "
            "`task.image_size` or `task.train_limit`, or raise `task.memory`"
        )


def _shown(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


class ImageFile:
    """The file of one split's images, in a folder of its own.

    Args:
        folder: which its name makes unlike any other's.
        shape: (N, C, H, W).
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int]) -> None:
        self.folder, self.shape = folder, shape

    @property
    def path(self) -> Path:
        """The file itself."""
        return self.folder / IMAGES

    @contextmanager
    def made_by_one(self) -> Iterator[Mapping[str, Any] | None]:
        """Inside, no other process makes the file; gives its remarks if it is there already, as it was written."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.parent / f".{self.folder.name}.lock"):
            yield self._remarks()

    def _remarks(self) -> Mapping[str, Any] | None:
        with suppress(Damaged, FileNotFoundError):
            record = unsealed(self.folder / RECORD)
            if record["sha256_of_images"] == _sha256(self.path):
                remarks: Mapping[str, Any] = record["remarks"]
                return remarks
        return None

    @property
    def is_there(self) -> bool:
        """Whether there is one of its size; not whether it is as it was written."""
        with suppress(OSError):
            return self.path.stat().st_size > math.prod(self.shape)
        return False

    @contextmanager
    def written(self) -> Iterator[Callable[[int, np.ndarray], None]]:
        """Gives what writes an image (C, H, W) to its place; the file is there, under another name, at the end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._part = self.folder / f".{uuid.uuid4().hex}"
        with removed_at_last(self._part):
            try:
                with self._part.open("wb") as file:
                    head = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
                    npy.write_array_header_1_0(file, head)
                    begin, each = file.tell(), math.prod(self.shape[1:])

                    def put(place: int, image: np.ndarray) -> None:
                        file.seek(begin + place * each)
                        file.write(np.ascontiguousarray(image).data)

                    yield put
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                self._part.unlink(missing_ok=True)
                raise

    def finish(self, remarks: Mapping[str, Any]) -> None:
        """What was written is the file from now on; `remarks`: to be said of its images, as JSON."""
        record = {"shape": self.shape, "remarks": remarks, "sha256_of_images": _sha256(self._part)}
        (self.folder / RECORD).unlink(missing_ok=True)
        self._part.replace(self.path)
        write_whole(self.folder / RECORD, sealed(record))

    def discard(self) -> None:
        """What was written is not to be kept."""
        self._part.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            sha.update(part)
    return sha.hexdigest()
