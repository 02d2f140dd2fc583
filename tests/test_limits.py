"""The promise: a file that kills its process, hangs or eats memory is quarantined after its tries,
with the reason; the rest of its bucket is done."""

import time
from pathlib import Path
from typing import Any

import pytest

from imece.run.failure import Failure
from tests.conftest import Workbench, is_running, until

OTHERS = 20
"""Files in the same bucket that do no harm."""


def quarantined(workbench: Workbench, content: str, retries: int = 1, **options: Any) -> Failure:
    """Runs a bucket with one bad file in its middle, which must end in quarantine, and only it."""
    names = workbench.files(OTHERS)
    workbench.file("f-0010.bad", content)
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, files_per_job=100, retries=retries, **options)
    if not workbench.workers:
        workbench.worker(log_format="json")
    now = workbench.ended()
    assert (now.state, now.done, now.failed, now.retried) == ("failed", OTHERS, 1, retries)
    assert workbench.outputs() == names
    workbench.check_books()
    assert workbench.workers[-1].process.poll() is None
    [(name, failure)] = workbench.failures().items()
    assert name == "f-0010.bad"
    assert failure.tries == retries + 1
    return failure


BAD = {
    "segfault": "its process was killed by SIGSEGV",
    "kill-runner": "its process was killed by SIGKILL (out of memory?)",
    "exit 0": "its process ended itself with exit code 0",
    "exit 3": "its process ended itself with exit code 3",
    "exit 80": "its process ended itself with exit code 80",
    "exit 81": "its process ended itself with exit code 81",
    "sysexit 4": "SystemExit: 4",
    "raise ouch": "ValueError: ouch",
    "no-output": "the processor returned without writing its output",
}


def test_bad_files_are_quarantined_after_their_tries_and_the_rest_is_done(
    workbench: Workbench,
) -> None:
    names = workbench.files(OTHERS)
    for content in BAD:
        workbench.file(f"f-0010.{content}", content)
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, files_per_job=100, retries=1)
    worker = workbench.worker()
    assert workbench.ended().state == "failed"
    failures = workbench.failures()
    assert {name: why.last_line for name, why in failures.items()} == {
        f"f-0010.{content}": reason for content, reason in BAD.items()
    }
    assert {failure.tries for failure in failures.values()} == {2}
    assert workbench.outputs() == names
    now = workbench.check_books()
    assert (now.done, now.failed, now.retried) == (OTHERS, len(BAD), len(BAD))
    assert worker.process.poll() is None
    assert workbench.leaves_nothing_behind()


def test_a_file_that_kills_its_process_is_tried_as_often_as_any_other(
    workbench: Workbench,
) -> None:
    assert quarantined(workbench, "segfault", retries=3).tries == 4
    killed = workbench.workers[0].events("file killed its process")
    assert [event["tries"] for event in killed] == [1, 2, 3, 4]


def test_what_a_file_printed_before_it_crashed_is_kept(workbench: Workbench) -> None:
    failure = quarantined(workbench, "print-and-segfault", retries=0)
    assert "about to crash" in failure.output
    assert "Fatal Python error: Segmentation fault" in failure.output
    assert "by_content" in failure.output  # where


def test_a_file_that_kills_whole_workers_is_found_out_and_quarantined(
    workbench: Workbench,
) -> None:
    """As the kernel does that kills all of a container when its memory runs out."""
    names = workbench.files(OTHERS)
    workbench.file("f-0010.bad", "kill-worker")
    workbench.settings |= {
        "processor": "tests.processors:by_content",
        "lease": "3",
        "heartbeat": "0.2",
        "retry_pause": "0.01",
    }
    workbench.enqueue(buckets=1, files_per_job=100, retries=1)
    died = 0
    workbench.worker()
    while not workbench.status().has_ended:
        if workbench.workers[-1].process.poll() is not None:
            died += 1
            assert died <= 3, "the file is not found out"
            workbench.worker()
        time.sleep(0.02)
    # The first death tells that there is such a file; from then on each is one of its tries.
    assert died == 3
    now = workbench.check_books()
    assert (now.state, now.done, now.skipped, now.failed) == ("failed", OTHERS, 0, 1)
    assert workbench.outputs() == names
    failure = workbench.failures()["f-0010.bad"]
    assert failure.tries == 2
    assert "its worker died while at it" in failure.reason
    assert workbench.leaves_nothing_behind()


