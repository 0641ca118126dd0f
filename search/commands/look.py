"""The commands that show studies and methods, and change nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from search.commands.shared import AsJson, Home, Name, completed_names, fail, home_folder, make_table, out, say
from search.output import WIDTH
from search.signals import catch_ctrl_c, raise_if_pressed, say_if_interrupted, signals_wait
from spaces.errors import BadInput

if TYPE_CHECKING:  # each command imports only what it needs, so that none waits for the others' imports
    from search.fronts.front import Front
    from search.status import Status
    from search.study import Study


def status(
    name: Annotated[
        str | None,
        typer.Argument(help="The study's name; without it, all studies are shown.", autocompletion=completed_names),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show what is running, what is done, what failed and why."""
    from search.home import ledger_url, shown_database
    from search.ledger.storage import in_ledger
    from search.study import Study

    where = home_folder(home)
    if name is not None:
        study = Study.open(name, where)
        stand = study.status()
        if as_json:
            print(json.dumps(stand.to_json(name), indent=1))
        else:
            _print_status(study, stand)
        return
    if shown_database():
        in_ledger(ledger_url(where), "")  # a database that does not answer is a problem of all studies
    stands = {each: _stand_of(each, where) for each in Study.names(where)}
    if as_json:
        rows = [
            {"study": study_name, "state": "unreadable", "why": each}
            if isinstance(each, str)
            else each.to_json(study_name)
            for study_name, each in stands.items()
        ]
        print(json.dumps(rows, indent=1))
    elif not stands:
        out.print(f"no study in {where} yet; start one with `dux search STUDY.yaml`")
    else:
        _print_all(stands)


def _stand_of(name: str, home: Path) -> "Status | str":
    """A study's status, or why it cannot be read."""
    from search.ledger.storage import NoAnswer
    from search.study import Study

    try:
        return Study.open(name, home).status()
    except NoAnswer:
        raise  # a problem of all studies
    except (BadInput, OSError) as error:
        return " ".join(str(error).split())


def _print_all(stands: "Mapping[str, Status | str]") -> None:
    table = make_table("study", "state", "done", "failed", "stopped", "front", "hypervolume")
    for name, stand in stands.items():
        if isinstance(stand, str):
            table.add_row(name, "unreadable", *("–" * 5))
            continue
        standing = stand.standing
        done = f"{standing.done}/{standing.trials}"
        if repeats := standing.repeats:
            done += f" + {standing.repeated}/{len(repeats)}"
        counts = (str(standing.count("failed")), str(standing.count("stopped")))
        table.add_row(name, stand.state, done, *counts, *_front_in_brief(standing.front))
    out.print(table)
    for name, stand in stands.items():
        if isinstance(stand, str):
            out.print(f"{name}: {stand}", markup=False, highlight=False)


def _print_status(study: "Study", stand: "Status") -> None:
    from search.ledger.lines import grouped

    standing = stand.standing
    repeats, front = standing.repeats, standing.front
    early = f", {standing.count('stopped')} stopped early" if standing.count("stopped") else ""
    again = f"; {standing.repeated}/{len(repeats)} repeats with other seeds done" if repeats else ""
    badly = f", {standing.repeats_failed} of them failed" if standing.repeats_failed else ""
    breach = f"; {front.broken} more break a constraint" if front and front.broken else ""
    students, volume = _front_in_brief(front)
    out.print(
        f"{study.name}: {stand.state}; {standing.done}/{standing.trials} trials done, "
        f"{standing.count('failed')} of them failed{early}{again}{badly}; "
        f"front of {students}, hypervolume {volume}{breach}"
    )
    for line in standing.of("running"):
        recipe = "" if line.recipe is None else f" {line.recipe.transfer}, width {line.recipe.student.width:g}"
        seed = "" if line.repeat is None else f" (repeat {line.repeat.nth} of trial {line.repeat.of})"
        out.print(
            f"  trial {line.trial} {'is running:' if stand.state == 'running' else 'was cut short:'}{recipe}{seed}"
        )
    for epoch in sorted({line.stopped_at for line in standing.lines if line.stopped_at is not None}):
        trials = ", ".join(str(line.trial) for line in standing.lines if line.stopped_at == epoch)
        out.print(f"  stopped after {epoch} epochs: {trials}")
    retried = [line for line in standing.of("interrupted") if line.reason]
    for what, which in (("failed", standing.of("failed")), ("retried", retried)):
        for reason, numbers in grouped(which):
            out.print(f"  {what}: {', '.join(map(str, numbers))}: {reason}")
    for remark in stand.remarks:
        out.print(f"  {remark}", markup=False, highlight=False)
    if stand.refused is not None:
        out.print(f"  {stand.refused}")
    if stand.state == "interrupted":
        out.print(f"{study.files.command('resume')} continues")


