"""What the kernel says of this process's share of the machine, by files such as it has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.machine import check_loopback, free_memory, oom_kills
from trainers.machine import usable_cpus, usable_memory

HERE = os.sched_getaffinity(0)
QUOTAS: dict[str, tuple[dict[str, str], float]] = {
    "none": ({}, 99),
    "v2, no limit": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, 99),
    "v2": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
    "v2, a part of a CPU more": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "250000 100000\n"}, 2),
    "v2, less than one": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
    "v2, above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "20000 10000\n",
        },
        2,
    ),
    "v2, in a container": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "v1": (
        {
            "proc/self/cgroup": "2:cpu,cpuacct:/a\n0::/\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": "1:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        99,
    ),
    "v1, in a container that shows the path outside": (
        {
            "proc/self/cgroup": "1:cpu:/docker/12ab\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "nonsense": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "much\n"}, 99),
}


MEMORY: dict[str, tuple[dict[str, str], int | None]] = {
    "none": ({}, None),
    "v2, no limit": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, None),
    "v2": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "1000000\n"}, 1_000_000),
    "v2, above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "3000000\n",
            "sys/fs/cgroup/a/memory.max": "2000000\n",
        },
        2_000_000,
    ),
    "v1": (
        {"proc/self/cgroup": "3:memory:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4000000\n"},
        4_000_000,
    ),
    "v1, no limit": (
        {"proc/self/cgroup": "3:memory:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{2**63 - 4096}\n"},
        None,
    ),
}


@pytest.mark.parametrize("group", MEMORY)
def test_the_memory_is_the_machines_or_what_its_control_groups_allow(group: str, tmp_path: Path) -> None:
    files, expected = MEMORY[group]
    machines = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert usable_memory(written(tmp_path, files)) == (expected or machines)


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


FREE: dict[str, tuple[dict[str, str], int | None]] = {
    "nobody says": ({}, None),
    "no limit": ({"proc/meminfo": "MemTotal: 900 kB\nMemAvailable:   500 kB\n"}, 512_000),
    "v2": (
        {
            "proc/meminfo": "MemAvailable: 500 kB\n",
            "proc/self/cgroup": "0::/a\n",
            "sys/fs/cgroup/a/memory.max": "400000\n",
            "sys/fs/cgroup/a/memory.current": "390000\n",
            "sys/fs/cgroup/a/memory.stat": "anon 100000\nfile 290000\ninactive_file 250000\nactive_file 40000\n",
        },
        260_000,
    ),
    "v1, nothing known of files": (
        {
            "proc/self/cgroup": "3:memory:/a\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "400000\n",
            "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "390000\n",
        },
        10_000,
    ),
    "v1": (
        {
            "proc/self/cgroup": "3:memory:/a\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "400000\n",
            "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "390000\n",
            "sys/fs/cgroup/memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 50000\n",
        },
        60_000,
    ),
}


@pytest.mark.parametrize("case", FREE)
def test_memory_is_free_unless_processes_hold_it(case: str, tmp_path: Path) -> None:
    files, expected = FREE[case]
    assert free_memory(written(tmp_path, files)) == expected


@pytest.mark.parametrize("quota", QUOTAS)
def test_no_more_cpus_may_be_used_than_a_control_group_has_time_for(
    quota: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(99)))
    files, cpus = QUOTAS[quota]
    assert usable_cpus(written(tmp_path, files)) == cpus


def test_a_study_uses_the_cpus_that_its_process_may_use(tmp_path: Path) -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "os.cpu_count = lambda: 99\n"
        "from search.study_file import SearchSpec\n"
        "print(SearchSpec().at_a_time, SearchSpec(cpus=2).at_a_time, SearchSpec(concurrent=7).at_a_time)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "7"]
    assert 1 <= usable_cpus() <= len(HERE)


def test_a_trial_may_not_want_more_cpus_than_the_process_may_use(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: wide\nspace: {}\nsearch: {cpus: 2}\n")
    program = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        f"sys.argv = ['dux', 'search', 'study.yaml', '--home', '{tmp_path / 'home'}']\n"
        "import dux; dux.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "dux: `search.cpus` must be at most the 1 that this process may use here, but got 2; lower it, or name a "
        "cluster by --address\n"
    )
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, None),
        ({"proc/vmstat": "pgfault 7\noom_kill 3\n"}, 3),
        ({"proc/vmstat": "pgfault 7\n"}, None),
        ({"proc/vmstat": "oom_kill 3\n", "proc/self/cgroup": "0::/a/b\n"}, 3),
        (
            {
                "proc/vmstat": "oom_kill 3\n",
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.events": "low 0\noom 2\noom_kill 1\noom_group_kill 0\n",
                "sys/fs/cgroup/a/memory.events": "oom_kill 8\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/1234\n0::/\n",
                "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
            },
            5,
        ),
    ],
)
def test_the_kernels_count_is_of_the_control_group_where_it_has_one(
    files: dict[str, str], count: int | None, tmp_path: Path
) -> None:
    assert oom_kills(written(tmp_path, files)) == count


def test_this_machine_is_read_without_a_fault() -> None:
    assert oom_kills() is None or (oom_kills() or 0) >= 0


ALONE = """
import ctypes, errno, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
NETWORK, USER = 0x40000000, 0x10000000
if libc.unshare(NETWORK) and libc.unshare(NETWORK | USER):  # where nobody may have a network of his own
    def unreachable(*_):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")
    socket.socket.connect = unreachable
sys.argv = ["dux", *sys.argv[1:]]
import dux
dux.main()
"""
"""The command, on a machine whose loopback interface is down."""


def test_without_a_loopback_interface_one_line_says_so_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: alone\nspace: {}\n")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, "search", "study.yaml", "--home", str(tmp_path / "home")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "dux: a machine's processes must reach each other at 127.0.0.1, but here they cannot ([Errno 101] Network is "
        "unreachable); start its loopback interface (`ip link set lo up`)\n"
    )
    assert not (tmp_path / "home").exists()


def test_a_machine_with_a_loopback_interface_passes() -> None:
    check_loopback()
