"""What the kernel says about this process's share of the machine."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """How many CPUs this process may use, at least one: those it may run on (`taskset`, a batch system), up to the
    whole number that its control groups allow (a container's `--cpus`).

    Args:
        root: of the file system; tests pass their own.
    """
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cpus = os.cpu_count() or 1
    for file in group_files(root, "cpu", "cpu.max", "cpu.cfs_quota_us"):
        with suppress(OSError, ValueError):
            quota, *period = file.read_text().split()
            if not period:
                period = [file.with_name("cpu.cfs_period_us").read_text()]
            if quota not in ("max", "-1"):
                cpus = min(cpus, int(quota) // int(period[0]))
    return max(1, cpus)


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use: the machine's, and no more than its control groups allow.

    Args:
        root: of the file system; tests pass their own.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in group_files(root, "memory", "memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or "max"
            memory = min(memory, int(file.read_text()))
    return memory


def group_files(root: Path, controller: str, unified: str, legacy: str) -> Iterator[Path]:
    """A file in this process's control group and all its parents, the innermost first.

    A container may show its group as the root of the mounted hierarchy, whatever the path says, so the root is always
    included.

    Args:
        root: of the file system.
        controller: that the file belongs to.
        unified: the file's name in cgroup v2.
        legacy: its name in cgroup v1.
    """
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    groups = root / "sys" / "fs" / "cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # cgroup v2; next to v1 it is mounted deeper, and has few controllers or none
            mounts, name = [groups, groups / "unified"], unified
        elif controller in controllers.split(","):
            mounts, name = [groups / controller, groups / controllers], legacy
        else:
            continue
        for mount in mounts:
            inner = Path(path.lstrip("/"))
            for folder in (inner, *inner.parents):
                yield mount / folder / name
