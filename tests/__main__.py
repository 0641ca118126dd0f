"""Every check, behind one command: `python -m tests`. Further arguments go to pytest."""

import signal
import subprocess
import sys
import time

CODE = ["dux.py", "search", "spaces", "trainers", "tests", "benchmarks", "docs", "examples"]
CHECKS = {
    "format": ["ruff", "format", "--check", *CODE],
    "lint": ["ruff", "check", *CODE],
    "types": ["mypy"],
}
# three files at a time: most of a study's test is waiting for processes to start
TESTS = ["pytest", "-n", "3", "--dist", "loadfile", "--no-loadscope-reorder", *sys.argv[1:]]


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
    failed = ["tests"] if subprocess.run([sys.executable, "-m", *TESTS]).returncode else []
    for name, process in running.items():
        said, _ = process.communicate()
        print(f"== {name}: {said.strip()}", flush=True)
        if process.returncode:
            failed.append(name)
    print(f"== {time.monotonic() - began:.0f} s")
    print(f"== failed: {', '.join(failed)}" if failed else "== all passed")
    return bool(failed)


sys.exit(main())
