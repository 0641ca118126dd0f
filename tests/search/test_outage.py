"""MLflow that is slow, in error, killed in the middle of a write, back again, or too old: nothing is lost or doubled.

Before a real server stands a proxy that fails requests as a test wishes: a 500 before or after the server has carried
the request out, a 404 for what an older server does not know, a kill of the server while it has the request, and all
that proxies and servers which are no MLflow answer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from processes import TASK, Command
from running import HERE, Finished, Said, Stand, but_waiting, wait_for
from test_tracking import contents, keep, models, run_trial, start, steps, tracking

from search.progress import Terminal
from search.study import Study
from search.tracking.events import FrontChanged, FrontMembers, StudyFinished, TrialReported, TrialStarted
from search.tracking.mlflow_runs import find_runs
from search.tracking.spool import Refused
from search.tracking.tracker import Tracker

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"), pytest.mark.timeout(900)]


HTML, JSON = "text/html", "application/json"
FALSE_ANSWERS: dict[str, tuple[int, bytes, str]] = {
    **{
        f"html {status}": (status, b"<html>no</html>", HTML) for status in (400, 401, 403, 404, 413, 422, 429, 502, 503)
    },
    **{f"nothing {status}": (status, b"", "text/plain") for status in (200, 204, 400, 404)},
    "html 200": (200, b"<html>log in here</html>", HTML),
    "json 200": (200, b'{"status": "ok"}', JSON),
    "list 200": (200, b"[]", JSON),
    "torn 200": (200, b'{"run": {"info": {"run_', JSON),
    "json 400": (400, b'{"error": "bad request"}', JSON),
    "code 400": (400, b'{"error_code": 400, "message": "bad request"}', JSON),
    "word 400": (400, b'{"error_code": "BAD_INPUT", "message": "bad request"}', JSON),
    "bare 400": (400, b'{"error_code": "INVALID_PARAMETER_VALUE"}', JSON),
    "another server's 404": (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}', JSON),
    "torn 400": (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "mess', JSON),
}
"""What is answered by something that is not MLflow: status, content, type."""
FAULTS = [*FALSE_ANSWERS, "login", "reset", "short"]


@pytest.fixture(autouse=True)
def tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.tracking.tracker._FIRST_WAIT_S", 0.05)


class Proxy:
    """Passes requests on to a server, unless told otherwise.

    Attributes:
        rule: asked at every request, by method and path, what to do: "pass"; "error" (500, not passed on); "lost" (500
            after the server has done it); "unknown" (404); "kill" (`killed` while the server has the request); one of
            FAULTS: a false answer, a redirection to a login page, a connection that is cut before the answer or in it.
        version: what it says that MLflow's is; "" for what the server says.
        delay_s: before each request.
    """

    def __init__(self, target: str, killer: Callable[[], None] = lambda: None) -> None:
        self.rule: Callable[[str, str], str] = lambda method, path: "pass"
        self.delay_s = 0.0
        self.version = ""
        self.told: Counter[str] = Counter()
        """How often which rule held."""
        self._lock = threading.Lock()
        where = urlsplit(target)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                time.sleep(proxy.delay_s)
                with proxy._lock:
                    what = proxy.rule(self.command, self.path.partition("?")[0])
                    proxy.told[what] += 1
                if self.path == "/version" and proxy.version:
                    self.say(200, proxy.version.encode(), "text/plain")
                    return
                if self.path == "/login":
                    self.say(200, b"<html>log in here</html>")
                    return
                if what in FALSE_ANSWERS:
                    self.say(*FALSE_ANSWERS[what])
                    return
                if what == "login":
                    self.send_response(302)
                    self.send_header("Location", "/login")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if what in ("reset", "short"):
                    if what == "short":
                        self.wfile.write(
                            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
                        )
                    self.close_connection = True
                    return
                if what in ("error", "unknown"):
                    self.say({"error": 500, "unknown": 404}[what], b"<html>the proxy says no</html>")
                    return
                server = HTTPConnection(where.hostname or "", where.port, timeout=60)
                try:
                    headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                    server.request(self.command, self.path, body, headers)
                    if what == "kill":
                        killer()
                    answer = server.getresponse()
                    content = answer.read()
                except (OSError, HTTPException):
                    self.say(502, b"<html>nobody answers</html>")
                    return
                finally:
                    server.close()
                if what == "lost":
                    self.say(500, b"<html>the answer is lost</html>")
                else:
                    self.say(answer.status, content, answer.getheader("Content-Type") or "text/plain")

            def say(self, status: int, content: bytes, kind: str = "text/html") -> None:
                with suppress(OSError):  # whoever asked has gone
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *what: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def before(stand: Stand) -> Iterator[Proxy]:
    proxy = Proxy(stand.url, stand.kill)
    try:
        yield proxy
    finally:
        proxy.close()


def without_ids(uri: str, study: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What two stores that were told the same have in common."""
    text = json.dumps([contents(uri, study), models(uri, study)], sort_keys=True)
    text = re.sub(r"\b(m-)?[0-9a-f]{32}\b", "ID", text)
    runs, logged = json.loads(text)
    for model in logged.values():
        for name in ("creation_timestamp", "artifact_location", "experiment_id", "status_message"):
            del model[name]
    return runs, logged


