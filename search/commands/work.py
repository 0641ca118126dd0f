"""The commands that carry studies out, and that write or remove files."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from search.commands.look import print_front
from search.commands.shared import Address, Home, Name, Verbose, completed_names, fail, home_folder, out, say
from search.formats import DEFAULT, FORMATS
from search.signals import BEGIN_ANEW, INTERRUPTED, say_if_interrupted, signals_wait
from spaces.errors import BadInput

if TYPE_CHECKING:  # each command imports what it needs, so that none waits for what others need
    from search.fronts.front import Front
    from search.study import Study


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
            "--from",
            metavar="NAME",
            help="An earlier study to learn from.",
            show_default=False,
            autocompletion=completed_names,
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
    study = Study(file.model_copy(update={"search": changed}), home_folder(home))
    if study.files.exists:
        study.search()  # says why not
    say_if_interrupted(lambda: _goes_on(study) if study.files.exists else BEGIN_ANEW)
    _carry_out(study, lambda display: study.search(address=address, display=display, verbose=verbose))


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

    study = Study.open(name, home_folder(home))
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
    _carry_out(study, lambda display: study.resume(trials, address=address, display=display, verbose=verbose))


def _goes_on(study: "Study") -> str:
    return f"interrupted; {study.files.command('resume')} goes on"


def _carry_out(study: "Study", run: "Callable[[Any], Front]") -> None:
    from search.errors import AllFailed, Interrupted, NotStarted
    from search.progress import Terminal

    try:
        with Terminal(Console(stderr=True), study.name) as display:
            students = run(display)
    except NotStarted as error:
        fail(1, str(error))
    except Interrupted as error:
        fail(INTERRUPTED, str(error))
    except AllFailed as error:
        fail(4, str(error))
    say_if_interrupted(f"interrupted; the study is finished, and {study.files.command('front')} shows its front")
    print_front(students)
    out.print(f"the front as a page: {study.folder / 'front.html'}")
    out.print(f"the study in MLflow: {study.files.command('ui')}")


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
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"{', '.join(FORMATS)}, or {'both' if len(FORMATS) == 2 else 'several'} with a comma.",
        ),
    ] = DEFAULT.name,
) -> None:
    """Write the best student within bounds, proved to be the one that was measured."""
    from search.errors import ExportRefused
    from search.fronts.quantities import show
    from search.fronts.selection import NoStudent, parse_bounds, select
    from search.study import Study

    bounds = parse_bounds(minimum or [], maximum or [])
    study = Study.open(name, home_folder(home))
    try:
        entry = select(study.front(), bounds)
    except NoStudent as error:
        fail(3, str(error))
    try:
        study.files.check_student(entry)
        entry = replace(entry, run_id=study.run_ids(say=say).get(entry.trial))  # MLflow takes seconds, too
        from search.export import export as write  # only now: torch takes seconds, which a mistake need not wait for

        where = folder or Path(f"{name}-export")
        say_if_interrupted(f"interrupted; {where} has all files of the export or none; the same command begins anew")
        paths = write(study, entry, where, [part.strip() for part in formats.split(",")])
    except ExportRefused as error:
        fail(1, f"refused: {error}")
    out.print(f"{entry.called}: " + ", ".join(f"{key} {show(value)}" for key, value in entry.measurements.items()))
    for path in paths:
        out.print(f"wrote {path}")


def check(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.yaml")], home: Home = None, address: Address = None
) -> None:
    from search.study_file import StudyFile

    file = StudyFile.read(study_file)
    from search.check import check as dry_run  # only now: torch takes seconds, which a mistake need not wait for
    from search.errors import ExportRefused

    try:
        checked = dry_run(file, home=home_folder(home), address=address)
    except ExportRefused as error:
        fail(1, str(error))
    for what, seconds in checked.steps:
        out.print(f"{seconds:6.1f} s  {what}")
    needed = checked.needs.lines() if checked.needs else []
    for line in (*checked.notes, *needed, *checked.diverged):
        out.print(line, markup=False, highlight=False)
    if checked.problems:
        for problem in checked.problems:
            say(problem)
        sys.exit(2)
    from search.progress import duration

    sound = "sound but for that" if checked.diverged else "sound"
    repeats = ", repeats" if file.search.seeds > 1 else ""
    if file.remark:
        say(file.remark)
    out.print(
        f"{file.name} is {sound}; {file.trials} trials will take roughly {duration(checked.study_seconds)} at most "
        f"on this machine, start-up{repeats} and stages excluded"
    )


check.__doc__ = f"A dry run: the study in small, from data to {DEFAULT.title}; all its problems, and what it will cost."


def delete(
    name: Name,
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Delete its runs in MLflow, too.")] = False,
) -> None:
    """Remove a study: ledger, files, and the teacher and knowledge that no other study uses."""
    from search.removal import check_removable, remove

    where = home_folder(home)
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


def init(
    example: Annotated[str, typer.Option(help="Which: digits, ensembles, fashion_mnist or methods.")] = "digits",
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="[default: EXAMPLE.yaml]", show_default=False)
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="Of your own: torchvision:NAME, timm:NAME, package.module:Class, a .pt2 file, models:/NAME/VERSION.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Its weights, a file; or DEFAULT.", show_default=False)] = None,
    data: Annotated[str | None, typer.Option(help="The folder of its images.", show_default=False)] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Side to which images are scaled.", show_default=False)
    ] = None,
) -> None:
    """Write a study file to begin with: an example, or one for a network of your own."""
    from search.examples import content_of, study_of
    from trainers.files import write_whole

    path = file or Path(f"{example}.yaml" if network is None and data is None else "mine.yaml")
    if network is None and data is None:
        if weights is not None or image_size is not None:
            raise BadInput("`--weights` and `--image-size` must be of a network of yours; add `--network` and `--data`")
        content = content_of(example)
    else:
        network = network or _asked("--network", "the network (torchvision:NAME, timm:NAME or package.module:Class)")
        data = data or _asked("--data", "the folder of its images")
        content = study_of(path, network, weights, data, image_size)
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


def _asked(option: str, what: str) -> str:
    """What the user answers, where somebody can be asked."""
    if not sys.stdin.isatty():
        raise BadInput(f"{what} must be named, but nobody can be asked here; add `{option}`")
    answer: str = typer.prompt(what)
    return answer