@pytest.mark.parametrize("content", ["hang", "hang-in-c", "end-when-asked"])
def test_a_file_over_its_limit_is_a_failed_try_and_its_reason_says_where_it_hangs(
    workbench: Workbench, content: str
) -> None:
    failure = quarantined(workbench, content, timeout=0.5)
    assert failure.last_line == "took longer than its limit of 0.5 s, and was killed"
    if content != "end-when-asked":  # which has taken the question away
        assert "by_content" in failure.reason
        assert "processors.py" in failure.reason
    assert workbench.leaves_nothing_behind()


def test_a_file_that_ends_just_at_its_limit_takes_the_limit_from_no_other(
    workbench: Workbench,
) -> None:
    workbench.file("a", "end-at-the-limit")
    workbench.file("b", "hang")
    workbench.file("c", "content")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, files_per_job=10, retries=0, timeout=0.5)
    workbench.worker()
    assert workbench.ended().state == "failed"
    assert workbench.outputs() == ["a", "c"]
    assert workbench.failures()["b"].last_line.startswith("took longer than its limit")
    workbench.check_books()


def test_a_program_over_its_limit_is_killed_with_all_it_has_started(workbench: Workbench) -> None:
    program = workbench.folder / "program"
    program.write_text(f"#!/bin/sh\necho $$ >> {workbench.folder}/pids\nsleep 1000 &\n"
                       f"echo $! >> {workbench.folder}/pids\nwait\n")  # fmt: skip
    program.chmod(0o755)
    workbench.settings.pop("processor")
    workbench.files(1)
    workbench.enqueue(retries=0, timeout=0.5)
    workbench.worker(command=f"{program} {{input}} {{output}}")
    assert workbench.ended().state == "failed"
    pids = [int(pid) for pid in (workbench.folder / "pids").read_text().split()]
    assert len(pids) == 2
    until(lambda: not any(map(is_running, pids)), "both processes to be gone", timeout=2)
    assert "took longer than its limit" in workbench.failures()["f-0000.txt"].last_line
    workbench.check_books()


def test_a_file_that_fills_memory_fails_at_the_limit(workbench: Workbench) -> None:
    workbench.settings["memory_limit"] = "512"
    assert quarantined(workbench, "fill-memory").last_line == "MemoryError"
    [worker] = workbench.workers
    status = Path(f"/proc/{worker.pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 200_000  # kB: the worker itself has not grown
    assert workbench.leaves_nothing_behind()


def test_a_program_has_the_memory_limit_too(workbench: Workbench) -> None:
    workbench.settings.pop("processor")
    workbench.files(1)
    workbench.enqueue(retries=0)
    code = "import sys; open(sys.argv[2], 'wb').write(bytes(2**31))"
    workbench.worker(memory_limit="512", command=f'python3 -c "{code}" {{input}} {{output}}')
    assert workbench.ended().state == "failed"
    assert "MemoryError" in workbench.failures()["f-0000.txt"].reason
    workbench.check_books()


def test_a_process_that_dies_before_its_first_file_gives_the_job_back_in_peace(
    workbench: Workbench,
) -> None:
    """With no memory to begin with no file is to blame; the worker must not spin."""
    workbench.files(5)
    workbench.enqueue(buckets=1, retries=0)
    workbench.settings["processor"] = "tests.processors_with_ballast:nothing"
    worker = workbench.worker(memory_limit="64", log_format="json")
    until(lambda: workbench.status().has_ended or worker.events("job stalled"), "an outcome")
    for _ in range(3):
        before = len(worker.events("job taken"))
        time.sleep(0.5)  # what is measured is how often it happens in half a second
        assert len(worker.events("job taken")) - before <= 1
    workbench.check_books()
