"""The command line. Every command is a call or two of `search.study` and its neighbours."""

import errno
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.locks import told_of_locks
from search.output import WIDTH, NobodyReads, NotWritten, standard_streams
from search.signals import (
    BEGIN_ANEW,
    INTERRUPTED,
    ctrl_c_is_kept,
    if_interrupted,
    is_told,
    raise_if_pressed,
    say_if_interrupted,
    signals_wait,
)
from spaces.errors import BadInput

if TYPE_CHECKING:  # each command imports what it needs, so that none waits for what others need
    from search.front import Bounds, Front
    from search.status import Status
    from search.study import Study

# Typer brings its own click and names only this one of its errors; what we catch is their common base
_ClickException: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="dux",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console(soft_wrap=True) if sys.stdout.isatty() else Console(soft_wrap=True, width=WIDTH)

Home = Annotated[
    Path | None,
    typer.Option(
        envvar="DUX_HOME", help="Folder of studies, teachers and local stores [default: ~/.dux]", show_default=False
    ),
]


def _names(context: typer.Context, incomplete: str) -> list[str]:
    """The studies whose names a shell may complete a word to."""
    from search.home import default_home

    home = context.params.get("home")
    studies = ((home.expanduser() if home else default_home()) / "studies").glob("*/study.json")
    return sorted(name for name in (path.parent.name for path in studies) if name.startswith(incomplete))


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"dux {version('dux-search')}")
        raise typer.Exit


