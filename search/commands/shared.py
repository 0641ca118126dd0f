"""What the commands share: options, output, and how they end."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from search.output import WIDTH
from search.signals import INTERRUPTED, is_being_reported

out = Console(soft_wrap=True) if sys.stdout.isatty() else Console(soft_wrap=True, width=WIDTH)


def completed_names(context: typer.Context, incomplete: str) -> list[str]:
    """The study names that complete a word, for the shell."""
    from search.home import default_home

    home = context.params.get("home")
    studies = ((home.expanduser() if home else default_home()) / "studies").glob("*/study.json")
    return sorted(name for name in (path.parent.name for path in studies) if name.startswith(incomplete))


Home = Annotated[
    Path | None,
    typer.Option(
        envvar="DUX_HOME", help="Folder of studies, teachers and local stores [default: ~/.dux]", show_default=False
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The study's name.", autocompletion=completed_names)]
Address = Annotated[
    str | None,
    typer.Option(help="Of a running Ray cluster; without it, trials run on this machine.", show_default=False),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the messages of Ray and MLflow.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def home_folder(home: Path | None) -> Path:
    """The home that `--home` names, or the default one."""
    from search.home import default_home

    return default_home() if home is None else home.expanduser().absolute()


def say(message: str) -> None:
    """Print a line on standard error."""
    print("dux: " + " ".join(message.split()), file=sys.stderr)


def say_once(message: str) -> Callable[[], None]:
    """A function that prints a line on standard error the first time it is called."""
    said: list[str] = []

    def say_it() -> None:
        if not said:
            said.append(message)
            print(f"dux: {message}", file=sys.stderr, flush=True)

    return say_it


def fail(code: int, message: str) -> NoReturn:
    """End the command with a line on standard error and an exit code."""
    if code == INTERRUPTED:
        is_being_reported()
    say(message)
    sys.exit(code)


def make_table(*columns: str) -> Table:
    """An empty table whose cells are never truncated."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
