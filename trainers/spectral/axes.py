"""Which indices of tensors' dimensions can only be removed together.

Each dimension of a tensor is a product of axes, in row-major order. An axis has a key per index; keys that are joined
can only be removed together, and keys that are kept cannot be removed at all. An axis without keys has a size that is
not the network's to change, such as the batch or the height of a map.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass


class UnionFind:
    """Disjoint sets."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def find(self, item: Hashable) -> Hashable:
        """The representative of the item's set."""
        path = []
        while (parent := self._parent.setdefault(item, item)) != item:
            path.append(item)
            item = parent
        for passed in path:
            self._parent[passed] = item
        return item

    def join(self, one: Hashable, other: Hashable) -> None:
        """Merge two sets."""
        self._parent[self.find(one)] = self.find(other)


@dataclass(frozen=True, eq=False)
class Axis:
    """One factor of a dimension."""

    size: int
    keys: tuple[int, ...] | None = None
    """Of each index; None if the size is fixed."""


Layout = list[list[Axis]]
"""The axes of each dimension of a tensor."""

Counters = tuple[tuple[str, str], ...]
"""Modules, each with the name of an attribute of it."""
Counting = Callable[[int, int], Counters]
"""Attributes that say how many parts there are and how large all of them are together, given these two numbers."""


@dataclass(eq=False)
class Split:
    """An axis that is used as the product of an outer and an inner one. Only one of the two can lose indices."""

    whole: Axis
    parts: tuple[Axis, Axis]
    place: str
    """The module that does this."""
    counted: tuple[Counters, Counters] = ((), ())
    """Of each part, the attributes of modules that say how large it is."""
    part: Axis | None = None
    """The one that can lose indices, as far as this is known."""

    @property
    def counters(self) -> Counters:
        """The attributes that change with the number of indices of `part`."""
        return next((found for part, found in zip(self.parts, self.counted, strict=True) if part is self.part), ())


