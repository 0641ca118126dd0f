"""The one error that user input can raise, and how pydantic's errors are turned into it."""

import difflib
import itertools
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

KINDS = ("<number>", "<networks>")
"""Tags of a field that takes one of several types: they say which was meant, and are no part of its name."""


class BadInput(ValueError):
    """User input breaks a rule; the message gives the rule, the value and the way out in one line.

    The command line prints the message and exits with code 2; nothing has been started or written by then.

    Args:
        problems: one message or, where several rules are broken at once, one for each.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(map(in_one_line, problems))
        """Each as one line of its own."""
        first, *others = self.problems
        numbered = (f"({number}) {problem}" for number, problem in enumerate(self.problems, 1))
        super().__init__(f"{len(self.problems)} problems: {'; '.join(numbered)}" if others else first)


class Problems:
    """Collects what breaks rules, so that all of it can be told at once.

    problems = Problems()
    with problems.noted():
        first_check()
    with problems.noted():
        second_check()
    problems.check()
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        """Each problem once, in the order of the checks."""

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, a BadInput ends the block, and is noted."""
        try:
            yield
        except BadInput as error:
            self.lines += [line for line in error.problems if line not in self.lines]

    def check(self) -> None:
        """Raise BadInput with all that was noted, if anything was."""
        if self.lines:
            raise BadInput(*self.lines)


def in_one_line(text: str) -> str:
    """The text with control characters escaped: names may contain some."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Brief(reprlib.Repr):
    """A `repr` that reads no more of a value than it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxstring, self.maxother = 3, 20, 20, 200, 200

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{…}"
        parts = [
            f"{self.repr1(key, level - 1)}: {self.repr1(inner, level - 1)}"
            for key, inner in itertools.islice(value.items(), 20)
        ]
        return "{" + ", ".join([*parts, *(["…"] if len(value) > 20 else [])]) + "}"

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if abs(value) < 10**40 else f"a number of {value.bit_length()} bits"


_brief = _Brief()


def shown(value: object, length: int = 80) -> str:
    """`value` as one short line for a message."""
    text = " ".join(_brief.repr(value).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def brief(error: BaseException, length: int = 200) -> str:
    """An error's class and message as one short line for a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]


def known(names: Iterable[str], asked: object) -> str:
    """The way out for an unknown name: a close match first, then all known names."""
    listed = sorted(name[:80] for name in names)
    near = difflib.get_close_matches(str(asked).lower()[:80], [name.lower() for name in listed[:200]], n=1)
    hint = next((f"did you mean `{name}`? " for name in listed if name.lower() in near), "")
    return f"{hint}known: {shown_all(listed)}"


def shown_all(names: Sequence[str]) -> str:
    """Names as a list, at most the first hundred."""
    more = f", and {len(names) - 100} more" if len(names) > 100 else ""
    return ", ".join(name[:80] for name in names[:100]) + more


def number_hint(value: object) -> str:
    """The way out if a string was given instead of a number, true or false."""
    if not isinstance(value, str) or len(value) > 40:
        return ""
    if re.fullmatch(r"[-+]?\d+,\d+", value):
        return f" (a string, because of the comma: write {value.replace(',', '.')})"
    if re.fullmatch(r"[-+]?\d[\d_]*(\.[\d_]*)?", value) and "_" in value:
        return f" (a string, because of the `_`: write {value.replace('_', '')})"
    if re.fullmatch(r"\d+(:\d+)+(\.\d*)?", value):
        return " (a string, because of the colon: write one number)"
    if value.lower() in ("yes", "on", "y", "no", "off", "n"):
        return f" (a string: write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'})"
    if re.fullmatch(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|true|false", value):
        return " (a string: write it without quotes)"
    return ""


def one_line(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """The first error of a pydantic check of `model` as rule, value and way out.

    `prefix` is the model's place in what the user wrote.
    """
    findings = error.errors(include_url=False)
    first = findings[0]
    place = tuple(part for part in first["loc"] if part not in KINDS)
    where = ".".join(str(part)[:80] for part in (*((prefix,) if prefix else ()), *place))
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    owner, field = _field(model, place)
    if first["type"] == "extra_forbidden":
        return f"`{where}` is not a known key; {known(owner.model_fields, place[-1])}{more}"
    if first["type"] == "missing":
        return f"`{where}` must be given, but is missing; add it{more}"
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    default = None if field is None or field.is_required() else field.get_default(call_default_factory=True)
    usual = "its defaults" if isinstance(default, BaseModel) else "the default" if default is None else shown(default)
    way_out = "" if field is None or field.is_required() else f"; leave it out for {usual}"
    if first["type"] == "int_type" and isinstance(first["input"], float):
        way_out += " (a range of whole numbers has a whole `step`)"
    # no hint if a string is wanted: one that looks like a number is fine then
    hint = number_hint(first["input"]) if first["type"] in ("int_type", "float_type", "bool_type") else ""
    return f"`{where}` {rule}, but got {shown(first['input'])}{hint}{way_out}{more}"


def _field(model: type[BaseModel], path: tuple[int | str, ...]) -> tuple[type[BaseModel], Any]:
    """The innermost model that `path` reaches, and its field there (None for an unknown key or the model itself)."""
    field = None
    for part in path:
        field = model.model_fields.get(str(part))
        # a model, or a mapping of names to models
        for inner in () if field is None else (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel) and part != path[-1]:
                model = inner
    return model, field
