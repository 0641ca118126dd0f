"""Why a worker died: what Ray, the worker and the kernel leave, in words. Real workers die in test_study.py."""

from pathlib import Path

import pytest

from search.backends.deaths import last_words, why_died

DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n\tpid: 9539\n\tip: 127.0.0.1\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
)
GUESSES = (
    "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the "
    "process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker "
    "crashed unexpectedly due to SIGSEGV or another unexpected error."
)
"""Ray 2.60, whatever the reason was."""
STARTED = ":job_id:01000000\n:actor_name:ImplicitFunc\n"
FATAL = (
    "*** {0} received at time=1 on cpu 0 ***\nPC: @ 0x7efe4345a267  (unknown)  kill\nFatal Python error: Some\n\n"
    'Stack (most recent call first):\n  File "/there/torch/autograd/graph.py", line 8 in run\n'
    '  File "/there/loop.py", line 9 in fit\n'
)


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"])
def test_a_crash_is_told_by_its_signal_and_where_it_was_and_not_as_want_of_memory(signal: str) -> None:
    for kernel_killed in (True, False, None):
        assert why_died(DIED + GUESSES, STARTED + FATAL.format(signal), kernel_killed) == (
            f"the worker process crashed ({signal}) in compiled code, called at autograd/graph.py:8"
        )


def test_memory_is_named_where_it_was_that_and_only_there() -> None:
    bad_alloc = "terminate called after throwing an instance of 'std::bad_alloc'\n" + FATAL.format("SIGABRT")
    by_ray = "1 worker(s) were killed due to the node running low on memory. Memory on the node ... was 1.7GB"
    kernel = why_died(DIED + GUESSES, STARTED, True)
    assert kernel.startswith("the worker process was killed (SIGKILL) by the system for lack of memory: lower ")
    assert why_died(by_ray, "", False).startswith(
        "the worker process was ended by Ray, because the machine was running"
    )
    assert "bad_alloc" in why_died(DIED + GUESSES, bad_alloc, False)
    unknown = why_died(DIED + GUESSES, STARTED, None)
    assert unknown.startswith(
        "the worker process was killed (SIGKILL) by another process, or by the system for lack of"
    )
    for error in (DIED + GUESSES, by_ray, DIED + "Worker exits with an exit code 3."):
        for words in (STARTED, bad_alloc):
            for kernel_killed in (True, False, None):
                assert "\n" not in why_died(error, words, kernel_killed)
    for detail in (
        GUESSES,
        "Worker exits with an exit code 1. The process receives a SIGTERM.",
        "Worker exits with an exit code 3.",
    ):
        assert "want of memory" not in why_died(DIED + detail, STARTED, False)


def test_who_ends_itself_is_ended_or_does_not_start_is_told_so() -> None:
    sigterm = "Worker exits unexpectedly. Worker exits with an exit code 1. The process receives a SIGTERM."
    start = "The actor died because of an error raised in its creation task, ray::A()\n File x\nKeyError: 'y'\n"
    assert why_died(DIED + sigterm, STARTED, False) == "the worker process was terminated (SIGTERM) by another process"
    assert why_died(DIED + "Worker exits with an exit code 3.", STARTED, False).endswith("with exit code 3")
    assert why_died(start, "", False) == "the worker process could not start: KeyError: 'y'"
    assert "(SIGKILL)" in why_died("", "", None)  # whatever Ray does not say


def test_last_words_are_those_of_the_process_and_never_more_than_their_end(tmp_path: Path) -> None:
    (tmp_path / "worker-2caa-01000000-39.err").write_bytes(b"x" * 1_000_000 + b"\xffend")
    (tmp_path / "worker-2caa-01000000-139.err").write_text("another's")
    assert last_words(tmp_path, 39).endswith("xend") or last_words(tmp_path, 39).endswith("�end")
    assert len(last_words(tmp_path, 39)) <= 100_000
    assert last_words(tmp_path, 9) == ""
    assert last_words(tmp_path / "none", 9) == ""
