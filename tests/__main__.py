"""Every check, behind one command: `python -m tests`. Further arguments go to pytest."""

import subprocess
import sys
import time

CODE = ["dux.py", "search", "spaces", "trainers", "tests", "benchmarks", "docs", "examples"]
CHECKS = {
    "format": ["ruff", "format", "--check", *CODE],
    "lint": ["ruff", "check", *CODE],
    "types": ["mypy"],
    # two files at a time: most of a study's test is waiting for processes to start
    "tests": ["pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *sys.argv[1:]],
}


def main() -> int:
    """Run all checks, however the earlier ones end; the exit code is 0 if all pass."""
    failed = []
    for name, command in CHECKS.items():
        began = time.monotonic()
        print(f"== {name}: {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, "-m", *command]).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    print(f"== failed: {', '.join(failed)}" if failed else "== all passed")
    return bool(failed)


sys.exit(main())
