"""Study files that nobody meant: each is read, or is one line, in no time, and nothing is run or written.

Files are made from the examples and from one that names every parameter: values are replaced, keys are removed,
doubled, renamed and moved, lines and bytes are spoilt. `FUZZ_SEED` and `FUZZ_COUNT` make others.
"""

import contextlib
import copy
import io
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import environment

import trainers.transfer  # noqa: F401, takes seconds, which are not the file's
from search.study_file import StudyFile
from spaces import BadInput, Recipe
from spaces.recipe import RECIPE_NAMES

ROOT = Path(__file__).parents[2]
SEED, COUNT = int(os.environ.get("FUZZ_SEED", "0")), int(os.environ.get("FUZZ_COUNT", "500"))
ON_THE_COMMAND_LINE = 12
MOST_S = 2.0

EVERYTHING: dict[str, Any] = {
    "name": "everything",
    "task": {
        "dataset": "digits",
        "augment": "none",
        "train_limit": 500,
        "teacher": {
            **{"family": "resnet", "depth": 8, "width": 0.25, "epochs": 2, "batch_size": 32, "learning_rate": 0.1},
            **{"weight_decay": 5e-4, "members": 2, "seed": 1, "threads": 1},
        },
    },
    "space": {
        **{name: [value] for name, value in Recipe().flat().items()},
        "student.family": ["resnet", "mlp"],
        "student.depth": [8, 14],
        "student.width": {"low": 0.125, "high": 1.0, "log": True},
        "transfer": ["none", "kd", "factor", "ensemble", "dkd"],
        "kd.temperature": {"low": 1, "high": 8},
        "kd.weight": 0.5,
        "factor.rate": [0.5, 1.0],
        "training.epochs": {"low": 1, "high": 9, "step": 2},
        "pruning.fraction": {"low": 0.0, "high": 0.9, "step": 0.1},
        "pruning.rounds": [1, 3],
        "seed": {"low": 0, "high": 99},
    },
    "objectives": {"accuracy": "max", "parameters": "min", "nll": "min"},
    "constraints": {"parameters": {"max": "200k"}, "accuracy": {"min": 0.5}},
    "search": {
        **{"trials": 8, "concurrent": 1, "sampler": "nsga2", "seed": 3, "seeds": 2, "curve": False, "retries": 1},
        **{"first": [{"transfer": "kd", "kd.temperature": 2.0}], "trial_timeout": 60, "checkpoint_seconds": 1},
        **{"stopping": "pareto", "min_epochs": 3, "reduction": 3, "cpus": 1, "gpus": 0},
    },
}

CODE = ("os:abort", "os:_exit", "builtins:breakpoint", "subprocess:run", "sys:exit", "dux:main", "search.cli:main")
WRITTEN = r"""
~
null
true
yes
NaN
.nan
.inf
-.inf
1e999
-1e999
1e-999
5e-324
1e308
0x10
0o17
010
-0
-1
0
1
2
9
302
6002
6000002
0.1
0.5
1.5
1e-9
1_000
0,5
1:30
1000000
2147483648
10000000000000000
1000000000000000000000000000000
2001-01-01
2001-01-01 00:00:00Z
!!timestamp x
!!binary aGVsbG8=
!!python/object/apply:os.abort []
!!set {a, b}
!!int a
!local 1
&a [*a]
*nowhere
a
none
kd
mlp
min
max
50k
1e3k
nank
[]
{}
[[]]
[{}]
[~]
[1, 1]
[1, 1.0, true]
[[[[[[]]]]]]
{a: {b: {c: {d: 1}}}}
[1, 2, 3]
[1, a, true, 0.5, null]
{1: 2}
{"": 1}
{low: 1}
{low: a, high: 2}
{low: [1], high: {}}
{min: x}
{min: 2, max: 1}
{low: 1, high: 2, step: 1, log: true}
{low: 8, high: 6002, step: 6}
{low: 2, high: 10000}
{low: 1, high: 1000000000000000}
{low: 0.0, high: 1.0, step: 0.00001}
{low: 0, high: 1, step: 1e-9}
{low: 1, high: 1000, step: 0}
{low: 1, high: .nan}
{low: 0, high: 1e308, log: true}
{low: 5e-324, high: 1, log: true}
{low: 1, high: 1}
{low: 0.5, high: 0,7}
"\0"
"\n"
"\x1b[2J"
"\ud800"
'😀'
'../../etc'
'/'
'.'
é
? a
- b
@
`
%
%s{0}
"""
LONG = (
    *("9" * 39, "9" * 400, "-" + "9" * 400, "0x" + "f" * 300, "x" * 5000, "'" + "é" * 300 + "'", "|\n  a\n  b"),
    *("[" * 500, "{a: " * 300, "[" + "1, " * 3000 + "1]", "{" + ", ".join(f"k{n}: {n}" for n in range(3000)) + "}"),
    *("[" + ", ".join(f"{n:0>190}" for n in range(400)) + "]", str([*range(1001)])),
)
RAW = (*WRITTEN.split("\n"), *LONG, *CODE, *(f"[none, '{code}']" for code in CODE))
"""Values as they are written."""
KEYS = (
    *("name", "task", "space", "search", "low", "high", "teacher", "transfer"),
    *("x-a", "", "<<", "kd.", ".", "a.b.c", "__class__", *RECIPE_NAMES),
)


ENDS = (":", " #", "\t", " - a", ", ]", "}", "'", '"', " &a", " *a", " !!str", "\x07", "\u2028", "\r")


