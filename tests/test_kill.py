"""The promise: whatever is killed, its job is taken up, and every file comes out once."""

import contextlib
import os
import random
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest

from imece.files import staging
from imece.run.dead_workers import requeue_dead
from imece.run.store import Run
from tests.conftest import Workbench, WorkerProcess, is_running, until, uptime

AS_SHIPPED = {"lease": "15", "heartbeat": "1", "checkpoint": "1"}
TAKEN_UP_WITHIN = 5.0


def kill_runners_at_random_moments(workbench: Workbench, kills: int) -> None:
    chance = random.Random(11)
    worker = workbench.workers[-1]
    while kills and not workbench.status().has_ended:
        time.sleep(chance.uniform(0, 0.15))  # the random moment
        for runner in worker.runners():
            with contextlib.suppress(ProcessLookupError):
                os.kill(runner, signal.SIGKILL)
            kills -= 1


def kill_workers_at_random_moments(workbench: Workbench, kills: int) -> None:
    """Two workers at a time, so that one is always there to find out about the other."""
    chance = random.Random(13)
    running = [workbench.worker().started(), workbench.worker().started()]
    for _ in range(kills):
        time.sleep(chance.uniform(0, 0.6))  # the random moment
        victim = running.pop(0)
        runners = victim.runners()
        victim.kill()
        victim.wait()
        until(lambda: not any(map(is_running, runners)), "the runner to go down with it")  # noqa: B023
        running.append(workbench.worker().started())


def test_a_killed_runner_costs_a_try_of_its_file_and_nothing_else(workbench: Workbench) -> None:
    names = workbench.files(150)
    workbench.settings |= {"processor": "tests.processors:traced", "retry_pause": "0.01"}
    workbench.enqueue(buckets=3, retries=50)
    worker = workbench.worker().started()
    kill_runners_at_random_moments(workbench, 5)
    assert workbench.ended().state == "done"
    assert worker.process.poll() is None
    assert workbench.outputs() == names
    now = workbench.check_books()
    assert (now.done, now.skipped) == (150, 0)
    assert sum(workbench.begun().values()) <= 155
    assert workbench.leaves_nothing_behind()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("processor", ["traced", "copy"])
def test_runners_killed_a_hundred_times_leave_the_books_right(
    workbench: Workbench, processor: str
) -> None:
    count = 1500 if processor == "traced" else 60_000
    workbench.files(count)
    workbench.settings |= {"processor": f"tests.processors:{processor}", "retry_pause": "0.01"}
    workbench.enqueue(buckets=10, retries=100)
    workbench.worker().started()
    kill_runners_at_random_moments(workbench, 100)
    assert workbench.ended(timeout=120).state == "done"
    now = workbench.check_books()
    assert (now.done, now.skipped) == (count, 0)
    assert workbench.leaves_nothing_behind()


def seconds_until_a_killed_worker_is_replaced(workbench: Workbench, run_id: str = "run") -> float:
    """From the kill of a working worker to another one's `job taken`; that one goes on."""
    until(lambda: uptime(workbench) >= 1, "a server that was there before the workers")
    working = workbench.worker(log_format="json", **AS_SHIPPED).took()
    waiting = workbench.worker(log_format="json", **AS_SHIPPED).started()
    until(lambda: workbench.status(run_id).done, "work to be done")
    runner = working.runner()
    killed = time.time()
    working.kill()
    until(lambda: not is_running(runner), "the runner to go down with it", timeout=1)
    waiting.took()
    return taken_at(waiting) - killed


def taken_at(worker: WorkerProcess) -> float:
    """When it took its first job, epoch seconds."""
    return datetime.fromisoformat(worker.events("job taken")[0]["time"]).timestamp()


def test_a_killed_workers_job_is_taken_up_within_five_seconds(workbench: Workbench) -> None:
    names = workbench.files(100)
    workbench.settings["processor"] = "tests.processors:traced"
    workbench.enqueue(buckets=1, files_per_job=1000)
    assert seconds_until_a_killed_worker_is_replaced(workbench) < TAKEN_UP_WITHIN
    assert workbench.ended().state == "done"
    assert workbench.outputs() == names
    now = workbench.check_books()
    assert (now.done, now.skipped, now.retried) == (100, 0, 0)
    assert sum(workbench.begun().values()) <= 101
    assert workbench.leaves_nothing_behind()


