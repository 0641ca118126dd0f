"""MLflow as Dux uses it: its settings, its stores, the shared view of a front, and a server for a local store.

The view is an experiment tag holding JSON; MLflow's UI opens it by its key. The fields are those that MLflow 3.17
reads, found by trial in a browser (tests/search/test_mlflow_view.py repeats that).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from filelock import FileLock

from search.guard import Guard
from search.machine import check_loopback
from search.secrets import sqlite_url, without_secrets
from spaces.errors import BadInput
from trainers.metrics import METRICS

VIEW_TAG = "mlflow.sharedViewState.dux"
PARETO_TAG = "dux.pareto"
"""Tag of a trial's run: "true" if its student is on the front, else "false"."""


_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # The spool does the retrying. MLflow's own retries would block a call for minutes, and repeat a "create run" whose
    # answer was lost, which makes a second run; the spool's next attempt looks for the run first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Environment variables that MLflow reads; one that is set already keeps its value."""


def view_path(experiment_id: str) -> str:
    """The link to the front, relative to the server's address and a slash."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey=dux&compareRunsMode=CHART"


def log10_name(measurement: str) -> str | None:
    """The name of a measurement's logarithm in MLflow, whose axes are all linear; None if it is not logged."""
    return f"log10_{measurement}" if measurement in METRICS and METRICS[measurement].scale == "log" else None


_SECTION = {
    "name": "Front",
    "display": True,
    "columns": 2,
    "cardHeight": 480,
    "isReordered": False,
    "deleted": False,
    "isGenerated": False,
}


def view_state(objectives: Mapping[str, str], parameters: Sequence[str]) -> str:
    """The value of `VIEW_TAG`: which charts show a study's front, and how its table is ordered.

    A scatter plot of the first two objectives (x: the second, y: the first, sizes by their logarithms; left out if
    there is only one) is next to parallel coordinates over `parameters` and every objective, coloured by the first
    objective. MLflow loads 100 runs into its charts: the front's members come first, then the most recent others.

    Args:
        objectives: measurement -> "max" or "min", the most important first.
        parameters: the names of all parameters of the study's space.
    """
    first, *others = objectives
    section = "dux-front"
    common = {"runsCountToCompare": 100, "metricSectionId": section, "deleted": False, "isGenerated": False}

    def axis(objective: str) -> dict[str, str]:
        key = log10_name(objective) or objective
        return {"key": key, "type": "METRIC", "dataAccessKey": key}

    charts: list[dict[str, Any]] = []
    if others:
        charts.append(
            common | {"uuid": "dux-scatter", "type": "SCATTER", "xaxis": axis(others[0]), "yaxis": axis(first)}
        )
    charts.append(
        common
        | {
            "uuid": "dux-parallel",
            "type": "PARALLEL",
            "showAllRuns": True,
            "selectedParams": list(parameters),
            "selectedMetrics": [*others, first],  # MLflow colours by the last one
        }
    )
    return json.dumps(
        {
            "compareRunCharts": charts,
            "compareRunSections": [{"uuid": section, **_SECTION}],
            "runsHiddenMode": "SHOW_ALL",
            "hideEmptyCharts": False,
            "searchFilter": "tags.`dux.role` = 'trial'",
            # the charts show the first 100 runs of the table; this order puts the front among them
            "orderByKey": f"tags.`{PARETO_TAG}`",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "selectedColumns": [f"metrics.`{name}`" for name in objectives]
            + [f"params.`{name}`" for name in parameters],
        }
    )


def database(tracking_uri: str) -> Path | None:
    """The file of a SQLite store, None for a server's address; these are the only two kinds of tracking URI.

    Raises:
        BadInput: any other kind, or a relative path (workers have other working folders than the driver).
    """
    if tracking_uri.startswith(("http://", "https://")):
        with suppress(ValueError):  # an address that cannot be parsed
            if urlsplit(tracking_uri).hostname:
                return None
    path = Path(unquote(tracking_uri.removeprefix("sqlite:///").partition("?")[0]))
    if not tracking_uri.startswith("sqlite:///") or not path.is_absolute():
        raise BadInput(
            f"the tracking URI must be sqlite:////absolute/path.db or an MLflow server's http(s)://host:port, but got "
            f"{without_secrets(tracking_uri)}; for another database start `mlflow server` on it and give its address"
        )
    return path


