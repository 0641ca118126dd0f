"""The one error a user's input can raise, and how pydantic's findings are put into it."""

import difflib
import re
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


class BadInput(ValueError):
    """What the user gave breaks a rule; the message says the rule, the value and the way out in one line.

    The command line prints the message and exits with code 2; nothing has been started or written by then.
    """


def shown(value: object, length: int = 80) -> str:
    """`value` as one short line for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def known(names: Iterable[str], asked: object) -> str:
    """The way out when a name is unknown: the near match first, then all known names."""
    listed = sorted(names)
    near = difflib.get_close_matches(str(asked).lower(), [name.lower() for name in listed], n=1)
    hint = next((f"did you mean `{name}`? " for name in listed if name.lower() in near), "")
    return f"{hint}known: {', '.join(listed)}"


def number_hint(value: object) -> str:
    """The way out where YAML 1.1 took a number for a text: it wants a point before the exponent, and a sign in it."""
    found = re.fullmatch(r"([+-]?\d+)(\.\d*)?e([+-]?)(\d+)", value.lower()) if isinstance(value, str) else None
    if found is None:
        return ""
    whole, part, sign, exponent = found.groups()
    return (
        f" (which YAML reads as a text: write {whole}{part if part and part != '.' else '.0'}e{sign or '+'}{exponent})"
    )


def one_line(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """The first finding of a pydantic check of `model` as rule, value and way out.

    `prefix` is where the model stands in what the user wrote.
    """
    findings = error.errors(include_url=False)
    first = findings[0]
    where = ".".join(str(part) for part in (*((prefix,) if prefix else ()), *first["loc"]))
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    owner, field = _field(model, first["loc"])
    if first["type"] == "extra_forbidden":
        return f"`{where}` is not a known key; {known(owner.model_fields, first['loc'][-1])}{more}"
    if first["type"] == "missing":
        return f"`{where}` must be given, but is not there; add it{more}"
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    way_out = "" if field is None or field.is_required() else f"; leave it out for {shown(field.default)}"
    if first["type"] == "int_type" and isinstance(first["input"], float):
        way_out += " (a range of whole numbers has a whole `step`)"
    return f"`{where}` {rule}, but got {shown(first['input'])}{number_hint(first['input'])}{way_out}{more}"


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