@pytest.mark.slow
@pytest.mark.parametrize("size", [600, 6])
def test_a_busy_worker_puts_the_jobs_of_the_dead_back(workbench: Workbench, size: int) -> None:
    """At the limit nobody is idle until the queue is empty."""
    names = workbench.files(1200)  # one worker alone has 30 s of work in 600
    workbench.settings |= {"processor": "tests.processors:slow_until_a_word", "heartbeat": "0.2"}
    workbench.enqueue(buckets=1, files_per_job=size)
    victim = workbench.worker(log_format="json").took()
    survivor = workbench.worker(log_format="json").took()
    lost = victim.events("job taken")[-1]["job"]
    victim.kill()
    until(lambda: f"job run-{lost} is back in" in survivor.log(), "its job to be back")
    assert workbench.status().left > 600, "it has waited for the end of a job, or of the queue"
    (workbench.folder / "hurry").touch()
    assert workbench.ended().state == "done"
    assert workbench.outputs() == names


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_is_within_five_seconds_time_after_time(workbench: Workbench) -> None:
    workbench.files(3000)
    workbench.settings["processor"] = "tests.processors:traced"
    for attempt in range(10):
        run_id = f"run-{attempt}"
        workbench.enqueue(run_id, buckets=1, files_per_job=5000, overwrite=True)
        took = seconds_until_a_killed_worker_is_replaced(workbench, run_id)
        assert took < TAKEN_UP_WITHIN, f"attempt {attempt}"
        assert workbench.workers[-1].stop() == 0
        workbench.redis.flushall()


def test_a_job_whose_worker_died_between_queue_and_lease_is_taken_up(workbench: Workbench) -> None:
    workbench.files(10)
    workbench.enqueue(buckets=1)
    # What a worker leaves behind that is killed right after its pop.
    assert workbench.redis.lmove("rq:queue:imece", "rq:queue:imece:intermediate")
    began = time.time()
    worker = workbench.worker(log_format="json", **AS_SHIPPED)
    assert workbench.ended().state == "done"
    took = taken_at(worker) - began  # it had to start, too, maybe beside others
    assert took < TAKEN_UP_WITHIN + 10
    assert workbench.check_books().done == 10
    assert workbench.status().backlog.pending == 0


def test_workers_killed_while_a_run_goes_on_leave_the_books_right(workbench: Workbench) -> None:
    names = workbench.files(150)
    workbench.settings |= {"processor": "tests.processors:traced", "lease": "3"}
    workbench.settings |= {"heartbeat": "0.2", "retry_pause": "0.01"}
    workbench.enqueue(buckets=4, retries=50)
    kill_workers_at_random_moments(workbench, 3)
    assert workbench.ended().state == "done"
    assert workbench.outputs() == names
    now = workbench.check_books()
    # Who is too slow to renew a lease loses it; what it has done meanwhile is found done.
    assert (now.done + now.skipped, now.failed) == (150, 0)
    # What each kill may cost: the file in hand.
    assert sum(workbench.begun().values()) <= 153
    assert workbench.leaves_nothing_behind()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("processor", ["traced", "copy"])
def test_workers_killed_many_times_leave_the_books_right(
    workbench: Workbench, processor: str
) -> None:
    count = 1500 if processor == "traced" else 100_000
    workbench.files(count)
    workbench.settings |= {"processor": f"tests.processors:{processor}", "lease": "3"}
    workbench.settings |= {"heartbeat": "0.2", "retry_pause": "0.01"}
    workbench.enqueue(buckets=20, retries=100)
    kill_workers_at_random_moments(workbench, 40)
    assert workbench.ended(timeout=300).state == "done"
    now = workbench.check_books()
    assert (now.done + now.skipped, now.failed) == (count, 0)
    assert workbench.leaves_nothing_behind()


def test_a_killed_workers_runner_and_program_go_down_with_it(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.settings.pop("processor")
    workbench.enqueue()
    program = workbench.folder / "program"
    program.write_text(f"#!/bin/sh\necho $$ > {workbench.folder}/pid\nexec sleep 1000\n")
    program.chmod(0o755)
    worker = workbench.worker(command=f"{program} {{input}}")
    until((workbench.folder / "pid").exists, "the program to start")
    pid = int(until((workbench.folder / "pid").read_text, "its process id"))
    all_three = [worker.template(), worker.runner(), pid]
    assert all(map(is_running, all_three))
    worker.kill()
    until(lambda: not any(map(is_running, all_three)), "all three to be gone", timeout=1)


def test_a_runner_killed_after_its_failed_try_was_recorded_counts_it_once(
    workbench: Workbench,
) -> None:
    workbench.files(3)
    workbench.file("f-0001.txt", f"fail-and-die-once {workbench.folder}/died")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, retries=1)
    workbench.worker()
    assert workbench.ended().state == "failed"
    [(name, failure)] = workbench.failures().items()
    assert (name, failure.tries) == ("f-0001.txt", 2)
    now = workbench.check_books()
    assert (now.done, now.failed, now.retried) == (2, 1, 1)


