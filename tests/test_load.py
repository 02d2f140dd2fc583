"""The promise: many jobs block nobody, a run comes whole or not at all, and no job is lost from the
queue for ever."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Workbench, until
from tests.key_lifetimes import flaws

SLOWEST = 20_000
"""Microseconds one command may take."""

QUEUE = ("rq:queue:imece", "rq:queue:imece:intermediate")


def names_file(workbench: Workbench, count: int) -> Path:
    path = workbench.folder / f"names-{count}"
    path.write_text("".join(f"{number % 100:02d}/{number:07d}\n" for number in range(count)))
    return path


def enqueue_call(workbench: Workbench, count: int, run_id: str = "run") -> list[str]:
    """One job a file; the files need not be there."""
    return [
        *("enqueue", str(workbench.source), str(workbench.target), "--run-id", run_id),
        *("--from-file", str(names_file(workbench, count)), "--files-per-job", "1"),
        *("--retries", "0"),
    ]


def told(workbench: Workbench, *arguments: str) -> str:
    answer = workbench.imece(*arguments, timeout=900)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def waiting(workbench: Workbench) -> int:
    """Jobs in the queue, on their way out of it, or in flight."""
    lists = sum(workbench.redis.llen(key) for key in QUEUE)
    in_flight: int = workbench.redis.zcard("rq:wip:imece")
    return lists + in_flight


def watch_for_slow_commands(workbench: Workbench) -> None:
    workbench.redis.config_set("slowlog-log-slower-than", SLOWEST)
    workbench.redis.config_set("slowlog-max-len", 1000)
    workbench.redis.slowlog_reset()


TRIES = 3
"""SLOWLOG counts the time in which the server had no processor, too: on a busy machine a quick
command may be in it once. A slow one is in it each time."""


def slow_commands(workbench: Workbench) -> list[tuple[float, str]]:
    """Milliseconds and the beginning of each command that took too long."""
    found: list[dict[str, Any]] = workbench.redis.slowlog_get(1000)
    return [(entry["duration"] / 1000, str(entry["command"][:120])) for entry in found]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("jobs", [20_000, 100_000, 1_000_000])
def test_no_command_over_many_jobs_is_slow(
    workbench: Workbench, jobs: int, record_property: Callable[[str, object], None]
) -> None:
    watch_for_slow_commands(workbench)
    for _ in range(TRIES):
        if not (slow := slow_in_a_life(workbench, jobs, record_property)):
            break
    assert slow == {}


def slow_in_a_life(
    workbench: Workbench, jobs: int, record_property: Callable[[str, object], None]
) -> dict[str, list[tuple[float, str]]]:
    """The slow commands in a run's life, by the command of imece that sent them."""
    workbench.redis.slowlog_reset()
    began = time.monotonic()
    told(workbench, *enqueue_call(workbench, jobs))
    seconds = {"enqueue": time.monotonic() - began}
    memory = workbench.redis.info("memory")["used_memory"]
    slow = {"enqueue": slow_commands(workbench)}
    for command in (("status", "run", "--json"), ("runs",), ("cancel", "run"), ("status", "run")):
        workbench.redis.slowlog_reset()
        began = time.monotonic()
        told(workbench, *command)
        seconds[command[0]] = time.monotonic() - began
        slow[command[0]] = slow_commands(workbench)
        if command[0] == "cancel":
            assert waiting(workbench) == 0
            assert flaws(workbench.redis, workbench.load()) == []
    workbench.redis.slowlog_reset()
    told(workbench, "delete", "run")
    slow["delete"] = slow_commands(workbench)
    record_property("seconds", seconds)
    record_property("bytes of Redis for each job", memory / jobs)
    print(f"{jobs:,} jobs: {memory / jobs:.0f} bytes each; seconds: {seconds}")
    assert list(workbench.redis.scan_iter("imece:imece:run:*")) == []
    return {command: found for command, found in slow.items() if found}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cancelled_run_of_many_jobs_goes_on_and_is_cancelled_by_its_workers_too(
    workbench: Workbench,
) -> None:
    """While they take jobs and end them: what leaves the queue is never more than is in it."""
    count = 20_000
    watch_for_slow_commands(workbench)
    call = enqueue_call(workbench, count)
    for _ in range(2):
        workbench.worker().started()
    for _ in range(3):
        told(workbench, *call)
        until(lambda: workbench.status().failed > 20, "the first files")
        told(workbench, "cancel", "run")
        until(lambda: waiting(workbench) == 0, "the files in hand", timeout=5)
        now = workbench.status()
        assert now.state == "cancelled"
        assert 0 < now.left < count
    assert slow_commands(workbench) == []


