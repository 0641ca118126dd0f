"""A running Ray cluster, joined by a study that later loses it; and the cluster file."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from processes import environment
from running import Said, wait_for

from search.backends.cluster import Watch
from search.nodes import files_of
from search.study import Study
from search.study_file import StudyFile

ROOT = Path(__file__).parents[2]

STUDY = """
name: there
task: {dataset: digits, augment: none, train_limit: 200, teacher: {depth: 8, width: 0.25, epochs: 1}}
space:
  student.width: {low: 0.125, high: 0.25, step: 0.125}
  transfer: [none, kd]
  pruning.fraction: 0.5
  pruning.fine_tune_epochs: 1
  training.epochs: 30
search: {trials: 2, concurrent: 2}
"""
ENVIRONMENT = environment() | {"RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray head of its own with token authentication, as `ray_cluster.yaml` starts one; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # a short path: Ray puts sockets under it, whose names may have 107 bytes
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        log = Path(scratch) / "head.log"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        command += ["--num-cpus=2", f"--temp-dir={scratch}/ray", "--disable-usage-stats", "--include-dashboard=false"]
        # without a token nothing can join; Ray makes one in the user's home if it is not there
        subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"],
            env=ENVIRONMENT,
            check=True,
            capture_output=True,
        )
        with log.open("wb") as output:
            head = subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=output, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while "block forever" not in log.read_text():
                assert head.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield f"127.0.0.1:{port}"
        finally:
            head.send_signal(signal.SIGTERM)  # in block mode it ends what it started
            try:
                head.wait(30)
            finally:
                if head.poll() is None:
                    os.killpg(head.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Path]) -> Path:
    """The home of the study."""
    return new_home(tmp_path_factory.mktemp("there"))


def dux_on(cluster: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dux", *arguments, "--address", cluster]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_study_runs_on_a_running_cluster_and_leaves_it_running(cluster: str, there: Path) -> None:
    file = there.parent / "there.yaml"
    file.write_text(STUDY)
    with dux_on(cluster, "search", str(file), "--home", str(there)) as study:
        out, err = study.communicate(timeout=400)
    assert study.returncode == 0, out + err
    trials = there / "studies" / "there" / "trials"
    assert sorted(folder.name for folder in trials.iterdir()) == ["0", "1"]
    assert all((folder / "student.safetensors").is_file() for folder in trials.iterdir())
    host, _, port = cluster.partition(":")
    with socket.create_connection((host, int(port)), timeout=5):
        pass  # the cluster is still there: it is not ours to end


def test_a_file_that_a_machine_of_the_cluster_lacks_is_named(cluster: str, tmp_path: Path) -> None:
    here = tmp_path / "here.pt2"
    here.touch()
    program = f"""
from pathlib import Path
from search.backends import remote
from search.backends.cluster import cluster
from search.nodes import check_visible
from spaces import BadInput

with cluster({cluster!r}, cpus=0, gpus=0.0, store_bytes=0, verbose=False):
    check_visible([Path({str(here)!r})])
    try:
        check_visible([Path("/nowhere/a.pt2"), Path({str(here)!r}), Path("/nowhere/b.py")])
    except BadInput as error:
        print(*error.problems, sep="\\n")
    remote._START_S = 1e-4
    try:
        check_visible([Path("/nowhere/a.pt2")])
    except BadInput as error:
        print(error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *lines, slow = done.stdout.splitlines()
    assert len(lines) == 2
    assert slow.startswith("every machine of the cluster must start a worker within 0 s, but ")
    for line, name in zip(lines, ("a.pt2", "b.py"), strict=True):
        assert line.startswith(f"workers must find /nowhere/{name} on every machine of the cluster, but it is not on ")


def test_what_workers_open_is_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").touch()
    (tmp_path / "branches_of_nobody.py").write_text("def make(width, num_classes, in_channels): ...\n")
    study = {
        "name": "there",
        "task": {"teacher": {"members": [{"network": "net.pt2"}, {"network": "torchvision:resnet18"}]}},
        "space": {"student.family": ["resnet", "branches_of_nobody:make"]},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        file = StudyFile.from_mapping(study, tmp_path)
        assert files_of(file) == [tmp_path / "branches_of_nobody.py", tmp_path / "net.pt2"]


def test_a_study_whose_clusters_head_is_gone_ends_in_one_line_and_goes_on_elsewhere(
    cluster: str, there: Path, dux_here: Callable[..., Said]
) -> None:
    # after the other tests of the cluster: there is none any more
    lines = Study.open("there", there).lines
    assert [line.outcome for line in lines() if line.counts] == ["complete"] * 2
    with dux_on(cluster, "resume", "there", "--trials", "4", "--home", str(there)) as study:
        try:
            wait_for(lambda: any(line.outcome == "running" for line in lines()) or study.poll() is not None, "a trial")
            assert study.poll() is None
            for server in processes("gcs_server", cluster.rpartition(":")[2]):
                os.kill(server, signal.SIGKILL)
            out, err = study.communicate(timeout=120)
        finally:
            study.kill()
    assert (study.returncode, out) == (130, "")
    assert err.strip() == (
        "dux: stopped, because the head of the Ray cluster does not answer any more; "
        f"`dux resume there --home {there}` continues"
    )
    code, _, err = dux_here("resume", "there", "--home", there)
    assert code == 0, err
    assert dux_here("status", "there", "--home", there)[1].startswith("there: finished; 4/4 trials done")


def test_a_death_is_not_reported_once_the_study_itself_has_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.backends.cluster.ray_is_dead", lambda *programs: True)
    monkeypatch.setattr("search.backends.cluster.SILENCE_S", 0.0)
    monkeypatch.setattr("search.backends.cluster._LOOK_S", 0.0)
    reported: list[str] = []
    Watch(reported.append).head()
    assert reported == ["the head of the Ray cluster does not answer any more"]

    watch = Watch(reported.append)

    def meanwhile(*programs: str) -> bool:
        watch.end()  # the study's own thread, between this look and the report
        return True

    monkeypatch.setattr("search.backends.cluster.ray_is_dead", meanwhile)
    watch.head()
    assert len(reported) == 1


def processes(name: str, argument: str) -> list[int]:
    """Those of a program that were given an argument with this in it."""
    listed = subprocess.run(["ps", "-wweo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    commands = [line.split() for line in listed.splitlines()]
    ids = [
        int(pid)
        for pid, program, *rest in commands
        if program.endswith(name) and any(argument in word for word in rest)
    ]
    assert ids
    return ids


def test_the_cluster_file_passes_rays_own_validation() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))
    validate_config(config)
    starts = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert starts
    assert all("RAY_AUTH_MODE=token" in command for command in starts), "a cluster without a token runs anybody's code"
