"""The command line: its commands, and how their errors become one line and an exit code."""

import errno
import logging
import sys
import warnings
from typing import Annotated, Any

import typer

from search.commands import look, work
from search.commands.shared import fail, say, say_once
from search.ledger.locks import notified_of_locks
from search.output import NobodyReads, NotWritten, standard_streams
from search.signals import INTERRUPTED, if_interrupted
from spaces.errors import BadInput

# Typer bundles its own click and exports only this one of its errors; we catch their common base
_ClickException: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="dux",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"dux {version('dux-search')}")
        raise typer.Exit


@app.callback()
def dux(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Searches for the best small students of a trained teacher network."""


for _command in (
    work.search,
    work.resume,
    look.status,
    look.front,
    work.export,
    work.check,
    look.methods,
    work.delete,
    work.init,
    look.ui,
):
    app.command()(_command)


def main() -> int:
    """Run a command; returns its exit code.

    0 success, 1 refused or out of reach, 2 bad input, 3 no such student, 4 all trials failed, 130 interrupted.
    """
    warnings.simplefilter("ignore")  # libraries' notes to developers
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it says where it puts its fonts if HOME is read-only
    code = 0
    try:
        with standard_streams():
            try:
                with notified_of_locks(say_once("the ledger is locked by another process; waiting")):
                    _run_command()
            except SystemExit as ended:
                code = int(ended.code or 0)
    except NobodyReads:
        pass
    except NotWritten as error:
        say(str(error))
        return code or 1
    return code


def _run_command() -> None:
    """Run what the command line asks for; not through typer's own runner, which has other exit codes for errors."""
    try:
        command: Any = typer.main.get_command(app)
        command._main_shell_completion({}, "dux")  # if a shell asks for completions
        with command.make_context("dux", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    except BadInput as error:
        fail(2, str(error))
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            sys.exit(2)
        fail(
            2,
            f"{error.format_message().rstrip('.')}; `dux --help` shows the commands, "
            "`dux COMMAND --help` their options",
        )
    except KeyboardInterrupt:
        fail(INTERRUPTED, if_interrupted())
    except (typer.Abort, EOFError):
        fail(INTERRUPTED, "not confirmed; nothing was done")
    except OSError as error:  # a read-only folder, a full disk, a server that does not answer
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = f"{error.filename} cannot be written" if error.filename else "a file could not be written"
            fail(1, f"{where} ({error.strerror}); make room, then {if_interrupted().partition('; ')[2]}")
        fail(1, str(error))
