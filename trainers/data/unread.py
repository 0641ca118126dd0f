"""A data set whose images are still to be read, and how they are: each split drawn first, then its images alone read.

What cannot be read is looked for to the end, so that all of it is told at once.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from spaces.errors import BadInput
from trainers.data.dataset import Dataset, Split
from trainers.data.pictures import DEEP, FRAMES, TRANSPARENT, Picture, quiet
from trainers.data.splits import MOST_LISTED, Rows, counted, listed, planned, shortlist

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

    def read(self, train_limit: int | None = None) -> Dataset:
        """Draws the splits that are not given, and reads what is in one.

        Args:
            train_limit: number of train images kept, in the same proportions of classes.

        Raises:
            BadInput: for all that is wrong at once: what was found before, pictures that cannot be read or differ in
                size, too few to draw a split.
        """
        import torch  # here, since it takes seconds to import

        problems, labels = list(self.problems), {name: torch.from_numpy(of) for name, of in self.labels.items()}
        rows = {given: Rows(given, torch.arange(len(of))) for given, of in labels.items()}
        if not problems:  # else there may be more images, or fewer, when they are solved
            try:
                rows = planned(labels, self.name, self.source, self.class_names, train_limit)
            except BadInput as error:
                problems.append(str(error))
        reading = _Reading(self)
        images = {split: reading.split(of) for split, of in rows.items()}
        problems += reading.problems(sum(map(len, rows.values())))
        if problems:
            raise BadInput(*problems)
        parts = {}
        for split, of in rows.items():
            filled = images[split]
            assert filled is not None  # no split is empty
            parts[split] = Split(filled, labels[of.given][of.numbers])
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


class _Reading:
    """Reads the pictures of an `Unread`, and remembers what is to be said of them."""

    def __init__(self, unread: Unread) -> None:
        self._unread = unread
        self._bad: dict[Place, str] = {}
        self._remarks: dict[str, list[Place]] = {TRANSPARENT: [], FRAMES: []}
        self._deep: list[Place] = []
        self._brightest = 0
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._first: dict[tuple[int, int], Place] = {}

    def split(self, rows: Rows) -> Tensor | None:
        """The pictures of a split, (N, C, H, W) uint8; None where something is wrong with one of any split so far."""
        import torch

        numbers = rows.numbers.numpy()
        order, images = np.argsort(numbers, kind="stable"), None
        with quiet():
            for place, picture in zip(order, self._unread.pictures(rows.given, numbers[order].tolist()), strict=True):
                self._note(rows.given, int(numbers[place]), picture)
                if picture.pixels is None or self._bad or len(self._sizes) > 1:
                    images = None  # whoever is here looks for others only
                    continue
                if images is None:
                    images = torch.empty(
                        (len(numbers), self._unread.channels, *picture.pixels.shape[:2]), dtype=torch.uint8
                    )
                one = torch.from_numpy(np.array(picture.pixels))  # Pillow's memory is read-only
                images[int(place)] = one if one.ndim == 2 else one.permute(2, 0, 1)
        return images

    def _note(self, given: str, number: int, picture: Picture) -> None:
        here = given, number
        if picture.pixels is None:
            self._bad[here] = picture.why_not
            return
        for remark in picture.remarks:
            self._remarks[remark].append(here)
        if picture.brightest is not None:
            self._deep.append(here)
            self._brightest = max(self._brightest, picture.brightest)
        height, width = picture.pixels.shape[:2]
        self._sizes[height, width] += 1
        self._first.setdefault((height, width), here)

    def problems(self, total: int) -> list[str]:
        """A line for each kind; `total`: of the pictures that were looked at."""
        problems = []
        if self._bad:
            which = listed([f"{self._called(*place)} ({self._bad[place]})" for place in self._in_order(self._bad)])
            if len(self._bad) > MOST_LISTED:
                which = self._bad_by_reason()
            problems.append(
                f"all images of {self._unread.source} must be readable, but {len(self._bad):,} of {total:,} are not: "
                f"{which}; get them anew or remove them"
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
        deep = f"with 16 bits of grey, scaled to 8 (the brightest value is {self._brightest} of {DEEP})"
        kinds = (
            (TRANSPARENT, self._remarks[TRANSPARENT]),
            (deep, self._deep),
            (FRAMES, self._remarks[FRAMES]),
        )
        return [
            f"{counted(len(which), 'image')} {what}: {shortlist([self._called(*one) for one in self._in_order(which)])}"
            for what, which in kinds
            if which
        ]

    def _called(self, given: str, number: int) -> str:
        return self._unread.called(given, number)

    def _in_order(self, which: Iterable[Place]) -> list[Place]:
        """By the order in which the source has them."""
        splits = list(self._unread.labels)
        return sorted(which, key=lambda place: (splits.index(place[0]), place[1]))


def in_order(function: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`map` by threads, a few items ahead of who asks; for functions that leave other threads time, as decoders do."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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