def _front_in_brief(front: "Front | None") -> tuple[str, str]:
    """How many students, and the hypervolume."""
    return ("0", "–") if front is None else (str(len(front.non_dominated)), f"{front.hypervolume:.4f}")


def front(
    name: Name,
    home: Home = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(help="Write an interactive page to this file.", show_default=False)
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture to this file.", show_default=False)] = None,
) -> None:
    """Show the students that no other student of the study beats on every objective."""
    from search.study import Study

    study = Study.open(name, home_folder(home))
    # the terminal and the picture show no runs, so MLflow need not be asked
    students = study.front(study.run_ids(say=say) if as_json or html is not None else None)
    teacher = study.files.task()["teacher"]
    if html is not None or png is not None:
        say_if_interrupted("interrupted; files already written are complete; run the same command again")
    if as_json:
        print(json.dumps(students.to_json(name), indent=1))
    if html is not None:
        from search.fronts.page import front_html
        from trainers.files import write_whole

        write_whole(html, front_html(students, name, None, teacher))
    if png is not None:
        from search.fronts.png import front_png

        front_png(students, name, png, teacher)
    if as_json:
        return
    for path in (html, png):
        if path is not None:
            out.print(f"wrote {path}")
    if html is None and png is None:
        print_front(students)


def print_front(students: "Front") -> None:
    """Show a front as a plot and a table."""
    from search.fronts.plot import plot
    from search.fronts.tables import front_table

    out.print(Text(plot(students, width=min(WIDTH, out.width))))
    out.print()
    out.print(front_table(students))
    if line := students.chosen_from():
        out.print(Text(line))


def methods(as_json: AsJson = False) -> None:
    """List the transfer methods, their parameters, defaults and papers."""
    from trainers.catalogue import described

    rows = [_described(name, method) for name, method in described().items()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for method in rows:
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


_LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


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


def ui(
    name: Annotated[
        str | None, typer.Argument(help="The study whose front the link opens.", autocompletion=completed_names)
    ] = None,
    home: Home = None,
    port: Annotated[int, typer.Option(help="0 for a free one.")] = 5000,
) -> None:
    """Serve MLflow's user interface for the studies' store, until Ctrl-C."""
    from search.home import check_writable
    from search.secrets import HIDDEN, without_secrets
    from search.study import Study
    from search.tracking.mlflow_runs import find_runs
    from search.tracking.mlflow_view import database, make_store, quiet_mlflow, serve, view_path

    where = home_folder(home)
    studies = [Study.open(name, where)] if name is not None else _sound_ones(where)
    if not studies:
        raise BadInput(
            f"a study must exist to be shown, but there is none yet in {where}; start one with `dux search STUDY.yaml`"
        )
    uri = studies[0].files.tracking_uri
    file = database(uri)
    if file is not None:
        check_writable(where)
    say_if_interrupted("interrupted; no server is left running; run the same command to start one again")
    if file is not None:
        with quiet_mlflow():
            make_store(file)  # takes seconds, which an interruption need not wait for
    server = None
    with catch_ctrl_c():
        try:
            server = None if file is None else serve(uri, port)
            base = server.url if server is not None else without_secrets(uri).replace(f"{HIDDEN}@", "").rstrip("/")
            for study in studies:
                runs = find_runs(study.folder, study.name, uri)
                if runs is not None:
                    out.print(f"{study.name}: {base}/{view_path(runs.experiment_id)}")
            if server is not None:
                out.print(f"serving {base} until Ctrl-C")
                raise_if_pressed()
                server.process.wait()
        except RuntimeError as error:
            fail(1, str(error))
        finally:
            if server is not None:
                with signals_wait():
                    server.stop()


def _sound_ones(home: Path) -> "list[Study]":
    """All intact studies; a damaged one is reported in a line."""
    from search.study import Study

    sound = []
    for name in Study.names(home):
        try:
            sound.append(Study.open(name, home))
        except BadInput as error:
            say(str(error))
    return sound
