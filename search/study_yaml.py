"""YAML as a study file may hold it: of bounded size, numbers by YAML 1.2's rules, and nothing but plain values.

PyYAML reads YAML 1.1, where `1:30` is ninety, `010` is eight, `yes` is true and `1e-3` is a text, and where tags make
objects. Its scanner and composer are used as they are; what a plain scalar means, and how much a file may hold, is
decided here, while the file is read and before anything of it is made.
"""

import itertools
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from spaces import BadInput
from spaces.errors import brief

MOST_BYTES = 100_000
MOST_VALUES = 10_000
"""Keys and values of a file, those that an anchor stands for counted wherever it does."""
MOST_LEVELS = 20
MOST_CHARACTERS = 4_000
"""Of a text; a path is the longest there is a use for."""
MOST_CHARACTERS_OF_A_KEY = 200
MOST_DIGITS = 40
"""Characters of a number."""

_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "tag:yaml.org,2002:float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
_CORE = {
    "tag:yaml.org,2002:null": r"~|null|Null|NULL|",
    "tag:yaml.org,2002:bool": r"true|True|TRUE|false|False|FALSE",
    **_NUMBERS,
    "tag:yaml.org,2002:merge": r"<<",
}
"""YAML 1.2.2, section 10.3.2, and the merge key of YAML 1.1, which everybody has."""


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, in dictionaries, lists, texts, numbers, booleans and None.

    Raises:
        BadInput: the file cannot be read, is not YAML, or holds more than a study file may.
    """
    text = _text(path)
    try:
        return yaml.load(text, Loader=_Loader)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except Exception as error:  # PyYAML raises more than its own errors
        raise BadInput(f"{path} must be YAML, but {brief(error)}; `dux init` writes an example") from None


def _text(path: Path) -> str:
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise BadInput(f"a study file must be a file, but {path} is a folder; name a .yaml file in it")
        if not stat.S_ISREG(kind):  # a pipe would be waited for, and a device has no end
            raise BadInput(f"a study file must be a regular file, but {path} is not; write it to one")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        there = path.parent.glob("*.y*ml") if path.parent.is_dir() else ()
        near = ", ".join(sorted(str(file) for file in there)[:5])
        raise BadInput(
            f"a study file must exist, but {path} does not; {f'there is {near}' if near else 'check the path'}"
        ) from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} must be text in UTF-8, but {brief(error)}; is it a YAML file?") from None
    if len(content) > MOST_BYTES:
        raise BadInput(f"a study file must have at most {MOST_BYTES:,} bytes, but {path} has more; is it a study file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} must be text in UTF-8, but {brief(error)}; is it a YAML file?") from None


class _Loader(yaml.SafeLoader):
    """Counts while it composes; refuses tags, keys that are no single value, and a key that stands twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # none of YAML 1.1's  # noqa: RUF012

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._extents: dict[int, tuple[int, int]] = {}
        """Of each node that is whole, by its id: how many values it holds, itself included, and on how many levels."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = f"line {event.start_mark.line + 1}"
        if getattr(event, "tag", None) is not None:
            raise BadInput(f"values must have no tag, but `{_written_tag(event.tag)}` stands in {line}; leave it out")
        self._level += 1
        self._hold(0, self._level, line)
        node = super().compose_node(parent, index)
        self._level -= 1
        assert node is not None
        if id(node) not in self._extents:
            if isinstance(event, yaml.AliasEvent) and event.anchor:
                raise BadInput(f"an anchor must not hold itself, but `*{event.anchor[:80]}` in {line} does; remove it")
            self._extents[id(node)] = self._extent(node, line)
        values, levels = self._extents[id(node)]
        self._hold(values, self._level + levels, line)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            line = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise BadInput(f"a key must be a string, but a list or a mapping is one in {line}; write a string")
            if len(key.value) > MOST_CHARACTERS_OF_A_KEY:
                raise BadInput(
                    f"a key must have at most {MOST_CHARACTERS_OF_A_KEY} characters, but one in {line} has "
                    f"{len(key.value):,}; shorten it"
                )
            if key.value in seen:  # YAML would take the last and forget the first
                raise BadInput(f"key `{key.value}` appears twice ({line}); write it once")
            seen.add(key.value)
        for (_, number), (key, value) in itertools.pairwise(node.value):
            if key.tag in _NUMBERS and value.value == "" and number.tag in _NUMBERS:  # in {a: 0,5} a comma ends the 0
                raise BadInput(
                    f"a number must have a point and no comma, but `{number.value},{key.value}` stands in line "
                    f"{key.start_mark.line + 1}; write {number.value}.{key.value}"
                )
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        most = MOST_DIGITS if node.tag in _NUMBERS else MOST_CHARACTERS
        if len(node.value) > most:
            what = "a number" if node.tag in _NUMBERS else "a string"
            raise BadInput(
                f"{what} must have at most {most:,} characters, but one in line {node.start_mark.line + 1} has "
                f"{len(node.value):,}; shorten it"
            )
        return node

    def _extent(self, node: yaml.Node, line: str) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1, 0
        children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        values = 1 + sum(self._extents[id(child)][0] for child in children)
        return values, 1 + max((self._extents[id(child)][1] for child in children), default=0)

    def _hold(self, values: int, levels: int, line: str) -> None:
        if levels > MOST_LEVELS:
            raise BadInput(f"values must be nested at most {MOST_LEVELS} deep, but are deeper in {line}; nest fewer")
        if max(values, len(self._extents)) > MOST_VALUES:
            raise BadInput(
                f"a study file must have at most {MOST_VALUES:,} keys and values, anchors written out, but has more "
                f"by {line}; write fewer"
            )


def _written_tag(tag: str) -> str:
    """A tag as it is written."""
    return tag.replace("tag:yaml.org,2002:", "!!")[:80]


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text: str = node.value
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _pattern in _CORE.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), None)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