class Coupling:
    """The keys of all axes, and what couples them."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        """Of each key; a key that is its own parent represents its set."""
        self._reasons: dict[int, str] = {}
        """Of each set that is kept, by its representative."""
        self._splits: dict[tuple[Axis, int], Split] = {}
        self._slices: dict[Axis, dict[tuple[int, int, int], tuple[Axis, str]]] = {}

    def axis(self, size: int) -> Axis:
        """One with keys of its own."""
        keys = range(len(self._parent), len(self._parent) + size)
        self._parent += keys
        return Axis(size, tuple(keys))

    def find(self, key: int) -> int:
        """The representative of all that can only be removed together with an index."""
        parent = self._parent
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def reason(self, key: int) -> str:
        """Why an index is kept; empty if it can be removed."""
        return self._reasons.get(self.find(key), "")

    def removable(self, axis: Axis) -> Iterator[tuple[int, int]]:
        """Each index of an axis that can be removed, with the representative of all that goes with it."""
        for index, key in enumerate(axis.keys or ()):
            root = self.find(key)
            if root not in self._reasons:
                yield index, root

    def keep(self, axes: Iterable[Axis], reason: str) -> None:
        """Indices of these axes are never removed."""
        for axis in axes:
            for key in axis.keys or ():
                self._reasons.setdefault(self.find(key), reason)

    def join(self, one: Sequence[Axis], other: Sequence[Axis], place: str) -> None:
        """Couple two dimensions of one size, index by index."""
        pairs = self._aligned(one, other, place)
        if pairs is None:
            self.keep([*one, *other], f"are combined with others by unlike shapes{place}")
        for a, b in pairs or ():
            if a is b:
                continue
            if a.keys is not None and b.keys is not None:
                for pair in zip(a.keys, b.keys, strict=True):
                    self._tie(*pair)
            else:
                self.keep((a, b), f"are combined with something of fixed size{place}")

    def _tie(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        if one != other:
            self._parent[one] = other
            if one in self._reasons:
                self._reasons.setdefault(other, self._reasons.pop(one))

    def view(self, layout: Layout, shape: Sequence[int], place: str, counting: Counting) -> Layout | None:
        """The layout in another shape of as many numbers; None if it cuts across the axes."""
        axes = [axis for dimension in reversed(layout) for axis in reversed(dimension) if axis.size != 1]
        found: Layout = []
        for size in shape:
            found.append([])
            while size > 1:
                axis = axes.pop()
                if size % axis.size and axis.size % size:
                    return None
                if size % axis.size:
                    axis, inner = self._split(axis, size, place, counting)
                    axes.append(inner)
                found[-1].append(axis)
                size //= axis.size
        return found

    def part(self, axis: Axis, start: int, stop: int, step: int, place: str) -> Axis:
        """A slice of an axis."""
        if axis.keys is None:
            return Axis(len(range(start, stop, step)))
        parts = self._slices.setdefault(axis, {})
        keys = axis.keys[start:stop:step]
        return parts.setdefault((start, stop, step), (Axis(len(keys), keys), place))[0]

    def fused(self, axes: Sequence[Axis], place: str) -> Axis:
        """A dimension as a single axis."""
        if not axes:
            return Axis(1)
        whole, *others = axes
        for other in others:
            size = whole.size * other.size
            if whole.keys is None and other.keys is None:
                fused = Axis(size)
            elif other.keys is None:
                fused = Axis(size, tuple(key for key in whole.keys or () for _ in range(other.size)))
            elif whole.keys is None:
                fused = Axis(size, other.keys * whole.size)
            else:
                fused = self.axis(size)
                self._splits[fused, whole.size] = Split(fused, (whole, other), place)
            whole = fused
        return whole

    def settle(self) -> list[Split]:
        """Decide which part of each split can lose indices, and keep what slices treat unequally; call it once, last.

        Returns:
            The splits of which a part can lose indices that attributes count.
        """
        within: dict[Axis, list[Split]] = {}
        for split in self._splits.values():
            within.setdefault(split.whole, []).append(split)
        pending, done = list(self._splits.values())[::-1], set[Split]()
        while pending:
            split = pending.pop()
            before = [own for part in split.parts for own in within.get(part, ()) if own not in done]
            if split in done:
                continue
            if before:
                pending += [split, *before]
                continue
            self._decide(split)
            done.add(split)
        for axis, parts in self._slices.items():
            if not self._are_alike(axis, parts.keys()):
                place = next(place for _, place in parts.values())
                self.keep((axis,), self._reason_of([axis]) or f"are taken apart{place}")
        return [split for split in self._splits.values() if split.counters]

    def _decide(self, split: Split) -> None:
        """Couple the indices of a split's axis to those of the part that can lose some; the other part is kept."""
        free = [part for part in split.parts if any(not self.reason(key) for key in part.keys or ())]
        counted = [part for part, found in zip(split.parts, split.counted, strict=True) if found]
        if len(free) > 1:
            free = counted
        outer, inner = split.parts
        if not free:
            why = self._reason_of(counted) or f"are used as {outer.size} times {inner.size}{split.place}"
            self.keep((split.whole, outer, inner), why)
            return
        split.part = free[0]
        self.keep((part for part in split.parts if part is not split.part), f"are the size of a head{split.place}")
        assert split.part.keys is not None
        for index, key in enumerate(split.whole.keys or ()):
            self._tie(key, split.part.keys[index // inner.size if split.part is outer else index % inner.size])

    def _reason_of(self, axes: Iterable[Axis]) -> str:
        return next((why for axis in axes for key in axis.keys or () if (why := self.reason(key))), "")

    def _are_alike(self, axis: Axis, slices: Iterable[tuple[int, int, int]]) -> bool:
        """Whether slices divide an axis into equal parts that lose the same indices."""
        assert axis.keys is not None
        ends = sorted(slices)
        size = ends[0][1]
        if ends != [(start, start + size, 1) for start in range(0, axis.size, size)]:
            return False
        of = [self.find(key) for key in axis.keys]
        return of == of[:size] * (axis.size // size)

    def _split(self, axis: Axis, outer: int, place: str, counting: Counting | None = None) -> tuple[Axis, Axis]:
        inner = axis.size // outer
        if axis.keys is None:
            return Axis(outer), Axis(inner)
        key = (axis, outer)
        if key not in self._splits:
            self._splits[key] = Split(axis, (self.axis(outer), self.axis(inner)), place)
        split = self._splits[key]
        if counting is not None and not any(split.counted):
            split.counted = (counting(outer, axis.size), counting(inner, axis.size))
        return split.parts

    def _aligned(self, one: Sequence[Axis], other: Sequence[Axis], place: str) -> list[tuple[Axis, Axis]] | None:
        """Both dimensions divided into the same axes."""
        if [axis.size for axis in one] == [axis.size for axis in other]:
            return list(zip(one, other, strict=True))
        left, right = ([axis for axis in reversed(axes) if axis.size != 1] for axes in (one, other))
        pairs = []
        while left and right:
            a, b = left.pop(), right.pop()
            if a.size % b.size and b.size % a.size:
                return None
            if a.size > b.size:
                a, inner = self._split(a, b.size, place)
                left.append(inner)
            elif b.size > a.size:
                b, inner = self._split(b, a.size, place)
                right.append(inner)
            pairs.append((a, b))
        return None if left or right else pairs