@pytest.mark.parametrize("jobs", [10, 3_000])
def test_a_cancel_takes_effect_at_once_without_any_worker(workbench: Workbench, jobs: int) -> None:
    told(workbench, *enqueue_call(workbench, jobs))
    assert workbench.redis.llen("rq:queue:imece") > 0
    told(workbench, "cancel", "run")
    assert workbench.status().state == "cancelled"
    assert waiting(workbench) == 0


def test_a_cancel_leaves_the_jobs_of_other_runs_alone(workbench: Workbench) -> None:
    call = enqueue_call(workbench, 3_000)
    told(workbench, *call)
    workbench.files(20)
    source, target = str(workbench.source), str(workbench.target)
    told(workbench, "enqueue", source, target, "--run-id", "other", "--files-per-job", "1")
    told(workbench, "cancel", "run")
    assert waiting(workbench) == 20
    workbench.worker()
    assert workbench.ended("other").done == 20
    assert workbench.status().state == "cancelled"


@pytest.mark.slow
def test_a_small_run_does_not_wait_behind_all_jobs_of_a_large_one(workbench: Workbench) -> None:
    """At most so many jobs of a run are in the queue at a time; the others come after them."""
    told(workbench, *enqueue_call(workbench, 5_000))
    workbench.files(5)
    source, target = str(workbench.source), str(workbench.target)
    told(workbench, "enqueue", source, target, "--run-id", "small")
    workbench.worker()
    assert workbench.ended("small", timeout=60).done == 5
    assert workbench.status().left > 2_000
    told(workbench, "cancel", "run")


# A producer that is killed