Name = Annotated[str, typer.Argument(metavar="NAME", help="The study's name.", autocompletion=_names)]
Address = Annotated[
    str | None, typer.Option(help="Of a running Ray cluster; without it, this machine computes.", show_default=False)
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what Ray and MLflow say.")]


@app.callback()
def dux(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Searches for the best small students of a trained teacher network."""


@app.command()
def search(
    study_file: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml", help="What to search; `dux init` writes an example.")
    ],
    home: Home = None,
    address: Address = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Instead of the file's search.trials.", show_default=False)
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Instead of the file's search.concurrent.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Instead of the file's search.seed.", show_default=False)
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="NAME", help="An earlier study to learn from.", show_default=False, autocompletion=_names
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Run a study and print its front."""
    from search.study import Study
    from search.study_file import StudyFile

    file = StudyFile.read(study_file)
    given = {"trials": trials, "concurrent": concurrent, "seed": seed, "start_from": start_from}
    changed = file.search.model_copy(update={key: value for key, value in given.items() if value is not None})
    study = Study(file.model_copy(update={"search": changed}), _home(home))
    if study.files.exists:
        study.search()  # says why not
    say_if_interrupted(lambda: _goes_on(study) if study.files.exists else BEGIN_ANEW)
    _run(study.name, lambda display: study.search(address=address, display=display, verbose=verbose), study, verbose)


@app.command()
def resume(
    name: Name,
    home: Home = None,
    address: Address = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="In all, instead of what was asked for: carries a finished study on.", show_default=False
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Go on with a study after any interruption, or carry it on; a finished one is else left as it is."""
    from search.errors import LedgerGone, RecordGone
    from search.study import Study

    study = Study.open(name, _home(home))
    say_if_interrupted(_goes_on(study))
    try:
        stands = study.status()
        asked = stands.standing.trials
        if stands.state == "finished" and trials in (None, asked):
            out.print(f"{name} is finished: {asked} of {asked} trials are done; nothing to resume")
    except LedgerGone:
        out.print(f"the ledger of {name} is not there any more: it is rebuilt from the study's files")
    except RecordGone:
        out.print(f"task.json of {name} is not there any more: it is written anew")
    _run(name, lambda display: study.resume(trials, address=address, display=display, verbose=verbose), study, verbose)


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(help="The study's name; all studies without it.", autocompletion=_names)
    ] = None,
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, and nothing else.")] = False,
) -> None:
    """What runs, what is done, what failed and why."""
    from search.home import ledger_url, shown_database
    from search.lines import grouped
    from search.storage import in_ledger
    from search.study import Study

    where = _home(home)
    if name is None:
        if shown_database():
            in_ledger(ledger_url(where), "")  # one that does not answer is wrong for every study alike
        stand = {each: _stand_of(each, where) for each in Study.names(where)}
        if as_json:
            rows = [
                {"study": study, "state": "unreadable", "why": each} if isinstance(each, str) else each.to_json(study)
                for study, each in stand.items()
            ]
            print(json.dumps(rows, indent=1))
            return
        if not stand:
            out.print(f"no study in {where} yet; begin one with `dux search STUDY.yaml`")
            return
        table = _table("study", "state", "done", "failed", "stopped", "front", "hypervolume")
        for study_name, each in stand.items():
            if isinstance(each, str):
                table.add_row(study_name, "unreadable", *("–" * 5))
                continue
            standing = each.standing
            done = f"{standing.done}/{standing.trials}"
            if repeats := standing.repeats:
                done += f" + {standing.repeated}/{len(repeats)}"
            counts = (str(standing.count("failed")), str(standing.count("stopped")))
            table.add_row(study_name, each.state, done, *counts, *_front_in_brief(standing.front))
        out.print(table)
        for study_name, each in stand.items():
            if isinstance(each, str):
                out.print(f"{study_name}: {each}", markup=False, highlight=False)
        return
    study = Study.open(name, where)
    found = study.status()
    if as_json:
        print(json.dumps(found.to_json(name), indent=1))
        return
    standing = found.standing
    repeats, front = standing.repeats, standing.front
    early = f", {standing.count('stopped')} stopped early" if standing.count("stopped") else ""
    again = f"; {standing.repeated}/{len(repeats)} repeats with other seeds done" if repeats else ""
    badly = f", {standing.repeats_failed} of them failed" if standing.repeats_failed else ""
    breach = f"; {front.broken} more break a constraint" if front and front.broken else ""
    members, volume = _front_in_brief(front)
    out.print(
        f"{name}: {found.state}; {standing.done}/{standing.trials} trials done, "
        f"{standing.count('failed')} of them failed"
        f"{early}{again}{badly}; front of {members}, hypervolume {volume}{breach}"
    )
    for line in standing.of("running"):
        recipe = "" if line.recipe is None else f" {line.recipe.transfer}, width {line.recipe.student.width:g}"
        seed = "" if line.repeat is None else f" (repeat {line.repeat.nth} of trial {line.repeat.of})"
        out.print(f"  trial {line.trial} {'runs:' if found.state == 'running' else 'was cut short:'}{recipe}{seed}")
    for epoch in sorted({line.stopped_at for line in standing.lines if line.stopped_at is not None}):
        trials = ", ".join(str(line.trial) for line in standing.lines if line.stopped_at == epoch)
        out.print(f"  stopped after {epoch} epochs: {trials}")
    retried = [line for line in standing.of("interrupted") if line.reason]
    for what, which in (("failed", standing.of("failed")), ("tried again", retried)):
        for reason, numbers in grouped(which):
            out.print(f"  {what}: {', '.join(map(str, numbers))}: {reason}")
    for remark in found.remarks:
        out.print(f"  {remark}", markup=False, highlight=False)
    if found.refused is not None:
        out.print(f"  {found.refused}")
    if found.state == "interrupted":
        out.print(f"{study.files.command('resume')} goes on")


@app.command()
def front(
    name: Name,
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, and nothing else.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write an interactive page to this file.", show_default=False)
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture to this file.", show_default=False)] = None,
) -> None:
    """The students that no other student of the study beats on every objective."""
    from search.study import Study

    study = Study.open(name, _home(home))
    # the terminal and the picture show no runs, for which MLflow may have to be asked
    found = study.front(study.run_ids(say=_say) if as_json or html is not None else None)
    teacher = study.files.task()["teacher"]
    if html is not None or png is not None:
        say_if_interrupted("interrupted; what is written is whole, and the same command begins anew")
    if as_json:
        print(json.dumps(found.to_json(name), indent=1))
    if html is not None:
        from search.chart import front_html
        from trainers.files import write_whole

        write_whole(html, front_html(found, name, None, teacher))
    if png is not None:
        from search.chart import front_png

        front_png(found, name, png, teacher)
    if as_json:
        return
    for path in (html, png):
        if path is not None:
            out.print(f"wrote {path}")
    if html is None and png is None:
        _print_front(found)


@app.command()
def export(
    name: Name,
    home: Home = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files [default: NAME-export]", show_default=False)
    ] = None,
    minimum: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="NAME=VALUE", help="Least value, as accuracy=0.95.", show_default=False),
    ] = None,
    maximum: Annotated[
        list[str] | None,
        typer.Option("--max", metavar="NAME=VALUE", help="Greatest value, as parameters=50k.", show_default=False),
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="onnx, pt2, or both with a comma.")] = "onnx",
) -> None:
    """Write the best student within bounds, proved to be the one that was measured."""
    from search.errors import ExportRefused
    from search.front import NoStudent, show
    from search.study import Study

    bounds = _bounds(minimum or [], maximum or [])
    study = Study.open(name, _home(home))
    try:
        entry = study.front().select(bounds)
    except NoStudent as error:
        _fail(3, str(error))
    try:
        study.files.check_student(entry)
        entry = replace(entry, run_id=study.run_ids(say=_say).get(entry.trial))  # MLflow takes seconds, too
        from search.export import export as write  # only now: torch takes seconds, which a mistake need not wait for

        where = folder or Path(f"{name}-export")
        say_if_interrupted(f"interrupted; {where} has all files of the export or none; the same command begins anew")
        paths = write(study, entry, where, [part.strip() for part in formats.split(",")])
    except ExportRefused as error:
        _fail(1, f"refused: {error}")
    out.print(f"{entry.called}: " + ", ".join(f"{key} {show(value)}" for key, value in entry.measurements.items()))
    for path in paths:
        out.print(f"wrote {path}")


@app.command()
def check(study_file: Annotated[Path, typer.Argument(metavar="STUDY.yaml")]) -> None:
    """A dry run: one tiny trial from data to ONNX, and an estimate of what the study will cost."""
    from search.progress import duration
    from search.study_file import StudyFile

    file = StudyFile.read(study_file)
    from search.check import check as dry_run  # only now: torch takes seconds, which a mistake need not wait for
    from search.errors import ExportRefused

    try:
        found = dry_run(file)
    except ExportRefused as error:
        _fail(1, str(error))
    for what, seconds in found.steps:
        out.print(f"{seconds:6.1f} s  {what}")
    for line in (*(f"data: {note}" for note in found.notes), *found.diverged):
        out.print(line, markup=False, highlight=False)
    sound = "sound but for that" if found.diverged else "sound"
    repeats = ", repeats" if file.search.seeds > 1 else ""
    if file.remark:
        _say(file.remark)
    out.print(
        f"{file.name} is {sound}; {file.trials} trials will take roughly {duration(found.study_seconds)} at most "
        f"on this machine, start-up{repeats} and stages excluded"
    )


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="As JSON, and nothing else.")] = False) -> None:
    """The transfer methods that can be searched, their parameters, defaults and papers."""
    from trainers.catalogue import described

    found = [_described(name, method) for name, method in described().items()]
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for method in found:
        out.print(
            Text.assemble(
                (method["name"], "bold"),
                f"  {method['abbreviation']}" if method["abbreviation"] != method["name"] else "",
            )
        )
        paper = method["paper"]
        out.print(
            "  " + "; ".join(part for part in (paper["authors"], paper["title"], paper["venue"], paper["link"]) if part)
        )
        for parameter in method["parameters"]:
            out.print(
                f"  {parameter['name']} = {parameter['default']}  ({parameter['range']})  {parameter['description']}"
            )


@app.command()
def delete(
    name: Name,
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Delete its runs in MLflow, too.")] = False,
) -> None:
    """Remove a study: ledger, files, and the teacher and knowledge that no other study uses."""
    from search.removal import check_removable, remove

    where = _home(home)
    there = check_removable(name, where)
    if not yes:
        if not sys.stdin.isatty():
            raise BadInput(
                "a study must be deleted by somebody who was asked, or with --yes, but nobody can be asked here; "
                f"add --yes to delete {there}"
            )
        typer.confirm(f"delete {there}{', and its runs in MLflow' if mlflow else ''}?", abort=True)
    say_if_interrupted(f"interrupted; the same command removes what is left of {name}")
    for line in remove(name, where, with_runs=mlflow):
        out.print(line, markup=False, highlight=False)


@app.command()
def init(
    example: Annotated[str, typer.Option(help="Which: digits, ensembles, fashion_mnist or methods.")] = "digits",
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="[default: EXAMPLE.yaml]", show_default=False)
    ] = None,
) -> None:
    """Write an example of a study file, to be changed."""
    from search.examples import content_of
    from trainers.files import write_whole

    content, path = content_of(example), file or Path(f"{example}.yaml")
    try:
        with signals_wait():
            path.open("xb").close()
            try:
                write_whole(path, content)
            except OSError:
                path.unlink()
                raise
            say_if_interrupted(f"interrupted; {path} is written")
    except FileExistsError:
        raise BadInput(f"a file that exists is not overwritten, but {path} does; name another") from None
    out.print(f"wrote {path}; `dux check {path}` tries it, `dux search {path}` runs it")


@app.command()
def ui(
    name: Annotated[
        str | None, typer.Argument(help="The study whose front the link opens.", autocompletion=_names)
    ] = None,
    home: Home = None,
    port: Annotated[int, typer.Option(help="0 for a free one.")] = 5000,
) -> None:
    """Serve MLflow's user interface for the studies' store, until Ctrl-C."""
    from search.home import check_writable
    from search.mlflow_view import database, make_store, quiet_mlflow, serve, view_path
    from search.secrets import HIDDEN, without_secrets
    from search.study import Study
    from search.tracking import find_runs

    where = _home(home)
    named = [Study.open(name, where)] if name is not None else _sound_ones(where)
    if not named:
        raise BadInput(
            f"a study must exist to be looked at, but there is none yet in {where}; "
            "begin one with `dux search STUDY.yaml`"
        )
    uri = named[0].files.tracking_uri
    local = database(uri) is not None
    if local:
        check_writable(where)
    say_if_interrupted("interrupted; no server is left running, and the same command starts one again")
    if (file := database(uri)) is not None:
        with quiet_mlflow():
            make_store(file)  # seconds, which an interruption need not wait for
    server = None
    with ctrl_c_is_kept():
        try:
            server = serve(uri, port) if local else None
            base = server.url if server is not None else without_secrets(uri).replace(f"{HIDDEN}@", "").rstrip("/")
            for study in named:
                runs = find_runs(study.folder, study.name, uri)
                if runs is not None:
                    out.print(f"{study.name}: {base}/{view_path(runs.experiment_id)}")
            if server is not None:
                out.print(f"serving {base} until Ctrl-C")
                raise_if_pressed()
                server.process.wait()
        except RuntimeError as error:
            _fail(1, str(error))
        finally:
            if server is not None:
                with signals_wait():
                    server.stop()


def main() -> int:
    """Run a command; returns its exit code.

    0 well, 1 refused or out of reach, 2 bad input, 3 no such student, 4 all trials failed, 130 interrupted.
    """
    warnings.simplefilter("ignore")  # other libraries' notes to their developers
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its fonts if HOME cannot be written
    code = 0
    try:
        with standard_streams():
            try:
                with told_of_locks(_say_once("the ledger is locked by another process; waiting")):
                    _command()
            except SystemExit as ended:
                code = int(ended.code or 0)
    except NobodyReads:
        pass
    except NotWritten as error:
        _say(str(error))
        return code or 1
    return code


def _command() -> None:
    """What the command line asks for; not by typer's own way, which has other codes for what goes wrong."""
    try:
        command: Any = typer.main.get_command(app)
        command._main_shell_completion({}, "dux")  # where a shell asks what a word could become
        with command.make_context("dux", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    except BadInput as error:
        _fail(2, str(error))
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            sys.exit(2)
        _fail(
            2,
            f"{error.format_message().rstrip('.')}; `dux --help` shows the commands, "
            "`dux COMMAND --help` their options",
        )
    except KeyboardInterrupt:
        _fail(INTERRUPTED, if_interrupted())
    except (typer.Abort, EOFError):
        _fail(INTERRUPTED, "not confirmed; nothing was done")
    except OSError as error:  # a folder that cannot be written, a disk that is full, a server that does not answer
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = f"{error.filename} cannot be written" if error.filename else "a file could not be written"
            _fail(1, f"{where} ({error.strerror}); make room: {if_interrupted().partition('; ')[2]}")
        _fail(1, str(error))


def _say_once(message: str) -> Callable[[], None]:
    """Puts a line on standard error when it is first called."""
    said: list[str] = []

    def say() -> None:
        if not said:
            said.append(message)
            print(f"dux: {message}", file=sys.stderr, flush=True)

    return say


def _fail(code: int, message: str) -> NoReturn:
    if code == INTERRUPTED:
        is_told()
    _say(message)
    sys.exit(code)


def _say(message: str) -> None:
    print("dux: " + " ".join(message.split()), file=sys.stderr)


def _home(home: Path | None) -> Path:
    from search.home import default_home

    return default_home() if home is None else home.expanduser().absolute()


def _goes_on(study: "Study") -> str:
    return f"interrupted; {study.files.command('resume')} goes on"


def _run(name: str, carry_out: "Callable[[Any], Front]", study: Any, verbose: bool) -> None:
    from search.errors import AllFailed, Interrupted, NotStarted
    from search.progress import Terminal

    try:
        with Terminal(Console(stderr=True), name) as display:
            found = carry_out(display)
    except NotStarted as error:
        _fail(1, str(error))
    except Interrupted as error:
        _fail(INTERRUPTED, str(error))
    except AllFailed as error:
        _fail(4, str(error))
    say_if_interrupted(f"interrupted; the study is finished, and {study.files.command('front')} shows its front")
    _print_front(found)
    out.print(f"the front as a page: {study.folder / 'front.html'}")
    out.print(f"the study in MLflow: {study.files.command('ui')}")


def _print_front(found: "Front") -> None:
    out.print(Text(found.plot(width=min(WIDTH, out.width))))
    out.print()
    out.print(found.table())


def _sound_ones(home: Path) -> "list[Study]":
    """All studies; of those that are damaged a line is said."""
    from search.study import Study

    found = []
    for name in Study.names(home):
        try:
            found.append(Study.open(name, home))
        except BadInput as error:
            _say(str(error))
    return found


def _stand_of(name: str, home: Path) -> "Status | str":
    """How a study stands, or why that cannot be said."""
    from search.storage import NoAnswer
    from search.study import Study

    try:
        return Study.open(name, home).status()
    except NoAnswer:
        raise  # of all studies alike
    except (BadInput, OSError) as error:
        return " ".join(str(error).split())


def _front_in_brief(found: "Front | None") -> tuple[str, str]:
    """How many members, and the hypervolume."""
    return ("0", "–") if found is None else (str(len(found.members)), f"{found.hypervolume:.4f}")


def _bounds(minimum: list[str], maximum: list[str]) -> "Bounds":
    from search.front import parse_bound, shortened

    bounds: dict[str, tuple[Any, float]] = {}
    for side, texts in (("min", minimum), ("max", maximum)):
        for text in texts:
            name, value = parse_bound(text)
            if name in bounds:
                raise BadInput(
                    f"a measurement may have one bound, but {name} has two; "
                    f"drop one of {shortened(bounds[name][1])} and {shortened(value)}"
                )
            bounds[name] = (side, value)
    return bounds


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _described(method: str, catalogued: Mapping[str, Any]) -> dict[str, Any]:
    """A transfer method as `dux methods --json` has it."""
    parameters = []
    for name, limits in catalogued["parameters"].items():
        ends = [f"{sign} {limits[key]:g}" for key, sign in _LIMITS.items() if key in limits]
        allowed = "one of " + ", ".join(map(str, limits["enum"])) if "enum" in limits else " and ".join(ends)
        parameters.append(
            {
                "name": f"{method}.{name}",
                "default": limits["default"],
                "range": allowed or limits.get("type", ""),
                "search": limits.get("search"),
                "description": limits.get("description", ""),
            }
        )
    return {
        "name": method,
        "abbreviation": catalogued["abbreviation"],
        "paper": catalogued["paper"],
        "parameters": parameters,
    }


_LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
