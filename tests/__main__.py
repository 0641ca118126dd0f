"""Every check, behind one command: `python -m tests`. Further arguments go to pytest."""

import compileall
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CODE = ["dux.py", "search", "spaces", "trainers", "tests", "benchmarks", "docs", "examples"]
CHECKS = {
    "format": ["ruff", "format", "--check", *CODE],
    "lint": ["ruff", "check", *CODE],
    "types": ["mypy"],
}
# three files at a time: most of a study's test is waiting for processes to start
TESTS = ["pytest", "-n", "3", "--dist", "loadfile", "--no-loadscope-reorder", *sys.argv[1:]]

MEMORY, NEEDED = Path("/dev/shm"), 4 * 2**30
"""A file system in memory, and how many bytes it must have: thousands of transactions wait for no disk there."""


def scratch() -> str:
    """A new folder for what the tests write: in memory where there is room for it."""
    fast = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > NEEDED
    return tempfile.mkdtemp(prefix="dux-tests-", dir=MEMORY if fast else None)


def main() -> int:
    """Run all checks, at once, and say of each how it ended; the exit code is 0 if all pass."""
    began = time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts with &
    print(f"== {', '.join(CHECKS)}, tests: {' '.join(TESTS)}", flush=True)
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for name, command in CHECKS.items()
    }
    for path in map(Path, CODE):  # once, not in each of some hundred processes, where Python may not write its own
        (compileall.compile_dir if path.is_dir() else compileall.compile_file)(path, quiet=2)
    folder = scratch()
    try:
        code = subprocess.run([sys.executable, "-m", TESTS[0], f"--basetemp={folder}/t", *TESTS[1:]]).returncode
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    failed = ["tests"] if code else []
    for name, process in running.items():
        said, _ = process.communicate()
        print(f"== {name}: {said.strip()}", flush=True)
        if process.returncode:
            failed.append(name)
    print(f"== {time.monotonic() - began:.0f} s")
    print(f"== failed: {', '.join(failed)}" if failed else "== all passed")
    return bool(failed)


sys.exit(main())