def whole_or_not_at_all(workbench: Workbench, count: int, share: float, seconds: float) -> str:
    """Kills a producer after this share of the seconds that one takes from its claim to its end.

    Returns:
        What others see then: the run, or nothing.
    """
    names = [f"{number % 100:02d}/{number:07d}" for number in range(count)]
    before = set(workbench.redis.scan_iter("imece:imece:run:run*"))
    process = subprocess.Popen(
        [sys.executable, "-m", "imece_producer", *enqueue_call(workbench, count)],
        env={**os.environ, **workbench.environment()},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def has_claimed() -> bool:
        now = set(workbench.redis.scan_iter("imece:imece:run:run*"))
        return now != before or process.poll() is not None

    until(has_claimed, "the id to be taken")
    time.sleep(seconds * share)  # the random moment
    process.kill()
    process.wait()
    assert flaws(workbench.redis, workbench.load()) == []
    seen = workbench.imece("status", "run", "--json")
    state = json.loads(seen.stdout)["state"] if seen.returncode == 0 else None
    if state in (None, "listing"):  # a listing run is not visible to workers, and soon gone
        assert waiting(workbench) == 0
        return "nothing"
    assert json.loads(seen.stdout)["files"] == len(names)
    return "the run"


def seconds_of_an_enqueuing(workbench: Workbench, count: int) -> float:
    """From its claim to its end."""
    began = time.monotonic()
    told(workbench, *enqueue_call(workbench, count, run_id="other"))
    whole = time.monotonic() - began
    began = time.monotonic()
    workbench.imece("runs")
    told(workbench, "cancel", "other")
    return max(0.1, whole - (time.monotonic() - began) / 2)


@pytest.mark.slow
def test_a_producer_that_is_killed_leaves_a_whole_run_or_none(workbench: Workbench) -> None:
    count = 400
    seconds = seconds_of_an_enqueuing(workbench, count)
    whole_or_not_at_all(workbench, count, 0.3, seconds)
    every_file_is_through(workbench, count)


def every_file_is_through(workbench: Workbench, count: int) -> None:
    """Whatever a producer has left: the next one attaches or begins anew, and workers end it."""
    for directory in range(100):
        (workbench.source / f"{directory:02d}").mkdir(exist_ok=True)
    for number in range(count):
        (workbench.source / f"{number % 100:02d}" / f"{number:07d}").touch()
    told(workbench, *enqueue_call(workbench, count))
    for _ in range(2):
        workbench.worker()
    last = workbench.ended(timeout=240)
    assert (last.state, last.files, last.done, last.left) == ("done", count, count, 0)
    assert len(workbench.outputs()) == count
    assert waiting(workbench) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_producers_killed_at_any_moment_leave_a_whole_run_or_none(workbench: Workbench) -> None:
    count = 20_000
    chance = random.Random(29)
    seconds = seconds_of_an_enqueuing(workbench, count)
    seen = []
    for _ in range(15):
        seen.append(whole_or_not_at_all(workbench, count, chance.uniform(0, 1.2), seconds))
        workbench.redis.flushall()
    assert "nothing" in seen
    whole_or_not_at_all(workbench, count, chance.uniform(0.7, 1), seconds)
    every_file_is_through(workbench, count)


# Jobs that are lost from the queue


def a_run_of_single_files(workbench: Workbench, files: int) -> list[str]:
    names = workbench.files(files)
    workbench.settings |= {"processor": "tests.processors:traced", "lease": "3", "heartbeat": "0.2"}
    source, target = str(workbench.source), str(workbench.target)
    told(workbench, "enqueue", source, target, "--run-id", "run", "--files-per-job", "1")
    return names


def each_file_is_done_once(workbench: Workbench, names: list[str]) -> bool:
    last = workbench.ended(timeout=60)
    assert (last.state, last.done, last.left) == ("done", len(names), 0)
    assert workbench.outputs() == names
    assert workbench.begun() == dict.fromkeys(names, 1)
    assert waiting(workbench) == 0
    return True


def test_jobs_that_were_taken_out_of_the_queue_come_back(workbench: Workbench) -> None:
    """As by `rq empty`: no worker is on."""
    names = a_run_of_single_files(workbench, 30)
    workbench.redis.delete("rq:queue:imece")
    workbench.worker()
    assert each_file_is_done_once(workbench, names)


@pytest.mark.slow
def test_jobs_taken_out_of_the_queue_while_workers_are_on_come_back_once(
    workbench: Workbench,
) -> None:
    """Three look for lost jobs, and each job comes back once."""
    names = a_run_of_single_files(workbench, 90)
    for _ in range(3):
        workbench.worker().started()
    for goal in (10, 40):
        until(lambda: workbench.status().done > goal, "some files")  # noqa: B023
        workbench.redis.delete("rq:queue:imece")
    assert each_file_is_done_once(workbench, names)


def test_jobs_that_a_stock_rq_worker_has_swallowed_come_back(workbench: Workbench) -> None:
    names = a_run_of_single_files(workbench, 30)
    stock = Path(sys.executable).with_name("rq")
    subprocess.run(
        [stock, "worker", "--burst", "--url", workbench.server.url, "imece"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert workbench.redis.llen("rq:queue:imece") == 0
    workbench.worker()
    assert each_file_is_done_once(workbench, names)


@pytest.mark.slow
def test_jobs_of_a_run_larger_than_the_queue_come_back(workbench: Workbench) -> None:
    """Those that were in the queue are lost; those that wait behind them are not."""
    count = 1_500
    told(workbench, *enqueue_call(workbench, count))
    workbench.settings |= {"lease": "3", "heartbeat": "0.2"}
    workbench.redis.delete("rq:queue:imece")
    for _ in range(2):
        workbench.worker()
    last = workbench.ended(timeout=100)
    assert (last.failed, last.left) == (count, 0)
    assert waiting(workbench) == 0


def test_the_lost_jobs_of_a_cancelled_run_do_not_come_back(workbench: Workbench) -> None:
    a_run_of_single_files(workbench, 30)
    told(workbench, "cancel", "run")
    worker = workbench.worker().started()
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 4, "the worker to look for lost jobs")
    assert waiting(workbench) == 0
    assert worker.log().count("job taken") == 0
    assert workbench.begun() == {}
