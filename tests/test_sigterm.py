"""The promise: a stopped worker finishes the file in hand, gives the rest back, and exits 0."""

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from imece_worker.stops import STOP_SIGNALS
from tests.conftest import Workbench, WorkerProcess, catches, until

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


@pytest.mark.slow
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
                shutil.rmtree(folder)
            workbench.enqueue(buckets=20)
    workbench.worker()
    workbench.worker()
    assert workbench.ended(timeout=120).state == "done"
    assert every_file_was_worked_on_once(workbench, names)
    now = workbench.check_books()
    assert (now.done, now.retried) == (900, 0)
    assert workbench.leaves_nothing_behind()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_an_idle_worker_leaves_at_once(workbench: Workbench, number: signal.Signals) -> None:
    worker = workbench.worker().started()
    worker.kill(number)
    asked = time.monotonic()
    assert worker.wait() == 0
    assert time.monotonic() - asked < 1.5
    assert "worker stopped" in worker.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_file_in_hand_is_finished_and_the_next_is_not_begun(
    workbench: Workbench, number: signal.Signals
) -> None:
    workbench.file("a", "sleep 1")
    workbench.file("b", "sleep 1")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, files_per_job=10)
    worker = workbench.worker()
    worker.runner()
    worker.kill(number)
    worker.kill(number)  # being asked twice changes nothing
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
    [cursor] = workbench.redis.hvals("imece:imece:run:run:jobs")
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


def test_a_stop_in_crash_isolation_loses_nothing(workbench: Workbench) -> None:
    names = workbench.files(60)
    workbench.settings |= {"processor": "tests.processors:traced", "lease": "3"}
    workbench.settings["heartbeat"] = "0.2"
    workbench.enqueue(buckets=1, files_per_job=100)
    workbench.worker().started().runner()
    workbench.workers[0].kill()
    second = workbench.worker().took()
    until(lambda: workbench.status().done > 1, "progress in crash isolation")
    assert second.stop() == 0
    assert workbench.check_books().left > 0
    third = workbench.worker()
    assert workbench.ended().state == "done"
    assert third.stop() == 0
    assert workbench.outputs() == names
    # The killed worker may have been at one file; that one was begun again, and no other.
    assert sum(workbench.begun().values()) <= 61
    assert workbench.check_books().done == 60


def family(pid: int) -> list[int]:
    """A process and all that descend from it, parents first."""
    found = [pid]
    for member in found:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
    return found


def signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


PROGRAM = """#!/bin/sh
# Half an output, a pause, the other half; or whatever is asked for.
{before}
printf half > "$2"
echo $$ > {folder}/began.new; mv {folder}/began.new {folder}/began
i=0; while [ $i -lt 40 ]; do sleep 0.05; i=$((i+1)); done
printf %s-and-half >> "$2"
"""


def a_program_at_work(workbench: Workbench, before: str = "", **settings: str) -> WorkerProcess:
    """A worker with a program of two seconds that has just begun with its only file."""
    program = workbench.folder / "program"
    program.write_text(PROGRAM.format(before=before, folder=workbench.folder))
    program.chmod(0o755)
    workbench.files(1)
    workbench.enqueue(retries=0)
    if not settings:
        del workbench.settings["processor"]
        settings = {"command": f"{program} {{input}} {{output}}"}
    worker = workbench.worker(**settings)
    until((workbench.folder / "began").exists, "the program to begin")
    return worker


def is_given_back_and_not_charged(workbench: Workbench) -> bool:
    now = workbench.check_books()
    assert (now.left, now.failed, now.retried, now.backlog.pending) == (1, 0, 0, 1)
    [cursor] = workbench.redis.hvals("imece:imece:run:run:jobs")
    assert b"{}" in cursor  # no try is owed
    return workbench.outputs() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_function_goes_on_when_all_processes_of_its_worker_get_the_signal(
    workbench: Workbench, number: signal.Signals
) -> None:
    """As from systemd, whose default is KillMode=control-group."""
    workbench.file("a", "sleep 1")
    workbench.file("b", "sleep 1")
    workbench.settings["processor"] = "tests.processors:by_content_traced"
    workbench.enqueue(buckets=1, files_per_job=10, retries=0)
    worker = workbench.worker()
    until(lambda: workbench.begun() == {"a": 1}, "the first file to be in hand")
    for _ in range(3):
        signal_all(family(worker.pid), number)
    assert worker.wait() == 0
    assert workbench.outputs() == ["a"]
    now = workbench.check_books()
    assert (now.done, now.failed, now.retried, now.backlog.pending) == (1, 0, 0, 1)


