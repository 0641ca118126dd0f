"""What the kernel says about this process's share of the machine."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from search.home import check_ray_folders
from spaces.errors import BadInput

_ANSWER_S = 5.0


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
    for file in _group_files(root, "cpu", "cpu.max", "cpu.cfs_quota_us"):
        with suppress(OSError, ValueError):
            quota, *period = file.read_text().split()
            if not period:
                period = [file.with_name("cpu.cfs_period_us").read_text()]
            if quota not in ("max", "-1"):
                cpus = min(cpus, int(quota) // int(period[0]))
    return max(1, cpus)


def check_loopback() -> None:
    """Raise BadInput if this machine's processes cannot reach each other: starting servers would hang for long."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=_ANSWER_S).close()
    except OSError as error:
        raise BadInput(
            f"a machine's processes must reach each other at 127.0.0.1, but here they cannot ({error}); "
            "start its loopback interface (`ip link set lo up`)"
        ) from None


def oom_kills(root: Path = Path("/")) -> int | None:
    """How many processes the kernel has killed for lack of memory, in this process's control group if it counts them,
    otherwise on the whole machine; None if there is no count.

    Args:
        root: of the file system; tests pass their own.
    """
    for file in [*_group_files(root, "memory", "memory.events", "memory.oom_control"), root / "proc" / "vmstat"]:
        with suppress(OSError):
            for line in file.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill" and count.isdecimal():
                    return int(count)
    return None


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process and its children may still take, without swap; None if nobody says.

    Args:
        root: of the file system; tests pass their own.
    """
    free: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = (root / "proc" / "meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit in _group_files(root, "memory", "memory.max", "memory.limit_in_bytes"):
        used = limit.with_name("memory.current" if limit.name == "memory.max" else "memory.usage_in_bytes")
        with suppress(OSError, ValueError):  # "max": none
            free.append(int(limit.read_text()) - int(used.read_text()))
    return max(0, min(free)) if free else None


def _group_files(root: Path, controller: str, unified: str, legacy: str) -> Iterator[Path]:
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


def check_machine(cpus: int, gpus: float, *, starts_ray: bool) -> None:
    """Raise BadInput if a trial needs more CPUs or GPUs than this machine has: it would wait forever, or fail.

    Args:
        cpus: per trial.
        gpus: per trial.
        starts_ray: whether Ray will also be started here.
    """
    if starts_ray:
        check_ray_folders()
        check_loopback()
    import torch

    if cpus > (most := usable_cpus()):
        raise BadInput(
            f"`search.cpus` must be at most the {most} that this process may use here, but got {cpus}; "
            "lower it, or name a cluster by --address"
        )
    if gpus and not torch.cuda.is_available():
        raise BadInput(
            f"`search.gpus` must be 0 on a machine without a GPU that torch can use, but got {gpus:g}; "
            "set it to 0, or name a cluster by --address"
        )