def quiet_mlflow() -> AbstractContextManager[None]:
    """Imports MLflow (seconds) with our settings; inside, MLflow's messages in this thread are dropped.

    Unless the user has set MLFLOW_LOGGING_LEVEL: then they want to see them.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.utils.logging_utils import suppress_logs_in_thread

    quiet: AbstractContextManager[None] = suppress_logs_in_thread()
    return nullcontext() if "MLFLOW_LOGGING_LEVEL" in os.environ else quiet


def make_store(file: Path) -> None:
    """Create a SQLite store if there is none; safe if several processes do so at once, or are killed meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if not file.exists():
            from mlflow import MlflowClient  # takes seconds, which other callers need not wait for

            # created elsewhere and moved: MLflow never opens a file again whose tables a kill left incomplete
            fresh = file.with_name(f".{file.name}.new")
            fresh.unlink(missing_ok=True)
            fresh.touch(mode=0o600)
            MlflowClient(tracking_uri=sqlite_url(fresh)).search_experiments(max_results=1)
            remove_stray_folder(sqlite_url(fresh))
            fresh.replace(file)


def remove_stray_folder(tracking_uri: str) -> None:
    """Remove the empty folder that MLflow creates if a path has `?` or `%`: it takes the URL's escapes literally."""
    stray = Path(tracking_uri.removeprefix("sqlite:///").partition("?")[0]).parent
    with suppress(OSError):  # not empty: it is the user's
        while unquote(str(stray)) != str(stray):
            stray.rmdir()
            stray = stray.parent


def artifacts_of(database: Path) -> Path:
    """The folder of the files logged to a SQLite store."""
    return database.parent / "mlflow-artifacts"


@dataclass(frozen=True)
class Server:
    """An MLflow server that we started, and its address."""

    url: str
    process: subprocess.Popen[bytes]
    guard: Guard
    """Ends it with this process."""
    tracking_uri: str

    def stop(self) -> None:
        """Ends the server with all its processes; safe to call twice."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)  # it leads its own process group, with its workers
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10.0)
        self.guard.close()
        self.process.wait()
        remove_stray_folder(self.tracking_uri)  # made anew at the first request


def serve(tracking_uri: str, port: int = 0, timeout_s: float = 180.0) -> Server:
    """Serves MLflow's UI for a SQLite store on 127.0.0.1; returns once it answers (about 10 s).

    Args:
        tracking_uri: `sqlite:////absolute/path.db`; a missing file is created.
        port: 0 for a free one.
        timeout_s: how long it may take to answer.

    Raises:
        BadInput: a store that has its own server, a port that is taken, or a machine without a loopback interface.
        RuntimeError: the server ended or did not answer in time; the message has its last output.
    """
    file = database(tracking_uri)
    if file is None:
        raise BadInput(
            f"a store to serve must be sqlite:////…, but {without_secrets(tracking_uri)} is a server; open it"
        )
    check_loopback()
    server_port = _free_port(port)
    with quiet_mlflow():
        make_store(file)
    artifacts_of(file).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(server_port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    command += ["--backend-store-uri", tracking_uri, "--artifacts-destination", str(artifacts_of(file))]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    guard = Guard()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            env={**os.environ, **settings, **guard.environment, "PYTHONSAFEPATH": "1"},
            cwd="/",  # Python and uvicorn would import modules from the current folder
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        server = Server(f"http://127.0.0.1:{server_port}", process, guard, tracking_uri)
        try:
            deadline = time.monotonic() + timeout_s
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(OSError), urlopen(f"{server.url}/health", timeout=5.0):
                    remove_stray_folder(tracking_uri)
                    return server
                time.sleep(0.1)
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the MLflow server for {file} does not answer: {' '.join(last) or 'it said nothing'}")
        except BaseException:
            server.stop()
            raise


def _free_port(port: int) -> int:
    """`port` or, for 0, any free port; raises BadInput if it is taken."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            raise BadInput(f"the port must be free, but {port} is taken; give another one, or 0 for any") from None
        free: int = listener.getsockname()[1]
        return free