def test_an_import_that_ends_by_the_signal_keeps_no_function_from_going_on(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some libraries set a handler of their own."""
    (workbench.folder / "ender.py").write_text(
        "import os, signal\nfrom tests.processors import by_content_traced as f\n"
        "signal.signal(signal.SIGTERM, lambda *about: os._exit(1))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(workbench.folder))
    workbench.file("a", "sleep 1")
    workbench.enqueue(retries=0)
    worker = workbench.worker(processor="ender:f")
    until(lambda: workbench.begun() == {"a": 1}, "the file to be in hand")
    signal_all(family(worker.pid)[::-1], signal.SIGTERM)
    assert worker.wait() == 0
    assert workbench.outputs() == ["a"]
    assert workbench.status().failed == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(
    "before",
    [
        "",
        "trap 'exit 1' TERM HUP INT",
        "trap 'exit 0' TERM HUP INT",
        "trap 'exit 143' TERM HUP INT",
    ],
    ids=["dies", "fails", "says it is well", "tells by its exit code"],
)
def test_a_program_that_gets_its_workers_signal_costs_its_file_no_try(
    workbench: Workbench, before: str, number: signal.Signals
) -> None:
    worker = a_program_at_work(workbench, before)
    signal_all(family(worker.pid), number)
    assert worker.wait() == 0
    assert is_given_back_and_not_charged(workbench)


def test_a_program_that_dies_of_the_signal_before_its_worker_hears_of_it_costs_no_try(
    workbench: Workbench,
) -> None:
    worker = a_program_at_work(workbench)
    [program] = family(worker.runner())[1:2]
    os.kill(program, signal.SIGTERM)
    time.sleep(0.3)  # the worker takes that long to hear of it
    assert worker.stop() == 0
    assert is_given_back_and_not_charged(workbench)


def test_a_program_that_somebody_ends_while_nobody_stops_the_worker_has_failed(
    workbench: Workbench,
) -> None:
    worker = a_program_at_work(workbench)
    os.kill(family(worker.runner())[1], signal.SIGTERM)
    now = workbench.ended()
    assert (now.state, now.failed) == ("failed", 1)
    assert "was killed by signal 15" in workbench.failures()["f-0000.txt"].last_line
    assert worker.stop() == 0


def test_a_program_within_a_function_that_gets_the_signal_costs_its_file_no_try(
    workbench: Workbench,
) -> None:
    (workbench.folder / "calls.py").write_text(
        "import subprocess\n"
        "def it(source, target):\n"
        f"    subprocess.run(['{workbench.folder}/program', source, target], check=True)\n"
    )
    os.environ["PYTHONPATH"] = str(workbench.folder)
    try:
        worker = a_program_at_work(workbench, processor="calls:it")
    finally:
        del os.environ["PYTHONPATH"]
    signal_all(family(worker.pid), signal.SIGTERM)
    assert worker.wait() == 0
    assert is_given_back_and_not_charged(workbench)


def test_a_function_that_lets_itself_be_killed_by_the_signal_costs_its_file_no_try(
    workbench: Workbench,
) -> None:
    workbench.file("a", "sleep-and-die-of-sigterm")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(retries=0)
    worker = workbench.worker()
    until((workbench.folder / "began").exists, "the file to begin")
    signal_all(family(worker.pid)[::-1], signal.SIGTERM)
    assert worker.wait() == 0
    assert is_given_back_and_not_charged(workbench)


def test_sigquit_gives_the_file_in_hand_back_too(workbench: Workbench) -> None:
    workbench.file("a", "sleep 600")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(retries=0, buckets=1)
    worker = workbench.worker().took()
    worker.runner()
    asked = time.monotonic()
    worker.kill(signal.SIGQUIT)
    assert worker.wait() == 0
    assert time.monotonic() - asked < PROMPTLY
    assert is_given_back_and_not_charged(workbench)


@pytest.mark.slow
def test_nohup_is_heeded(workbench: Workbench) -> None:
    names = workbench.files(3)
    worker = workbench.worker(
        before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None
    ).started()
    worker.kill(signal.SIGHUP)
    workbench.enqueue()
    assert workbench.ended().state == "done"
    assert workbench.outputs() == names
    assert worker.stop() == 0


def test_a_stop_in_a_workers_first_moments_is_not_lost_and_no_failure(
    workbench: Workbench,
) -> None:
    chance = random.Random(5)
    for _ in range(8):
        worker = workbench.worker(fresh=True)
        until(lambda: catches(worker.pid, signal.SIGTERM), "it to listen at all")  # noqa: B023
        time.sleep(chance.uniform(0, 0.1))  # the random moment: while it starts anew, or imports
        assert worker.stop() == 0
