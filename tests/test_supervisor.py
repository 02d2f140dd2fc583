"""The promise: quick jobs share a runner, and none lives on for long; whichever way it goes, no
file pays for it."""

from collections import Counter

import pytest

from imece_worker.supervisor import FEWEST_ROWS
from tests.conftest import Workbench, until


def runners_of(workbench: Workbench) -> Counter[str]:
    """Which process each output was written by."""
    return Counter((workbench.target / name).read_text() for name in workbench.outputs())


def test_quick_jobs_share_a_runner(workbench: Workbench) -> None:
    workbench.files(60)
    workbench.enqueue(buckets=20, files_per_job=3)
    workbench.worker(processor="tests.processors:write_pid")
    assert workbench.ended().done == 60
    assert len(runners_of(workbench)) < 10
    workbench.check_books()


def test_a_runner_that_is_no_longer_young_gets_no_other_job(workbench: Workbench) -> None:
    workbench.files(6)
    workbench.enqueue(buckets=6, files_per_job=1)
    workbench.worker(processor="tests.processors:write_pid_slowly")  # 0.4 s a file
    assert workbench.ended().done == 6
    assert len(runners_of(workbench)) >= 2
    assert max(runners_of(workbench).values()) <= 3


def test_an_idle_worker_keeps_no_runner(workbench: Workbench) -> None:
    workbench.files(5)
    workbench.enqueue()
    worker = workbench.worker(processor="tests.processors:write_pid")
    assert workbench.ended().done == 5
    until(lambda: not worker.runners(), "the runner to be dismissed")


def test_a_runner_that_dies_between_two_jobs_costs_no_file_a_try(workbench: Workbench) -> None:
    workbench.files(12)
    workbench.enqueue(buckets=12, files_per_job=1)
    workbench.worker(processor="tests.processors:write_pid_and_die_after_the_job")
    assert workbench.ended().done == 12
    assert set(runners_of(workbench).values()) == {1}
    now = workbench.check_books()
    assert (now.failed, now.retried) == (0, 0)


def test_a_bucket_job_with_more_files_than_the_table_has_rows(workbench: Workbench) -> None:
    """The table is made for FEWEST_ROWS at first, and larger when it must be."""
    files = FEWEST_ROWS + 10
    workbench.source.mkdir(exist_ok=True)
    listed = workbench.folder / "names"
    listed.write_bytes(b"".join(b"missing-%d\n" % number for number in range(files)))
    workbench.enqueue(target="-", from_file=str(listed), buckets=1, files_per_job=files, retries=0)
    workbench.worker(processor="tests.processors:nothing")
    now = workbench.ended(timeout=100)
    assert (now.files, now.failed) == (files, files)


def test_a_worker_outlives_runners_that_die_while_they_are_given_a_long_job(
    workbench: Workbench,
) -> None:
    """The memory limit is so low that none gets to read the 50,000 names."""
    listed = workbench.folder / "names"
    listed.write_bytes(b"".join(b"%d-%s\n" % (number, b"x" * 100) for number in range(50_000)))
    workbench.enqueue(target="-", from_file=str(listed), buckets=1, files_per_job=50_000)
    worker = workbench.worker(processor="tests.processors:nothing", memory_limit="64")
    until(lambda: "its processes die before their first file" in worker.log(), "the job's return")
    assert worker.stop() == 0
    assert "Traceback" not in worker.log()
    assert workbench.status().left == 50_000


def test_a_processor_that_closes_all_files_of_its_process_gets_its_bucket_done(
    workbench: Workbench,
) -> None:
    """The job is not given back for it."""
    workbench.files(8)
    workbench.enqueue(buckets=1, retries=0)
    worker = workbench.worker(processor="tests.processors:copy_and_close_everything")
    assert workbench.ended().done == 8
    workbench.check_books()
    assert "job given back" not in worker.log()


@pytest.mark.parametrize("what", ["directories", "all_but_standard"])
def test_no_other_file_fails_for_what_a_processor_has_closed(
    workbench: Workbench, what: str
) -> None:
    workbench.files(8)
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker(processor=f"tests.processors:copy_and_close_{what}")
    assert workbench.ended().done == 8
    assert workbench.check_books().failed == 0


@pytest.mark.parametrize(("which", "deaths"), [("small", 0), ("all", 7)])
def test_a_processor_that_takes_numbers_of_closed_files_gets_its_bucket_done(
    workbench: Workbench, which: str, deaths: int
) -> None:
    """Nothing that is meant for our files goes into its own. If ours are gone, each file takes a
    runner with it; no job is given back for that."""
    names = workbench.files(8)
    workbench.enqueue(buckets=1, retries=0)
    worker = workbench.worker(processor=f"tests.processors:copy_and_take_{which}_numbers")
    last = workbench.ended()
    assert (last.done, last.failed) == (8, 0), workbench.failures()
    assert workbench.check_books().done == 8
    assert all((workbench.target / name).read_text() == name for name in names)
    assert (workbench.folder / "own").read_bytes() == b"mine"
    assert worker.log().count("process died without a current file") == deaths


def test_a_file_that_fails_after_its_processor_closed_our_files_says_so(
    workbench: Workbench,
) -> None:
    workbench.files(2)
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker(processor="tests.processors:take_all_numbers_and_fail")
    assert workbench.ended().failed == 2
    assert {failure.cause for failure in workbench.failures().values()} == {
        "the processor closed files that imece had opened, and failed"
    }
    assert (workbench.folder / "own").read_bytes() == b"mine"


def test_what_a_processor_leaves_running_leaves_nothing_in_the_output_directory(
    workbench: Workbench,
) -> None:
    workbench.files(6)
    workbench.enqueue(buckets=6, files_per_job=1)
    workbench.worker(processor="tests.processors:copy_and_leave_a_writer")
    assert workbench.ended().done == 6
    workbench.check_books()
