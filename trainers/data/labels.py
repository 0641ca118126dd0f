"""Labels as people write them, numbers or names, as classes 0, 1, ...; and splits by the names that they have."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainers.data.splits import counted, shortlist

SPELLINGS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
"""Split -> the names that it may have, in any case."""


@dataclass(frozen=True)
class Numbered:
    """Labels as classes."""

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]
    """Split -> (N,) int64."""
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def split_called(name: str) -> str | None:
    """The split that is called so; None if none is."""
    return next((split for split, names in SPELLINGS.items() if name.lower() in names), None)


def numbered(
    values: Mapping[str, np.ndarray], called: Mapping[str, str], names: Mapping[str, Sequence[str]]
) -> Numbered:
    """Labels (N,) of whole numbers or texts as classes 0, 1, ...

    Args:
        values: split -> labels.
        called: split -> what its labels are called in messages.
        names: split -> the names of classes 0, 1, ..., empty where it has none; where no split has any, classes are the
            values that occur, in their order.
    """
    values, problems = {split: decoded(of) for split, of in values.items()}, []
    for split, of in values.items():
        if of.ndim != 1 or not (np.issubdtype(of.dtype, np.integer) or of.dtype.kind == "U"):
            way_out = "; take the argmax of one-hot labels" if of.ndim == 2 else ""
            problems.append(
                f"{called[split]} must be whole numbers or names, (N,), but are {of.shape} {of.dtype}{way_out}"
            )
    if problems:
        empty = {split: np.zeros(len(of), np.int64) for split, of in values.items()}
        return Numbered(("?", "??"), empty, problems=tuple(problems))
    if named := [split for split, of in names.items() if of]:
        return _of_names(
            values, called, names[named[0]], _differences({split: names[split] for split in named}, called)
        )
    kinds = {of.dtype.kind == "U" for of in values.values()}
    together = np.concatenate([of.astype(str if True in kinds else np.int64) for of in values.values()])
    found, numbers = np.unique(together, return_inverse=True)
    ends = np.cumsum([len(of) for of in values.values()])[:-1]
    labels = dict(zip(values, np.split(numbers.astype(np.int64), ends), strict=True))
    class_names = tuple(map(str, found))
    notes = []
    if found.dtype.kind != "U" and found.tolist() != list(range(len(found))):
        order = [f"class {label} is {name}" for label, name in enumerate(class_names)]
        notes.append(f"classes are numbered in the order of the labels that occur: {shortlist(order)}")
    return Numbered(class_names, labels, tuple(notes), tuple(_lacking(class_names, labels, called)))


def decoded(names: np.ndarray) -> np.ndarray:
    """Bytes as the text that they are in UTF-8; anything else as it is."""
    return np.char.decode(names, "utf-8", "backslashreplace") if names.dtype.kind == "S" else names


def _differences(names: Mapping[str, Sequence[str]], called: Mapping[str, str]) -> list[str]:
    """A line for each split in which a label stands for another class than in the first one."""
    (first, expected), *others = names.items()
    problems = []
    for split, of in others:
        differing = (
            f"class {label} is {here} instead of {there}"
            for label, (here, there) in enumerate(itertools.zip_longest(of, expected, fillvalue="none"))
            if here != there
        )
        if difference := next(differing, ""):
            problems.append(
                f"{called[split]} must stand for the same classes as {called[first]}, but there {difference}; give all "
                "splits the same classes in the same order"
            )
    return problems


def _of_names(
    values: Mapping[str, np.ndarray], called: Mapping[str, str], names: Sequence[str], problems: list[str]
) -> Numbered:
    """Labels of classes whose names are known: numbers of them, or the names themselves.

    Args:
        values, called: as in `numbered`.
        names: of classes 0, 1, ...
        problems: that are known already.
    """
    labels, place = {}, {name: number for number, name in enumerate(names)}
    for split, of in values.items():
        numbers = of if of.dtype.kind != "U" else np.array([place.get(str(name), -1) for name in of], np.int64)
        wrong = (numbers < 0) | (numbers >= len(names))
        if wrong.any():
            problems.append(
                f"{called[split]} must be of the {len(names)} classes, but {counted(int(wrong.sum()), 'label')} "
                f"{'is' if wrong.sum() == 1 else 'are'} not: {shortlist(sorted({str(value) for value in of[wrong]}))}; "
                "correct them, or remove their images"
            )
        labels[split] = np.where(wrong, 0, numbers).astype(np.int64)
    if not problems:
        problems += _lacking(names, labels, called)
    return Numbered(tuple(names), labels, problems=tuple(problems))


def _lacking(names: Sequence[str], labels: Mapping[str, np.ndarray], called: Mapping[str, str]) -> Iterable[str]:
    if len(names) < 2:
        yield f"{called['train']} must be of two classes or more, but are of {len(names)}"
    elif lacked := sorted(set(range(len(names))) - set(labels["train"].tolist())):
        yield (
            f"{called['train']} must have all {len(names)} classes, but lack {shortlist([names[i] for i in lacked])}; "
            "add images, or remove the classes"
        )


def tokens(name: str) -> list[str]:
    """`train_images` as train and images."""
    return [part for part in re.split(r"[^A-Za-z0-9]+", name.lower()) if part]