def test_every_kind_of_request_may_be_refused_once_and_its_answer_lost_once(
    tmp_path: Path, stand: Stand, empty_store: Path
) -> None:
    seen: Counter[str] = Counter()

    def rule(method: str, path: str) -> str:
        kind = f"{method} {re.sub(r'(m-)?[0-9a-f]{32}.*', 'ID', path)}"
        seen[kind] += 1
        return {1: "lost", 2: "error"}.get(seen[kind], "pass")

    with before(stand) as proxy:
        proxy.rule = rule
        with tracking(tmp_path, proxy.url, "flaky") as tracker:
            run_study_on(tracker, tmp_path)
            wait_for(lambda: tracker.flush(1.0) == 0, "MLflow to have everything", 120)
        proxy.rule = lambda method, path: "pass"
        assert proxy.told["lost"] >= 12  # experiments, runs, batches, inputs, outputs, models, files, ...
        assert proxy.told["error"] >= 10
        assert not (tmp_path / "spool.refused.jsonl").exists()
        stored = without_ids(stand.url, "flaky")
        plain = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'plain.db')}"
        with tracking(tmp_path, plain, "flaky") as tracker:  # the same spool, to a store that never failed
            assert tracker.flush(60.0) == 0, tracker.last_error
        assert stored == without_ids(plain, "flaky")


def run_study_on(tracker: Tracker, folder: Path) -> None:
    """What `run_study` tells, to a tracker that may fail."""
    start(tracker)
    for trial in range(3):
        run_trial(tracker, folder, trial)
        tracker.record(FrontChanged(trial + 1, 0.25 * trial, trial + 1))
        tracker.record(FrontMembers([trial, 0]))
    for trial in (0, 2):
        keep(tracker, folder, trial)
    artifacts = [folder / "trials" / "0" / "recipe.json"]
    tracker.record(StudyFinished("FINISHED", artifacts, [{"trial": 0, "accuracy": 0.75}]))


def test_whatever_mlflow_did_not_say_is_an_outage_and_is_tried_again(tmp_path: Path, stand: Stand) -> None:
    hit: set[str] = set()

    def once(fault: str, paths: str) -> Callable[[str, str], str]:
        left = [fault]

        def rule(method: str, path: str) -> str:
            if not left or method == "GET" or not re.search(paths, path):
                return "pass"
            hit.add(f"{fault} {paths}")
            return left.pop()

        return rule

    asked = {  # PUT answers nothing where all is well: whether the file is there is looked up
        "runs/create": ["html 400", "json 200", "list 200", "login", "torn 200"],
        "mlflow-artifacts/": ["html 200", "html 413", "nothing 200", "json 400"],
    }
    with before(stand) as proxy, tracking(tmp_path, proxy.url, "false") as tracker:
        proxy.rule = once("html 404", "logged-models/search")
        start(tracker)
        assert tracker.flush(60.0) == 0, tracker.last_error
        trial = 0
        for path, faults in asked.items():
            for fault in faults:
                proxy.rule = once(fault, path)
                run_trial(tracker, tmp_path, trial)
                assert tracker.flush(60.0) == 0, (path, fault, tracker.last_error)
                trial += 1
        keep(tracker, tmp_path, 0)
        assert tracker.flush(60.0) == 0, tracker.last_error
        for step, fault in enumerate(FAULTS):
            proxy.rule = once(fault, "runs/log-batch")
            tracker.record(TrialReported(0, 4 + step, {"epoch.accuracy": step}))
            assert tracker.flush(60.0) == 0, (fault, tracker.last_error)
        proxy.rule = lambda method, path: "pass"
    assert len(hit) == 1 + sum(map(len, asked.values())) + len(FAULTS)
    assert not (tmp_path / "spool.refused.jsonl").exists()
    stored = contents(stand.url, "false")
    assert set(stored) == {"tags", ""} | {f"/{n}" for n in range(trial)}
    assert [step for step, _ in steps(stored["/0"]["points"]["epoch.accuracy"])] == [4 + n for n in range(len(FAULTS))]
    for n in range(trial):
        run = stored[f"/{n}"]
        assert run["status"] == "FINISHED"
        assert run["params"]["seed"] == "0"
        assert [context for context, _ in run["data"]] == ["training", "validation"]
        assert (len(run["models in"]), run["files"]) == (1, ["student/recipe.json"])
        assert len(run["points"]["accuracy"]) == 4
        assert run["tags"]["dux.why"] == "done"
    assert set(models(stand.store, "false")) == {"teacher", "0"}


