"""The promise: a runner lives as long as it is well; whichever way it goes, no file pays for it."""

import os
import signal
from collections import Counter

import pytest

from imece.run.job import MOST_FILES
from tests.conftest import Workbench, is_running, until


def runners_of(workbench: Workbench) -> Counter[str]:
    """Which process each output was written by."""
    return Counter((workbench.target / name).read_text() for name in workbench.outputs())


def test_a_runner_lives_on_between_files_jobs_and_runs(workbench: Workbench) -> None:
    workbench.files(60)
    worker = workbench.worker(processor="tests.processors:write_pid").started()
    workbench.enqueue(buckets=20, files_per_job=3)
    assert workbench.ended().done == 60
    [runner] = worker.runners()
    [key] = workbench.redis.smembers("rq:workers:imece")
    until(lambda: workbench.redis.hget(key, "state") == b"idle", "an idle turn")
    workbench.enqueue("second", buckets=20, files_per_job=3, overwrite=True)
    assert workbench.ended("second").done == 60
    assert runners_of(workbench) == {str(runner): 60}
    workbench.check_books("second")


def test_a_run_that_is_cancelled_costs_no_runner(workbench: Workbench) -> None:
    workbench.files(200)
    worker = workbench.worker(processor="tests.processors:slow").started()
    workbench.enqueue(buckets=1, files_per_job=200)
    until(lambda: workbench.status().done, "the first file")
    [runner] = worker.runners()
    workbench.run().cancel(3600)
    until(lambda: workbench.status().backlog.in_flight == 0, "the job to be given up")
    workbench.enqueue("second", include=["*-000*.txt"], overwrite=True)
    assert workbench.ended("second").done == 10
    assert worker.runners() == [runner]


@pytest.mark.parametrize("jobs", [1, 12])
def test_a_runner_has_as_many_files_as_it_may_have(workbench: Workbench, jobs: int) -> None:
    workbench.files(12)
    workbench.settings["runner_max_files"] = "5"
    workbench.enqueue(buckets=jobs, files_per_job=12 // jobs)
    workbench.worker(processor="tests.processors:write_pid")
    assert workbench.ended().done == 12
    assert sorted(runners_of(workbench).values()) == [2, 5, 5]
    now = workbench.check_books()
    assert (now.failed, now.retried) == (0, 0)


@pytest.mark.parametrize("jobs", [1, 6])
def test_a_runner_that_has_too_much_memory_is_replaced(workbench: Workbench, jobs: int) -> None:
    """Each file leaves 60 MiB more; a runner begins with about 20."""
    workbench.files(6)
    workbench.settings["runner_max_memory"] = "120"
    workbench.enqueue(buckets=jobs, files_per_job=6 // jobs)
    workbench.worker(processor="tests.processors:write_pid_and_keep_memory")
    assert workbench.ended().done == 6
    assert sorted(runners_of(workbench).values()) == [2, 2, 2]
    assert workbench.check_books().retried == 0


def test_a_runner_with_too_much_memory_to_begin_with_has_one_file(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.settings["runner_max_memory"] = "1"
    workbench.enqueue(buckets=1)
    workbench.worker(processor="tests.processors:write_pid")
    assert workbench.ended().done == 3
    assert set(runners_of(workbench).values()) == {1}


def test_when_the_template_is_killed_its_runner_goes_and_the_worker_starts_anew(
    workbench: Workbench,
) -> None:
    workbench.files(3)
    workbench.file("f-0001.txt", f"wait-for {workbench.folder}/release")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, retries=1)
    worker = workbench.worker()
    until((workbench.target / "f-0000.txt").exists, "the first file")
    runner, template = worker.runner(), worker.template()
    os.kill(template, signal.SIGKILL)
    until(lambda: not is_running(runner), "the runner to go", timeout=1)
    assert worker.template() != template
    (workbench.folder / "release").touch()
    assert workbench.ended().done == 3
    assert workbench.check_books().retried == 1


def test_a_template_that_is_killed_while_nothing_is_done_costs_no_file_a_try(
    workbench: Workbench,
) -> None:
    workbench.files(3)
    workbench.enqueue()
    worker = workbench.worker(processor="tests.processors:write_pid")
    assert workbench.ended().done == 3
    os.kill(worker.template(), signal.SIGKILL)
    workbench.enqueue("second", overwrite=True)
    assert workbench.ended("second").done == 3
    assert workbench.check_books("second").retried == 0


def test_a_runner_that_dies_between_two_jobs_costs_no_file_a_try(workbench: Workbench) -> None:
    workbench.files(12)
    workbench.enqueue(buckets=12, files_per_job=1)
    workbench.worker(processor="tests.processors:write_pid_and_die_after_the_job")
    assert workbench.ended().done == 12
    assert set(runners_of(workbench).values()) == {1}
    now = workbench.check_books()
    assert (now.failed, now.retried) == (0, 0)


@pytest.mark.slow
def test_a_bucket_job_with_as_many_files_as_there_may_be(workbench: Workbench) -> None:
    files = MOST_FILES
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
    """What its processor has in memory is above the limit: none gets to read the 50,000 names."""
    listed = workbench.folder / "names"
    listed.write_bytes(b"".join(b"%d-%s\n" % (number, b"x" * 100) for number in range(50_000)))
    workbench.enqueue(target="-", from_file=str(listed), buckets=1, files_per_job=50_000)
    worker = workbench.worker(processor="tests.processors_with_ballast:nothing", memory_limit="64")
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


@pytest.mark.parametrize("which", ["small", "all"])
def test_a_processor_that_takes_numbers_of_closed_files_gets_its_bucket_done(
    workbench: Workbench, which: str
) -> None:
    """Nothing that is meant for our files goes into its own. If ours are gone, each file takes a
    runner with it; no job is given back for that."""
    names = workbench.files(8)
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker(processor=f"tests.processors:copy_and_take_{which}_numbers")
    last = workbench.ended()
    assert (last.done, last.failed) == (8, 0), workbench.failures()
    assert workbench.check_books().done == 8
    assert all((workbench.target / name).read_text() == name for name in names)
    assert (workbench.folder / "own").read_bytes() == b"mine"


def test_a_file_that_fails_after_its_processor_closed_our_files_says_so(
    workbench: Workbench,
) -> None:
    workbench.files(2)
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker(processor="tests.processors:take_all_numbers_and_fail")
    assert workbench.ended().failed == 2
    assert {failure.last_line for failure in workbench.failures().values()} == {
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