def test_a_runner_killed_while_it_records_a_failed_try_spoils_no_other_record(
    workbench: Workbench,
) -> None:
    workbench.files(3)
    workbench.file("f-0001.txt", f"fail-and-die-while-it-is-recorded {workbench.folder}/died")
    workbench.file("f-0002.txt", "raise")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, retries=1)
    workbench.worker()
    assert workbench.ended().state == "failed"
    assert {name: why.tries for name, why in workbench.failures().items()} == {
        "f-0001.txt": 2,
        "f-0002.txt": 2,
    }
    now = workbench.check_books()
    assert (now.done, now.failed, now.retried) == (1, 2, 2)


def test_a_runner_killed_after_its_last_try_was_recorded_fails_the_file_once(
    workbench: Workbench,
) -> None:
    workbench.files(3)
    workbench.file("f-0001.txt", f"fail-and-die-once {workbench.folder}/died")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker()
    assert workbench.ended().state == "failed"
    assert workbench.failures()["f-0001.txt"].tries == 1
    now = workbench.check_books()
    assert (now.done, now.failed, now.retried) == (2, 1, 0)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_runner_killed_after_its_output_was_in_place_has_done_the_file(
    workbench: Workbench, retries: int
) -> None:
    names = workbench.files(3)
    workbench.file("f-0001.txt", f"finish-and-die-once {workbench.folder}/died")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, retries=retries)
    workbench.worker()
    assert workbench.ended().state == "done"
    assert (workbench.folder / "died").exists()
    assert workbench.outputs() == names
    now = workbench.check_books()
    assert (now.done, now.skipped, now.retried) == (3, 0, 0)
    assert (
        now.bytes_in
        == now.bytes_out
        == sum(len((workbench.source / n).read_bytes()) for n in names)
    )


def test_a_worker_killed_while_it_replaces_a_directory_leaves_no_temporary(
    workbench: Workbench,
) -> None:
    workbench.files(1)
    older = workbench.target / "f-0000.txt"
    older.mkdir(parents=True)
    (older / "older").touch()
    workbench.settings |= {"processor": "tests.processors:directory_and_die_once", "lease": "3"}
    workbench.enqueue(overwrite=True, retries=3)
    workbench.worker()
    until(lambda: workbench.workers[0].process.poll() is not None, "the worker to be killed")
    workbench.worker()
    assert workbench.ended().state == "done"
    assert workbench.outputs() == ["f-0000.txt/part-1"]
    assert workbench.check_books().done == 1


def two_workers_one_frozen(workbench: Workbench, files: int) -> tuple[WorkerProcess, WorkerProcess]:
    """The first holds the only job and is stopped in its tracks; its runner works on."""
    workbench.files(files)
    workbench.settings |= {"processor": "tests.processors:traced", "heartbeat": "0.2"}
    workbench.settings |= {"log_format": "json"}
    workbench.enqueue(buckets=1, files_per_job=1000)
    frozen = workbench.worker().took()
    idle = workbench.worker().started()
    until(lambda: workbench.status().done, "the first files")
    frozen.kill(signal.SIGSTOP)
    return frozen, idle


def test_a_worker_that_is_merely_slow_keeps_its_job(workbench: Workbench) -> None:
    """It has missed many signs of life, but it is connected and its lease has not run out."""
    frozen, idle = two_workers_one_frozen(workbench, 60)
    stopped = time.monotonic()
    until(lambda: time.monotonic() - stopped > 2, "the idle worker to look several times")
    assert idle.events("job taken") == []
    frozen.kill(signal.SIGCONT)
    assert workbench.ended().state == "done"
    assert workbench.begun() == dict.fromkeys(workbench.outputs(), 1)
    assert workbench.check_books().done == 60