def test_a_web_server_that_is_no_mlflow_is_an_outage(tmp_path: Path, stand: Stand) -> None:
    with before(stand) as proxy, tracking(tmp_path, proxy.url, "other") as tracker:
        start(tracker)
        for answer in ("html 200", "html 404", "json 200"):
            proxy.rule = lambda method, path, answer=answer: answer  # type: ignore[misc]
            assert tracker.flush(1.0) == 3
            assert "something that is not MLflow" in str(tracker.last_error)
        proxy.rule = lambda method, path: "pass"
        assert tracker.flush(60.0) == 0, tracker.last_error
    assert not (tmp_path / "spool.refused.jsonl").exists()


def test_a_server_before_mlflow_3_has_all_but_the_models(tmp_path: Path, stand: Stand) -> None:
    with before(stand) as proxy:
        proxy.version = "2.22.0"
        proxy.rule = lambda method, path: "unknown" if "logged-models" in path else "pass"
        with tracking(tmp_path, proxy.url, "old") as tracker:
            run_study_on(tracker, tmp_path)
            assert tracker.flush(60.0) == 0, tracker.last_error
    refused = [json.loads(line) for line in (tmp_path / "spool.refused.jsonl").read_text().splitlines()]
    assert [json.loads(item["line"])["event"] for item in refused] == ["teacher_measured"] + ["student_kept"] * 2
    assert all("older than MLflow 3" in item["why"] for item in refused)
    assert str(Refused.of(tmp_path)) == (
        "MLflow refused 3 events for good, the first: teacher_measured: MLflow refuses an event: it is older than "
        f"MLflow 3, and has no logged models; see {tmp_path / 'spool.refused.jsonl'}"
    )
    stored = contents(stand.url, "old")
    assert set(stored) == {"tags", "", "/0", "/1", "/2"}
    assert stored[""]["status"] == "FINISHED"
    assert set(stored[""]["points"]) >= {"teacher.accuracy", "teacher.parameters", "hypervolume"}
    assert stored["/1"]["data"] == [("training", "d1"), ("validation", "d2")]
    assert models(stand.store, "old") == {}


def test_a_404_for_everything_is_an_outage_and_not_an_old_server(tmp_path: Path, stand: Stand) -> None:
    with before(stand) as proxy:
        proxy.rule = lambda method, path: "unknown"  # as of a proxy whose server is away
        with tracking(tmp_path, proxy.url, "away") as tracker:
            start(tracker)
            assert tracker.flush(1.0) == 3
            proxy.rule = lambda method, path: "pass"
            assert tracker.flush(60.0) == 0, tracker.last_error
    assert not (tmp_path / "spool.refused.jsonl").exists()
    assert set(models(stand.store, "away")) == {"teacher"}


@pytest.fixture
def again(finished: Finished, tmp_path: Path) -> Study:
    """The tiny study in a home of its own, finished, its MLflow somewhere else."""
    shutil.copytree(finished.home / "studies", tmp_path / "home" / "studies")
    shutil.copy(finished.home / "ledger.db", tmp_path / "home")
    return Study.open("tiny", tmp_path / "home")


