"""The promise: a stopped worker finishes the file in hand, gives the rest back, and exits 0."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import Workbench, WorkerProcess, until

PROMPTLY = 3.0
"""Seconds a worker may take to leave here: its file takes 20 ms, but the machine may be busy."""


def stop_workers_at_random_moments(workbench: Workbench, stops: int) -> None:
    """Two workers at a time; each is stopped within half a second of its start, and replaced."""
    chance = random.Random(7)
    running: list[tuple[float, WorkerProcess]] = []
    while stops:
        while len(running) < 2:
            running.append((chance.uniform(0, 0.3), workbench.worker().started()))
        pause, worker = running.pop(0)
        time.sleep(pause)  # the random moment
        asked = time.monotonic()
        assert worker.stop() == 0, worker.log()
        assert time.monotonic() - asked < PROMPTLY
        stops -= 1
    for _, worker in running:
        assert worker.stop() == 0


def every_file_was_worked_on_once(workbench: Workbench, names: list[str]) -> bool:
    once = dict.fromkeys(names, 1)
    return workbench.begun() == once and workbench.finished() == once


def test_workers_that_come_and_go_do_each_file_exactly_once(workbench: Workbench) -> None:
    names = workbench.files(200)
    workbench.settings["processor"] = "tests.processors:traced"
    workbench.enqueue(buckets=5)
    stop_workers_at_random_moments(workbench, 6)
    assert any("job returned" in worker.log() for worker in workbench.workers)
    workbench.worker()
    assert workbench.ended().state == "done"
    assert every_file_was_worked_on_once(workbench, names)
    now = workbench.check_books()
    assert (now.done, now.retried) == (200, 0)
    assert workbench.leaves_nothing_behind()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_stops_do_each_file_exactly_once(workbench: Workbench) -> None:
    names = workbench.files(900)
    workbench.settings["processor"] = "tests.processors:traced"
    workbench.enqueue(buckets=20)
    for _ in range(10):
        stop_workers_at_random_moments(workbench, 20)
        workbench.check_books()
        if workbench.status().has_ended:  # a fast machine: go on with the same files, anew
            assert every_file_was_worked_on_once(workbench, names)
            workbench.redis.flushall()
            for folder in (workbench.target, workbench.folder / "trace"):
                for path in folder.iterdir():
                    path.unlink()
            workbench.enqueue(buckets=20)
    workbench.worker()
    workbench.worker()
    assert workbench.ended(timeout=120).state == "done"
    assert every_file_was_worked_on_once(workbench, names)
    now = workbench.check_books()
    assert (now.done, now.retried) == (900, 0)
    assert workbench.leaves_nothing_behind()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_worker_leaves_at_once(workbench: Workbench, number: signal.Signals) -> None:
    worker = workbench.worker().started()
    worker.kill(number)
    asked = time.monotonic()
    assert worker.wait() == 0
    assert time.monotonic() - asked < 1.5
    assert "worker stopped" in worker.log()


def test_the_file_in_hand_is_finished_and_the_next_is_not_begun(workbench: Workbench) -> None:
    workbench.file("a", "sleep 1")
    workbench.file("b", "sleep 1")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, files_per_job=10)
    worker = workbench.worker()
    worker.horse()
    worker.kill(signal.SIGTERM)
    worker.kill(signal.SIGTERM)  # being asked twice changes nothing
    assert worker.wait() == 0
    assert workbench.outputs() in (["a"], [])  # [] if it was asked before it had begun
    now = workbench.check_books()
    assert now.backlog.pending == 1
    assert now.backlog.in_flight == 0


def test_a_job_given_back_comes_before_those_that_wait(workbench: Workbench) -> None:
    workbench.files(60)
    workbench.settings["processor"] = "tests.processors:traced"
    workbench.enqueue(buckets=3)
    worker = workbench.worker().took()
    first = workbench.redis.lrange("rq:queue:imece", 0, -1)
    assert worker.stop() == 0
    now = workbench.redis.lrange("rq:queue:imece", 0, -1)
    assert now[1:] == first
    assert workbench.check_books().left > 0


def test_a_stop_ends_the_wait_for_a_retry_and_its_try_is_not_forgotten(
    workbench: Workbench,
) -> None:
    workbench.settings |= {"processor": "tests.processors:by_content", "retry_pause": "600"}
    workbench.file("f", f"once {workbench.folder}/tried")
    workbench.enqueue(retries=5)
    worker = workbench.worker()
    until(lambda: workbench.status().retried, "the first try")
    asked = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - asked < PROMPTLY
    [cursor] = workbench.redis.hvals("imece:run:run:jobs")
    assert b'"0":[1,' in cursor  # the file has been tried once
    assert workbench.check_books().backlog.pending == 1


def test_a_worker_stopped_while_it_imports_the_processor_leaves_without_a_job(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first process of a container it would otherwise not notice at all."""
    (tmp_path / "heavy.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'importing')!r}).touch()\n"
        "time.sleep(30)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    workbench.files(1)
    workbench.enqueue()
    worker = workbench.worker(processor="heavy:work")
    until((tmp_path / "importing").exists, "the import to begin")
    assert worker.stop() == 0
    assert workbench.check_books().backlog.pending == 1


def test_a_stop_in_careful_mode_loses_nothing(workbench: Workbench) -> None:
    names = workbench.files(60)
    workbench.settings |= {"processor": "tests.processors:traced", "lease": "3"}
    workbench.settings["heartbeat"] = "0.2"
    workbench.enqueue(buckets=1, files_per_job=100)
    workbench.worker().started().horse()
    workbench.workers[0].kill()
    second = workbench.worker().took()
    until(lambda: workbench.status().done > 1, "progress in careful mode")
    assert second.stop() == 0
    assert workbench.check_books().left > 0
    third = workbench.worker()
    assert workbench.ended().state == "done"
    assert third.stop() == 0
    assert workbench.outputs() == names
    # The killed worker may have been at one file; that one was begun again, and no other.
    assert sum(workbench.begun().values()) <= 61
    assert workbench.check_books().done == 60
