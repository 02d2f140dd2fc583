"""The promise: a retry comes after its pause, whatever the workers take for the time of day."""

import time
from dataclasses import replace

import pytest

from imece.run.job import Cursor, PendingRetry
from imece.run.parameters import Parameters
from imece_worker import retry
from imece_worker.retry import ServerClock
from tests.conftest import Workbench

HOUR = 3600.0


@pytest.fixture
def parameters(workbench: Workbench) -> Parameters:
    """Three retries, after 2, 4 and 8 seconds."""
    workbench.files(1)
    workbench.settings["retry_pause"] = "2"
    workbench.enqueue(retries=3)
    return workbench.status().parameters


def test_pauses_double_up_to_the_longest(parameters: Parameters) -> None:
    pauses = [retry.pause(tries, parameters) for tries in (1, 2, 3, 5, 6, 100, 10**6)]
    assert pauses == [2, 4, 8, 32, 60, 60, 60]
    assert retry.pause(10**6, replace(parameters, retry_pause=0.0)) == 0


def test_the_clock_is_the_servers_whatever_the_time_of_day_is_here(
    parameters: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_time = 1_700_000_000.0
    clock = ServerClock.at(server_time)
    monkeypatch.setattr(time, "time", lambda: server_time + HOUR)  # this worker's is wrong
    assert server_time <= clock.now() < server_time + 5
    tries, owed = retry.next_try(None, 0, parameters, clock)
    assert owed is not None
    assert (tries, owed.tries) == (1, 1)
    assert server_time + 2 <= owed.due < server_time + 7
    assert retry.next_try(PendingRetry(3, 0.0), 0, parameters, clock) == (4, None)


@pytest.mark.parametrize(
    ("last", "error", "all_tries", "again"),
    [
        (7, 7, False, False),
        (7, 8, False, True),  # another error, or another line
        (0, 0, False, True),  # may pass by itself
        (7, 0, False, True),
        (7, 7, True, True),
    ],
)
def test_the_same_error_twice_in_a_row_is_not_tried_again_unless_all_tries_are_wanted(
    parameters: Parameters, last: int, error: int, all_tries: bool, again: bool
) -> None:
    clock = ServerClock.at(1_700_000_000.0)
    wanted = replace(parameters, all_tries=all_tries)
    tries, owed = retry.next_try(PendingRetry(1, 0.0, last), error, wanted, clock)
    assert tries == 2
    assert (owed is not None) == again


def test_who_says_how_many_retries_gets_all_of_them(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue("by-setting")
    del workbench.settings["retries"]
    workbench.enqueue_apart("by-option", retries=2)
    workbench.enqueue_apart("by-nobody")
    runs = ("by-setting", "by-option", "by-nobody")
    assert [workbench.status(run).parameters.all_tries for run in runs] == [True, True, False]


def test_a_file_has_as_many_tries_as_help(workbench: Workbench) -> None:
    """Across executions, too: here a job for each of two tries."""
    del workbench.settings["retries"]
    workbench.settings |= {"processor": "tests.processors_that_fail:by_word"}
    for word in ("header", "ask", "exit"):
        workbench.file(word, word)
    workbench.enqueue(buckets=1, files_per_job=1)
    for _ in range(2):
        workbench.worker()
    workbench.ended()
    tries = {name: why.tries for name, why in workbench.failures().items()}
    assert tries == {"header": 2, "ask": 3, "exit": 3}


def test_who_takes_over_waits_no_longer_than_the_pause(parameters: Parameters) -> None:
    clock = ServerClock.at(1_700_000_000.0)
    now = clock.now()
    retries = {
        0: PendingRetry(1, now + HOUR),
        1: PendingRetry(3, now + HOUR),
        2: PendingRetry(1, now + 1),
        3: PendingRetry(1, now - HOUR),
        4: PendingRetry(2, float("inf")),
        5: PendingRetry(2, 1e300),
    }
    taken = retry.taken_over(retries, parameters, clock)
    waits = {index: entry.due - now for index, entry in taken.items()}
    assert waits == pytest.approx({0: 2, 1: 8, 2: 1, 3: -HOUR, 4: 4, 5: 4}, abs=0.1)
    assert [taken[index].tries for index in range(6)] == [1, 3, 1, 1, 2, 2]


@pytest.mark.parametrize("others_wait", [False, True])
def test_a_retry_that_is_due_in_an_hour_by_another_workers_clock_comes_after_its_pause(
    workbench: Workbench, others_wait: bool
) -> None:
    """As a worker leaves it whose clock is an hour ahead. Where other jobs wait, it is handed from
    one execution to the next, and still comes."""
    names = workbench.files(1)
    workbench.settings |= {"processor": "tests.processors:slow", "retry_pause": "0.5"}
    workbench.enqueue(buckets=1, files_per_job=1, retries=3)
    [field] = workbench.redis.hkeys("imece:imece:run:run:jobs")
    cursor = Cursor(1, 1, {0: PendingRetry(2, time.time() + HOUR)})
    workbench.redis.hset("imece:imece:run:run:jobs", field, cursor.encode())
    if others_wait:
        (workbench.folder / "more").mkdir()
        workbench.source = workbench.folder / "more"
        workbench.files(60)
        workbench.enqueue("more", files_per_job=1, target=str(workbench.folder / "out-of-more"))
    began = time.monotonic()
    workbench.worker()
    now = workbench.ended()
    assert (now.state, now.done) == ("done", 1)
    assert time.monotonic() - began >= 1  # the pause after two tries
    assert workbench.outputs() == names