@pytest.fixture
def hung() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hung_mlflow_is_waited_for_as_long_as_is_said_and_gets_the_rest_later(
    again: Study, hung: str, stand: Stand, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", hung)
    monkeypatch.setattr("search.reporting.FLUSH_S", 2.7)
    monkeypatch.setattr("search.reporting.SILENT_S", 0.5)
    began = time.monotonic()
    code, out, err = dux("resume", "tiny", "--home", again.home)
    assert time.monotonic() - began < 20
    waits, rest = err.splitlines()
    go_on = f"`dux resume tiny --home {again.home}` sends the rest"
    assert re.fullmatch(
        rf"dux: waiting at most 2 s for MLflow \({hung}\), which has not accepted \d+ events yet; "
        rf"Ctrl-C ends the wait, and {re.escape(go_on)}",
        waits,
    )
    assert re.fullmatch(rf"dux: MLflow has not accepted \d+ events \(it does not answer\); {re.escape(go_on)}", rest)
    assert (code, "students on the front" in out) == (0, True)

    monkeypatch.setattr("search.reporting.FLUSH_S", 300.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stand.url)
    monkeypatch.setattr("search.reporting.SILENT_S", 300.0)
    code, _, err = dux("resume", "tiny", "--home", again.home)
    assert (code, err) == (0, "")
    stored = contents(stand.url, "tiny")
    assert stored[""]["status"] == "FINISHED"
    members = json.loads((again.folder / "front.json").read_text())["members"]
    assert [member["mlflow_run_id"] for member in members] == [stored[f"/{m['trial']}"]["id"] for m in members]
    told = (again.folder / "spool.jsonl").read_bytes()
    assert dux("resume", "tiny", "--home", again.home)[0] == 0
    assert (again.folder / "spool.jsonl").read_bytes() == told


def test_ctrl_c_ends_the_waiting_for_mlflow_at_once(
    again: Study, hung: str, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", hung)
    pressed: list[float] = []

    class Impatient(Terminal):
        def say(self, line: str) -> None:
            super().say(line)
            assert line.startswith("waiting at most 4")
            threading.Timer(0.5, press).start()

    def press() -> None:
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("search.reporting.SILENT_S", 0.5)
    monkeypatch.setattr("search.progress.Terminal", Impatient)
    code, _, err = dux("resume", "tiny", "--home", again.home)
    assert time.monotonic() - pressed[0] < 5
    assert code == 130
    assert re.fullmatch(
        r"dux: stopped waiting; all trials are done, but MLflow has not accepted \d+ events \(it does not answer\); "
        r"`dux resume tiny .*` sends the rest",
        err.splitlines()[-1],
    )


def test_nobody_who_looks_waits_long_for_a_hung_mlflow(
    again: Study, hung: str, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", hung)
    monkeypatch.setattr(Study.run_ids, "__defaults__", (0.5, *(Study.run_ids.__defaults__ or ())[1:]))
    monkeypatch.setattr(find_runs, "__defaults__", (0.5,))
    silence = f"dux: MLflow does not answer: nothing came from {hung} in 0.5 s"
    left_out = f"{silence}; the MLflow runs of students are left out\n"
    code, out, err = dux("front", "tiny", "--home", again.home)
    assert (code, "students on the front" in out, err) == (0, True, "")  # which shows no runs
    code, out, err = dux("front", "tiny", "--home", again.home, "--json")
    assert (code, json.loads(out)["members"][0]["mlflow_run_id"], err) == (0, None, left_out)
    code, out, err = dux("export", "tiny", "--home", again.home, "--format", "pt2", "--out", tmp_path / "out")
    assert (code, "wrote" in out, err) == (0, True, left_out)
    assert dux("ui", "tiny", "--home", again.home) == (1, "", f"{silence}\n")


def test_what_mlflow_refuses_is_told_at_the_end_and_by_status(
    again: Study, empty_store: Path, dux: Callable[..., Said]
) -> None:
    shutil.copy(empty_store, again.home)
    with tracking(again.folder, again.files.tracking_uri, "tiny") as tracker:
        tracker.record(TrialStarted(0, {"student.width": "another"}))  # MLflow lets no parameter change
        assert tracker.flush(60.0) == 0, tracker.last_error
    code, _, err = dux("resume", "tiny", "--home", again.home)
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("dux: MLflow refused 1 event for good: trial_started of trial 0: MLflow refuses an event: ")
    assert f"see {again.folder / 'spool.refused.jsonl'}\n" in err
    assert f"  {err.removeprefix('dux: ')}" in dux("status", "tiny", "--home", again.home)[1]
    said = json.loads(dux("status", "tiny", "--home", again.home, "--json")[1])
    assert said["refused_by_mlflow"] == 1
    assert said["first_refused"] in err


STUDY = f"""
name: steady
{TASK}
space:
  student.width: {{low: 0.0625, high: 0.5, step: 0.0625}}
  pruning.fraction: 0.5
  pruning.fine_tune_epochs: 1
  training.epochs: 2
  training.batch_size: 16
search: {{trials: 8, sampler: grid, concurrent: 1, curve: false}}
"""


def test_a_study_goes_on_while_its_server_is_slow_killed_in_mid_write_and_back_with_errors(
    tmp_path: Path, stand: Stand
) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    home = tmp_path / "home"
    with before(stand) as proxy:
        proxy.delay_s = 0.05
        here: dict[str, Any] = {"program": HERE, "settings": {"MLFLOW_TRACKING_URI": proxy.url}}
        command = Command(tmp_path, "search", "study.yaml", "--home", str(home), **here)
        try:

            def finished() -> list[Any]:
                client = MlflowClient(tracking_uri=stand.store)
                experiment = client.get_experiment_by_name("dux-steady")
                runs = [] if experiment is None else client.search_runs([experiment.experiment_id])
                return [r for r in runs if r.info.status == "FINISHED" and r.data.tags["dux.role"] == "trial"]

            wait_for(lambda: bool(finished()) or not command.running, "the first trial in MLflow")
            assert command.running, command.err
            study = Study.open("steady", home)

            def kill_at_the_next_write(method: str, path: str) -> str:
                if path.endswith("runs/log-batch") and not proxy.told["kill"]:
                    return "kill"
                return "pass"

            proxy.rule = kill_at_the_next_write
            wait_for(lambda: proxy.told["kill"] > 0 or not command.running, "a write to be cut short")
            assert command.running, command.err
            done = sum(line.counts for line in study.lines())
            wait_for(lambda: sum(line.counts for line in study.lines()) > done or not command.running, "a trial")
            errors = iter(["error", "lost"])
            command.process.send_signal(signal.SIGSTOP)  # however long the server takes, the study is not over by then
            stand.start()
            proxy.rule = lambda method, path: next(errors, "pass")
            command.process.send_signal(signal.SIGCONT)
            wait_for(lambda: not command.running, "the end")
        finally:
            if command.running:
                command.kill()
    assert (command.process.returncode, but_waiting(command.err)) == (0, "")
    assert proxy.told["error"] == proxy.told["lost"] == 1
    assert proxy.told["kill"] == 1
    assert not (study.folder / "spool.refused.jsonl").exists()
    assert (
        json.loads((study.folder / "spool.sent").read_text())["offset"] == (study.folder / "spool.jsonl").stat().st_size
    )

    stored = contents(stand.url, "steady")  # fails where a run is there twice
    lines = study.lines()
    assert set(stored) == {"tags", ""} | {f"/{line.trial}" for line in lines}
    assert stored[""]["status"] == "FINISHED"
    for line in lines:
        run = stored[f"/{line.trial}"]
        assert (line.outcome, run["status"]) == ("complete", "FINISHED")
        assert sorted(step for step, _, _ in run["points"]["epoch.accuracy"]) == [1, 2, 3]
        for name, value in line.measurements.items():
            assert [float(point[1]) for point in run["points"][name]] == [value]
        assert [context for context, _ in run["data"]] == ["training", "validation"]
        assert run["files"] == [
            f"student/{name}" for name in ("recipe.json", "result.json", "student.json", "student.safetensors")
        ]
    members = {str(entry.trial) for entry in study.front().non_dominated}
    assert set(models(stand.store, "steady")) == members | {"teacher"}
    assert {
        name[1:] for name, run in stored.items() if name.startswith("/") and run["tags"]["dux.pareto"] == "true"
    } == members
    steps = sorted(step for step, _, _ in stored[""]["points"]["hypervolume"])
    assert steps == list(range(1, len(lines) + 1))