def parsed() -> Iterator[Any]:
    for raw in RAW:
        if raw.startswith("&"):
            continue  # it holds itself
        with contextlib.suppress(yaml.YAMLError, AttributeError, ValueError, RecursionError):
            yield yaml.safe_load(raw)


VALUES = (*parsed(), 10**30, "\x00", {"low": 1, "high": float("inf")})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a study."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from places(inner, (*path, key))


def change(study: dict[str, Any], chance: random.Random) -> None:
    """Change one value or key of a study."""
    path = chance.choice([*places(study)] or [("name",)])
    parent: Any = study
    for key in path[:-1]:
        parent = parent[key]
    what = chance.randrange(6)
    if what == 0:
        parent.pop(path[-1])
    elif what == 1 and isinstance(parent, dict):
        parent[chance.choice(KEYS)] = parent.pop(path[-1], None)
    elif what == 2:
        study[chance.choice(KEYS)] = copy.deepcopy(parent[path[-1]])
    elif what == 3:
        other = chance.choice([*places(study)])
        source: Any = study
        for key in other:
            source = source[key]
        parent[path[-1]] = copy.deepcopy(source)
    elif isinstance(parent, dict | list):
        parent[path[-1]] = copy.deepcopy(chance.choice(VALUES))


def spoil(text: str, chance: random.Random) -> bytes:
    """Change the text of a study file."""
    lines = text.split("\n")
    place = chance.randrange(len(lines))
    what = chance.randrange(10)
    if what < 4:
        key, colon, _ = lines[place].partition(":")
        lines[place] = f"{key}{colon} {chance.choice(RAW)}"
    elif what == 4:
        lines.insert(place, lines[chance.randrange(len(lines))])
    elif what == 5:
        lines[place] = " " * chance.randrange(9) + lines[place].lstrip()
    elif what == 6:
        lines[place] += chance.choice(ENDS)
    elif what == 7:
        del lines[place:]
    elif what == 8:
        lines *= chance.choice((2, 40, 4000 // len(lines) + 1))
    content = "\n".join(lines).encode(errors="surrogatepass")
    if what == 9 and content:
        spoilt = bytearray(content)
        for _ in range(chance.choice((1, 3, 30))):
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
        return bytes(spoilt[: chance.choice((len(spoilt), chance.randrange(len(spoilt))))])
    return content


def files(seed: int, count: int) -> Iterator[bytes]:
    bases = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "examples").glob("*.yaml"))] + [EVERYTHING] * 3
    for number in range(count):
        chance = random.Random(f"{seed}/{number}")
        study = copy.deepcopy(chance.choice(bases))
        for _ in range(chance.choice((0, 1, 1, 1, 2, 5))):
            with contextlib.suppress(LookupError, TypeError):
                change(study, chance)
        flow = chance.choice((None, False, True))
        text = yaml.safe_dump(study, allow_unicode=True, sort_keys=False, default_flow_style=flow)
        content = text.encode(errors="surrogatepass")
        for _ in range(chance.choice((0, 0, 0, 1, 1, 2))):
            content = spoil(content.decode(errors="replace"), chance)
        yield content


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path / "files")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path / "files" / "study.yaml"


def test_a_file_that_nobody_meant_is_read_or_refused_at_once(place: Path) -> None:
    wrong, sound = [], 0
    for number, content in enumerate(files(SEED, COUNT)):
        place.write_bytes(content)
        said = io.StringIO()
        began = time.process_time()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                StudyFile.read(place)
            sound += 1
        except BadInput as error:
            if "\n" in str(error) or len(str(error)) > 5000:
                wrong.append((number, f"not a line: {str(error)[:300]!r}"))
        except BaseException as error:
            wrong.append((number, f"{type(error).__name__}: {str(error)[:200]}"))
        if (seconds := time.process_time() - began) > MOST_S:
            wrong.append((number, f"{seconds:.1f} s"))
        if said.getvalue():
            wrong.append((number, f"said {said.getvalue()[:100]!r}"))
    assert not wrong, f"FUZZ_SEED={SEED}: {wrong[:20]}"
    assert [path.name for path in place.parent.iterdir()] == ["study.yaml"]
    assert COUNT // 50 < sound < COUNT // 2, f"FUZZ_SEED={SEED}"  # else they are too far from study files, or too near


def test_on_the_command_line_too(place: Path) -> None:
    for number, content in enumerate(files(SEED + 1, 40 * ON_THE_COMMAND_LINE)):
        place.write_bytes(content)
        with contextlib.suppress(BadInput):
            StudyFile.read(place)
            continue  # it is sound, and would be carried out
        place.rename(place.with_name(f"{number}.yaml"))
        if number and len([*place.parent.iterdir()]) == ON_THE_COMMAND_LINE:
            break
    paths = sorted(place.parent.glob("[0-9]*.yaml"))
    assert len(paths) == ON_THE_COMMAND_LINE
    place.unlink(missing_ok=True)
    home = place.parents[1] / "home"
    waiting = list(enumerate(paths))
    while waiting:  # two at a time
        running = []
        for number, path in (waiting.pop() for _ in range(min(2, len(waiting)))):
            command = ["search", str(path), "--home", str(home)] if number % 3 else ["check", str(path)]
            start = [sys.executable, "-m", "dux", *command]
            running.append((path, subprocess.Popen(start, stdout=-1, stderr=-1, text=True, env=environment())))
        for path, process in running:
            out, err = process.communicate(timeout=120)
            assert (process.returncode, out) == (2, ""), (path.read_bytes()[:2000], err)
            assert err.startswith("dux: ")
            assert err.count("\n") == 1, err
    assert not home.exists()
    assert sorted(place.parent.iterdir()) == paths
