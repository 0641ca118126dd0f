"""A data set whose images are still to be read, and how they are: each split drawn first, then its images alone read.

What cannot be read is looked for to the end, so that all of it is told at once.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from spaces.errors import BadInput
from trainers.data.dataset import Dataset, Split, mapped
from trainers.data.mapped import ImageFile, Room
from trainers.data.pictures import DEEP, DEEP_GREY, FRAMES, TRANSPARENT, Picture, Size, quiet
from trainers.data.splits import MOST_LISTED, Rows, counted, listed, planned, shortlist
from trainers.files import digest
from trainers.machine import usable_cpus

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Made = TypeVar("Made")
Place: TypeAlias = tuple[str, int]
"""Of a picture: a split that is given, and a number in it."""


_TRIED = 100
"""Pictures, for one that can be read."""


@dataclass(frozen=True, kw_only=True)
class Unread:
    """What a source knows of its images before it reads them. A split that is "given" is one that the source has."""

    name: str
    """Of the data set."""
    source: str
    """Where it is, for messages."""
    class_names: tuple[str, ...]
    labels: Mapping[str, np.ndarray]
    """Of each split that is given, (N,) int64; train is among them."""
    channels: int
    """1 if all images are grey, else 3."""
    size: Size | None
    """To which pictures are scaled and cropped; None: they must be of one size."""
    pictures: Callable[[str, Sequence[int]], Iterator[Picture]]
    """The pictures of these numbers of a given split, in this order; numbers ascend."""
    called: Callable[[str, int], str]
    """What a picture of a given split is called in messages."""
    contents: Mapping[str, Sequence[object]] | None = None
    """What tells the contents of two pictures apart; None where only pixels do."""
    preparation: str
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """What the data must not be, so that there will be no data set; its pictures are looked at all the same."""
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @cached_property
    def mark(self) -> str:
        """What tells the pixels of all pictures from those of others, by the files or contents that they come from."""
        marks = {split: [*map(str, of)] for split, of in (self.contents or {}).items()}
        return digest(self.name, self.preparation, self.channels, dict(self.files), marks)

    def read(self, train_limit: int | None = None, room: Room = Room()) -> Dataset:  # noqa: B008
        """Draws the splits that are not given, and reads what is in one.

        Args:
            train_limit: number of train images kept, in the same proportions of classes.
            room: where the images may be held; the data set is the same wherever they are.

        Raises:
            BadInput: for all that is wrong at once: what was found before, pictures that cannot be read or differ in
                size, too few to draw a split; or for a disk without room.
        """
        import torch  # here, since it takes seconds to import

        problems, labels = list(self.problems), {name: torch.from_numpy(of) for name, of in self.labels.items()}
        rows = {given: Rows(given, torch.arange(len(of))) for given, of in labels.items()}
        if not problems:  # else there may be more images, or fewer, when they are solved
            try:
                rows = planned(labels, self.name, self.source, self.class_names, train_limit)
            except BadInput as error:
                problems.append(str(error))
        reading = _Reading(self, rows, room, only_look=bool(problems))
        with quiet():
            images = {split: reading.images(split) for split in rows}
        problems += reading.problems()
        if problems:
            raise BadInput(*problems)
        parts = {}
        for split, of in rows.items():
            found, file = images[split] or (None, None)
            assert found is not None  # no split is empty
            parts[split] = Split(found, labels[of.given][of.numbers], file)
        return Dataset(
            self.name,
            self.class_names,
            parts["train"],
            parts["validation"],
            parts["test"],
            preparation=self.preparation,
            notes=(*self.notes, *reading.notes(), *self._doubles(rows)),
            files=self.files,
        )

    def stand_in(self) -> Dataset | None:
        """Two black images of each class in each split, of the size of the first that can be read; None without one."""
        import torch

        with quiet():
            heads = self.pictures("train", range(min(_TRIED, len(self.labels["train"]))))
            sizes = (picture.pixels.shape[:2] for picture in heads if picture.pixels is not None)
            size = next(sizes, None)
        if size is None or len(self.class_names) < 2:
            return None
        labels = torch.arange(len(self.class_names)).repeat(2)
        black = Split(torch.zeros(len(labels), self.channels, *size, dtype=torch.uint8), labels)
        return Dataset(self.name, self.class_names, black, black, black)

    def _doubles(self, rows: Mapping[str, Rows]) -> list[str]:
        """What is measured with images that were learned, and what is learned with two labels."""
        if self.contents is None:
            return []
        notes: list[str] = []
        samples = {split: [(of.given, int(i)) for i in of.numbers] for split, of in rows.items()}
        first: dict[object, tuple[str, Place]] = {}
        """Split, given split and number of each content; an image of train is looked for first."""
        for split, part in samples.items():
            twins = [(one, first[self._content(*one)]) for one in part if self._content(*one) in first]
            for other in samples:
                if which := [(one, twin) for one, (where, twin) in twins if where == other]:
                    (one, twin), *_ = which
                    notes.append(
                        f"{len(which)} of {counted(len(part), split + ' image')} are {other} images, too, to the byte: "
                        f"{self.called(*one)} is {self.called(*twin)}"
                    )
            for one in part:
                first.setdefault(self._content(*one), (split, one))
        labels: dict[object, set[int]] = {}
        for given, number in itertools.chain(*samples.values()):
            labels.setdefault(self._content(given, number), set()).add(int(self.labels[given][number]))
        two = [one for one in itertools.chain(*samples.values()) if len(labels[self._content(*one)]) > 1]
        if two:
            shown = shortlist([self.called(*one) for one in two])
            notes.append(f"{counted(len(two), 'image')} in more than one class, to the byte: {shown}")
        return notes

    def _content(self, given: str, number: int) -> object:
        assert self.contents is not None
        return self.contents[given][number]


@dataclass
class _Remarks:
    """What is to be said of the pictures of a split."""

    places: dict[str, list[int]] = field(default_factory=dict)
    """TRANSPARENT, FRAMES, DEEP_GREY -> numbers in the split that is given."""
    brightest: int = 0
    """The largest value in 16 bits of grey."""

    def note(self, number: int, picture: Picture) -> None:
        """A picture was read."""
        deep = () if picture.brightest is None else (DEEP_GREY,)
        for remark in (*picture.remarks, *deep):
            self.places.setdefault(remark, []).append(number)
        self.brightest = max(self.brightest, picture.brightest or 0)


class _Reading:
    """Reads the pictures of an `Unread`, split by split, and remembers what is to be said of them.

    Args:
        unread: the source.
        rows: of each split.
        room: where images may be held.
        only_look: whether pictures are only looked for that cannot be read.
    """

    def __init__(self, unread: Unread, rows: Mapping[str, Rows], room: Room, *, only_look: bool) -> None:
        self._unread, self._rows, self._room, self._only_look = unread, rows, room, only_look
        self._lacks_room = ""
        """Why the images that are larger than the memory cannot be written to files."""
        self._total = sum(map(len, rows.values()))
        self._done = 0
        self._bad: dict[Place, str] = {}
        self._remarks: dict[str, _Remarks] = {}
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._first: dict[tuple[int, int], Place] = {}
        self._shape: tuple[int, int, int] | None = None
        """(C, H, W); None where no picture could be read yet."""

    def images(self, split: str) -> tuple[Tensor, Path | None] | None:
        """The pictures of a split, (N, C, H, W) uint8, and the file that they are in if they are in one.

        None where something is wrong with one of any split so far; it is then only looked for others.
        """
        import torch

        rows = self._rows[split]
        if self._shape is None:
            self._shape = self._looked_up(rows)
            self._lacks_room = self._look_at_room()
        if self._shape is None or self._is_wrong:
            self._each(split, lambda place, image: None)
            return None
        shape = (len(rows), *self._shape)
        if not self._is_mapped:
            images = torch.empty(shape, dtype=torch.uint8)
            self._each(split, images.numpy().__setitem__)
            return None if self._is_wrong else (images, None)
        file = self._file(split)
        with file.made_by_one() as remarks:
            if remarks is not None:
                self._remarks[split] = _Remarks(**remarks)
                self._done += len(rows)
                self._sizes[self._shape[1:]] += len(rows)  # what is still to be read must be as large
                self._first.setdefault(self._shape[1:], (rows.given, int(rows.numbers.min())))
                return mapped(file.path), file.path
            with file.written() as put:
                self._each(split, put)
            if self._is_wrong:
                file.discard()
                return None
            file.finish(vars(self._remarks[split]))
            return mapped(file.path), file.path

    @property
    def _is_wrong(self) -> bool:
        return self._only_look or bool(self._lacks_room or self._bad) or len(self._sizes) > 1

    @property
    def _is_mapped(self) -> bool:
        assert self._shape is not None
        return self._room.needs_files(self._total * math.prod(self._shape))

    def _looked_up(self, rows: Rows) -> tuple[int, int, int] | None:
        """(C, H, W), by the size that is asked for or else by the first picture that can be read."""
        if self._unread.size is not None:
            size = self._unread.size
            return (self._unread.channels, *((size, size) if isinstance(size, int) else size))
        for number in rows.numbers.sort().values.tolist():
            (picture,) = self._unread.pictures(rows.given, [number])
            if picture.pixels is not None:
                return (self._unread.channels, *picture.pixels.shape[:2])
        return None

    def _file(self, split: str) -> ImageFile:
        assert self._room.folder is not None
        assert self._shape is not None
        rows = self._rows[split]
        key = digest(self._unread.mark, rows.given, rows.numbers.numpy().tobytes(), self._shape)
        return ImageFile(self._room.folder / key, (len(rows), *self._shape))

    def _look_at_room(self) -> str:
        if self._shape is None or self._only_look or not self._is_mapped:
            return ""
        each = math.prod(self._shape)
        missing = sum(len(rows) * each for split, rows in self._rows.items() if not self._file(split).is_there)
        return self._room.lacks(self._total * each, missing, self._shape)

    def _each(self, split: str, put: Callable[[int, np.ndarray], None]) -> None:
        """Reads the pictures of a split; `put` is given each (C, H, W) and its place, as long as nothing is wrong."""
        rows, remarks = self._rows[split], self._remarks.setdefault(split, _Remarks())
        numbers = rows.numbers.numpy()
        order = np.argsort(numbers, kind="stable")
        for place, picture in zip(order, self._unread.pictures(rows.given, numbers[order].tolist()), strict=True):
            number, self._done = int(numbers[place]), self._done + 1
            self._room.told(self._done, self._total)
            if picture.pixels is None:
                self._bad[rows.given, number] = picture.why_not
                continue
            remarks.note(number, picture)
            height, width = picture.pixels.shape[:2]
            self._sizes[height, width] += 1
            self._first.setdefault((height, width), (rows.given, number))
            if not self._is_wrong:
                grey = picture.pixels.ndim == 2
                image = picture.pixels[None] if grey else picture.pixels.transpose(2, 0, 1)
                put(int(place), np.broadcast_to(image, (self._unread.channels, height, width)))

    def problems(self) -> list[str]:
        """A line for each kind of what is wrong."""
        problems = [self._lacks_room] if self._lacks_room else []
        if self._bad:
            which = listed([f"{self._called(*place)} ({self._bad[place]})" for place in self._in_order(self._bad)])
            if len(self._bad) > MOST_LISTED:
                which = self._bad_by_reason()
            problems.append(
                f"all images of {self._unread.source} must be readable, but {len(self._bad):,} of {self._total:,} are "
                f"not: {which}; get them anew or remove them"
            )
        if len(self._sizes) > 1:
            sizes = [
                f"{width}x{height} ({counted(count, 'image')}, {self._called(*self._first[height, width])})"
                for (height, width), count in self._sizes.most_common()
            ]
            problems.append(
                f"all images of {self._unread.source} must be of one size (width x height), but are of {len(sizes)}: "
                f"{listed(sizes)}; set task.image_size to scale and crop them"
            )
        return problems

    def _bad_by_reason(self) -> str:
        """How many cannot be read for which reason, the most frequent first."""
        reasons: dict[str, list[Place]] = {}
        for place in self._in_order(self._bad):
            reasons.setdefault(self._bad[place], []).append(place)
        return listed(
            [
                f"{len(places):,} ({why}; {shortlist([self._called(*place) for place in places])})"
                for why, places in sorted(reasons.items(), key=lambda item: -len(item[1]))
            ]
        )

    def notes(self) -> list[str]:
        """What was read otherwise than it may have been meant."""
        brightest = max((remarks.brightest for remarks in self._remarks.values()), default=0)
        kinds = {
            TRANSPARENT: TRANSPARENT,
            DEEP_GREY: f"{DEEP_GREY} (the brightest value is {brightest} of {DEEP})",
            FRAMES: FRAMES,
        }
        notes = []
        for kind, what in kinds.items():
            places = [
                (self._rows[split].given, number)
                for split, remarks in self._remarks.items()
                for number in remarks.places.get(kind, ())
            ]
            if places:
                shown = shortlist([self._called(*place) for place in self._in_order(places)])
                notes.append(f"{counted(len(places), 'image')} {what}: {shown}")
        return notes

    def _called(self, given: str, number: int) -> str:
        return self._unread.called(given, number)

    def _in_order(self, which: Iterable[Place]) -> list[Place]:
        """By the order in which the source has them."""
        splits = list(self._unread.labels)
        return sorted(which, key=lambda place: (splits.index(place[0]), place[1]))


def in_order(function: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`map` by threads, a few items ahead of who asks; for functions that leave other threads time, as decoders do."""
    workers = usable_cpus()
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()