def test_a_worker_that_lost_its_lease_records_nothing_more(workbench: Workbench) -> None:
    workbench.settings["lease"] = "3"
    frozen, idle = two_workers_one_frozen(workbench, 100)
    idle.kill(signal.SIGSTOP)  # until all is made: it would else find files that are still to come
    until(lambda: len([*workbench.target.glob("f-*")]) == 100, "the runner to end its files")
    idle.kill(signal.SIGCONT)
    until(lambda: idle.events("job taken"), "its lease to run out")
    frozen.kill(signal.SIGCONT)
    until(lambda: frozen.events("job lost"), "it to find out")
    assert workbench.ended().state == "done"
    now = workbench.check_books()
    assert (now.done, now.skipped, now.failed) == (100, 0, 0)
    assert frozen.process.poll() is None
    assert workbench.leaves_nothing_behind()


# What is done has its row


def test_outputs_that_were_there_are_made_anew_after_a_worker_died(workbench: Workbench) -> None:
    """Their permissions change meanwhile: the time of the last change says nothing."""
    names = workbench.files(60)
    workbench.target.mkdir()
    for name in names:
        (workbench.target / name).write_text("old")
    workbench.settings |= {"processor": "tests.processors:slow", "lease": "3"}
    workbench.enqueue(buckets=1, files_per_job=100, overwrite=True)
    first = workbench.worker()
    until(lambda: workbench.status().done >= 3, "the first files")
    for name in names:
        (workbench.target / name).chmod(0o640)
    first.kill()
    first.wait()
    workbench.worker()
    assert workbench.ended().state == "done"
    assert [(workbench.target / name).read_text() for name in names] == names
    now = workbench.check_books()
    assert (now.done, now.skipped, now.failed) == (60, 0, 0)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("victim", ["runner", "worker"])
def test_a_file_is_done_again_unless_its_output_was_put_in_place(
    workbench: Workbench, moment: str, victim: str
) -> None:
    """Killed right before the output is renamed, and right after: then the file is done."""
    names = workbench.files(10)
    workbench.target.mkdir()
    for name in names:
        (workbench.target / name).write_text("old")
    workbench.file("f-0004.txt", f"die-{moment}-it-is-in-place {victim} {workbench.folder}/died")
    workbench.settings |= {"processor": "tests.processors:by_content_traced", "lease": "3"}
    workbench.enqueue(buckets=1, files_per_job=100, overwrite=True, retries=2)
    workbench.worker()
    until((workbench.folder / "died").exists, "the death")
    if victim == "worker":
        workbench.workers[0].wait()
        workbench.worker()
    assert workbench.ended().state == "done"
    for name in names:
        assert (workbench.target / name).read_bytes() == (workbench.source / name).read_bytes()
    now = workbench.check_books()
    assert (now.done, now.skipped, now.failed) == (10, 0, 0)
    expected = dict.fromkeys(names, 1) | ({"f-0004.txt": 2} if moment == "before" else {})
    assert workbench.begun() == expected
    sizes = sum((workbench.source / name).stat().st_size for name in names)
    assert (now.bytes_in, now.bytes_out) == (sizes, sizes)


def test_a_directory_that_was_about_to_be_replaced_is_put_back(workbench: Workbench) -> None:
    """Its worker is killed between the two renames, and what comes after that fails."""
    workbench.files(1)
    older = workbench.target / "f-0000.txt"
    older.mkdir(parents=True)
    (older / "older").touch()
    workbench.settings |= {"processor": "tests.processors:directory_and_die_once", "lease": "3"}
    workbench.enqueue(overwrite=True, retries=0)
    workbench.worker()
    until(lambda: workbench.workers[0].process.poll() is not None, "the worker to be killed")
    assert not older.exists()
    workbench.worker(processor="tests.processors:fail")
    assert workbench.ended().state == "failed"
    assert workbench.outputs() == ["f-0000.txt/older"]
    assert workbench.temporaries() == []


# What is left behind


def staging_directories_left(workbench: Workbench) -> list[Path]:
    """As the kill of a worker with a job leaves it."""
    workbench.files(40)
    workbench.settings["processor"] = "tests.processors:slow"
    workbench.enqueue(buckets=1, files_per_job=100)
    worker = workbench.worker()
    until(lambda: workbench.status().done, "the first files")
    runner = worker.runner()
    worker.kill()
    worker.wait()
    until(lambda: not is_running(runner), "its runner to be gone")
    return workbench.temporaries()


