"""The transfer methods without torch: names, papers, parameters.

A method is a `torch.nn.Module` in its own file, with its paper and its parameters; importing it takes seconds. `dux
methods` and the check of a study file need only the paper and the parameters. They are read from `catalogue.json`,
which is generated, so that a method remains one file and nothing is written twice:

    python -m trainers.transfer

writes it, and a test fails if it is out of date. (Parameters in separate files would split what belongs together,
twenty times; and a lazily imported `torch` cannot be subclassed.)
"""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, create_model

from spaces.errors import BadInput, known, one_line, shown
from spaces.recipe import Part, Scalar

FILE = Path(__file__).with_name("catalogue.json")

_TYPES: Mapping[str, type[Scalar]] = {"integer": int, "number": float, "string": str, "boolean": bool}
_LIMITS = {"exclusiveMinimum": "gt", "minimum": "ge", "exclusiveMaximum": "lt", "maximum": "le"}
"""JSON schema's names for limits, and pydantic's."""


@cache
def described() -> dict[str, dict[str, Any]]:
    """Every known method by name: `abbreviation`, `paper` and `parameters`, the latter as in a JSON schema."""
    methods: dict[str, dict[str, Any]] = json.loads(FILE.read_bytes())
    return methods


def unknown_method(name: str, names: Iterable[str]) -> BadInput:
    """The error for a method that is neither one of `names` nor a class of the user's."""
    own = "; one of your own is named `package.module:Class`"
    return BadInput(f"`transfer` must be a known method, but got {shown(name)}; {known(names, name)}{own}")


def check_options(method: str, options: Mapping[str, Scalar]) -> None:
    """Check options like the `parse` of a known method, with the same messages, but without returning a value.

    Raises:
        BadInput: an unknown name, or a value out of range.
    """
    model = _model(method)
    try:
        model.model_validate(dict(options))
    except ValidationError as error:
        raise BadInput(one_line(error, model, prefix=method)) from None


@cache
def _model(method: str) -> type[Part]:
    fields: dict[str, Any] = {}
    for name, schema in described()[method]["parameters"].items():
        kind = Literal[*schema["enum"]] if "enum" in schema else _TYPES[schema["type"]]
        limits = {word: schema[key] for key, word in _LIMITS.items() if key in schema}
        fields[name] = (kind, Field(default=schema["default"], **limits))
    return create_model(method, __base__=Part, **fields)
