"""Whether this machine can run a study, and what its kernel did to processes."""

import socket
from contextlib import suppress
from pathlib import Path

from search.home import check_ray_folders
from spaces.errors import BadInput
from trainers.machine import group_files, usable_cpus

_ANSWER_S = 5.0


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
    for file in [*group_files(root, "memory", "memory.events", "memory.oom_control"), root / "proc" / "vmstat"]:
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
    for limit in group_files(root, "memory", "memory.max", "memory.limit_in_bytes"):
        used = limit.with_name("memory.current" if limit.name == "memory.max" else "memory.usage_in_bytes")
        with suppress(OSError, ValueError):  # "max": none
            taken = int(used.read_text()) - _forgettable(limit.with_name("memory.stat"))
            free.append(int(limit.read_text()) - taken)
    return max(0, min(free)) if free else None


def _forgettable(file: Path) -> int:
    """Bytes that a control group counts as used, of files that were read and are not in use: the kernel forgets them
    when memory is asked for, as `docker stats` and Kubernetes take it."""
    try:
        values = dict(line.split() for line in file.read_text().splitlines())
        return int(values.get("total_inactive_file") or values.get("inactive_file") or 0)
    except (OSError, ValueError):
        return 0


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