def test_staging_directories_of_the_dead_are_swept_and_those_of_the_living_kept(
    workbench: Workbench,
) -> None:
    [left] = staging_directories_left(workbench)
    target = os.fsencode(workbench.target)
    assert staging.sweep(target) == 0, "its job may be taken over, who wants its rows"
    assert staging.sweep(target, keep=[left.name.removeprefix(".imece-") + "0123"]) == 0
    workbench.settings["processor"] = "tests.processors:slow"
    workbench.run().cancel(600)
    workbench.enqueue("second", buckets=1, files_per_job=100, overwrite=True)
    workbench.worker()
    until(
        lambda: len(workbench.temporaries()) == 2 or not left.exists(), "a second staging directory"
    )
    assert staging.sweep(target, keep=[]) <= 1
    assert not left.exists()
    until(lambda: workbench.status("second").done, "the living one to go on")
    [living] = workbench.temporaries()
    assert staging.sweep(target, keep=[], now=time.time() + 10**6) == 0
    assert living.exists()


@pytest.mark.parametrize("path", ["out", "out-of-the-producer"])
def test_a_staging_directory_goes_with_the_lease_of_a_run_that_was_deleted(
    workbench: Workbench, path: str
) -> None:
    """The run of this id is another by then; workers may see its directory by another path."""
    [left] = staging_directories_left(workbench)
    run = Run(workbench.redis, "imece", "run")
    run.cancel(600)
    run.delete()
    workbench.settings["output"] = str(workbench.target)
    workbench.enqueue(buckets=1, files_per_job=100, target=str(workbench.folder / path))
    assert left.exists(), "its lease still stands"

    def is_gone() -> bool:
        list(requeue_dead(workbench.redis, workbench.load(), {}, 0, 1000))
        return not left.exists()

    until(is_gone, "it to go")
    assert workbench.redis.zcard("rq:wip:imece") == 0


def test_what_a_worker_left_of_a_cancelled_run_stays_for_the_round_that_goes_on(
    workbench: Workbench,
) -> None:
    """Its rows tell what it has done since its last checkpoint."""
    [left] = staging_directories_left(workbench)
    recorded = workbench.status().done
    Run(workbench.redis, "imece", "run").cancel(600)

    def has_no_lease() -> bool:
        list(requeue_dead(workbench.redis, workbench.load(), {}, 0, 1000))
        return workbench.redis.zcard("rq:wip:imece") == 0

    until(has_no_lease, "its lease to be cleared")
    assert left.exists()
    workbench.enqueue(buckets=1, files_per_job=100)
    assert left.exists()
    workbench.worker()
    now = workbench.ended()
    assert (now.state, now.skipped) == ("done", recorded)
    assert workbench.temporaries() == []


def test_old_staging_directories_are_swept_by_the_next_worker(workbench: Workbench) -> None:
    [left] = staging_directories_left(workbench)
    reports = workbench.target / ".imece-failures"
    reports.mkdir()
    for path in (left / "lock", reports):
        os.utime(path, (0, 0))
    workbench.redis.flushall()
    workbench.enqueue("second", overwrite=True)
    workbench.worker()
    assert workbench.ended("second").done == 40
    until(lambda: not left.exists(), "the old staging directory to be gone")
    assert workbench.temporaries() == [reports]


def test_a_staging_directory_of_another_host_is_swept_when_it_has_been_silent(
    workbench: Workbench,
) -> None:
    [left] = staging_directories_left(workbench)
    (left / "lock").write_text("another host\n")
    target = os.fsencode(workbench.target)
    assert staging.sweep(target, keep=[]) == 0
    assert staging.sweep(target, keep=[], now=time.time() + 61) == 1
    assert not left.exists()


def test_private_directories_of_killed_workers_are_removed_by_the_next(
    workbench: Workbench,
) -> None:
    workbench.settings["processor"] = "tests.processors:write_source"
    workbench.file("f")
    workbench.enqueue()
    worker = workbench.worker()
    assert workbench.ended().done == 1
    theirs = Path((workbench.target / "f").read_text()).parents[1]
    assert theirs.name.startswith("imece-worker-")
    assert theirs.stat().st_mode & 0o777 == 0o700
    worker.kill()
    worker.wait()
    assert theirs.exists()
    workbench.enqueue("second", overwrite=True)
    second = workbench.worker()
    assert workbench.ended("second").done == 1
    assert not theirs.exists()
    ours = Path((workbench.target / "f").read_text()).parents[1]
    assert ours.exists()
    second.stop()
    assert not ours.exists()
