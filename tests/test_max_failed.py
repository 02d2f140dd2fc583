"""The promise: a run with too many failures stops before it has tried all files, and waits."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from imece.run.claim import Batch
from imece.run.failure import Failure
from imece.run.job import Cursor
from imece.run.parameters import Parameters
from imece_producer.enqueue import limits
from tests.conftest import Workbench, until
from tests.test_lease import Hand

WHY = Failure("it broke", 1, 1.0, "one", cause="exit code 1")


def fails(hand: Hand, files: int, stop: int, action: Any = "continue") -> str:
    """Records that the next files have failed; the verdict."""
    hand.number += 1
    names = [f"{hand.name}-{hand.number}-{index}".encode() for index in range(files)]
    batch = Batch(failed=files, failures=[(name, WHY) for name in names])
    return hand.send(action, hand.number, Cursor(files, stop), batch)[0]


def queued(workbench: Workbench) -> int:
    """How many jobs an autoscaler counts."""
    now = workbench.status().backlog
    return now.pending


@pytest.mark.parametrize(
    ("given", "files", "limit"),
    [
        (None, 100, None),
        ("0", 100, (0, 0)),
        ("100", 10, (100, 0)),
        ("5%", 1000, (50, 20)),
        ("5%", 19, (0, 20)),
        ("0.1%", 100_000, (100, 20)),
        ("29%", 100, (29, 20)),  # 0.29 * 100 is 28.999999999999996
        ("100%", 10, (10, 20)),
    ],
)
def test_the_limit_of_a_round(
    workbench: Workbench, given: str | None, files: int, limit: tuple[int, int] | None
) -> None:
    workbench.files(1)
    workbench.enqueue(max_failed=given)
    parameters = workbench.status().parameters
    assert parameters.most_failed(files) == limit
    assert Parameters.decode(parameters.encode()) == parameters


@pytest.mark.parametrize("given", ["x", "-1", "5 %", "101%", "1.5", "1e3", "%", "5%%"])
def test_what_is_no_limit_is_refused_with_what_it_takes(workbench: Workbench, given: str) -> None:
    workbench.files(1)
    call = ("enqueue", str(workbench.source), str(workbench.target))
    by_option = workbench.imece(*call, f"--max-failed={given}")
    workbench.settings["max_failed"] = given
    for answer in (by_option, workbench.imece(*call)):
        assert answer.returncode == 2
        assert f"{given!r}: takes a number of files, or a percentage" in answer.stderr


def test_a_run_is_held_when_more_files_have_failed(workbench: Workbench) -> None:
    workbench.files(100)
    workbench.enqueue(buckets=1, files_per_job=10, max_failed="5")
    one, two = Hand(workbench, "one"), Hand(workbench, "two")
    one.hold()
    two.hold()
    assert fails(one, 3, 10) == "held"
    assert fails(two, 2, 10) == "held"
    assert queued(workbench) == 8
    assert fails(one, 1, 10) == "stop"
    now = workbench.status()
    assert now.is_held
    assert now.failed == 6
    assert now.blocking_reason == (
        "6 of 100 files have failed, and --max-failed allows 5: `imece failures run --by-cause` "
        "says why, and `imece resume run` goes on after the fix"
    )
    assert queued(workbench) == 0
    # Who hears of it with the next sign of life gives the job back, with all that was done.
    assert two.send("return", 2, Cursor(4, 10), Batch(done=2))[0] == "stop"
    assert one.send("return", 3, Cursor(8, 10), Batch(done=4))[0] == "stop"
    assert queued(workbench) == 0
    assert workbench.status().backlog.in_flight == 0
    assert (workbench.status().done, workbench.status().left) == (6, 88)
    answer = workbench.imece("status", "run")
    assert "run run: held" in answer.stdout
    assert "exit code 1, as one-1-0" in answer.stdout


def test_a_batch_that_comes_again_after_the_hold_counts_once(workbench: Workbench) -> None:
    workbench.files(10)
    workbench.enqueue(buckets=1, files_per_job=5, max_failed="1")
    one = Hand(workbench, "one")
    one.hold()
    assert fails(one, 2, 5) == "stop"
    one.number -= 1
    assert fails(one, 2, 5) == "stop"
    assert (workbench.status().failed, workbench.run().causes()[0].count) == (2, 2)


def test_a_percentage_counts_after_twenty_files_have_ended(workbench: Workbench) -> None:
    workbench.files(100)
    workbench.enqueue(buckets=1, files_per_job=100, max_failed="5%")
    one = Hand(workbench, "one")
    one.hold()
    assert fails(one, 6, 100) == "held"
    assert one.send("continue", 2, Cursor(19, 100), Batch(done=13))[0] == "held"
    assert one.send("continue", 3, Cursor(20, 100), Batch(done=1))[0] == "stop"
    assert workbench.status().is_held


def test_a_run_whose_last_file_fails_has_ended(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.enqueue(buckets=1, files_per_job=3, max_failed="0")
    one = Hand(workbench, "one")
    one.hold()
    fails(one, 3, 3, "finish")
    assert workbench.status().state == "failed"
    assert workbench.status().blocking_reason is None


@pytest.fixture
def failing(workbench: Workbench) -> Workbench:
    """80 files: each second one fails."""
    for number in range(80):
        workbench.file(f"f-{number:02}", ("header", "fine")[number % 2])
    workbench.settings["processor"] = "tests.processors_that_fail:by_word"
    return workbench


def test_workers_begin_no_file_of_a_held_run_and_resume_goes_on(failing: Workbench) -> None:
    failing.settings["checkpoint"] = "0.05"
    failing.enqueue(buckets=1, files_per_job=4, retries=0, max_failed="5")
    for _ in range(3):
        failing.worker()
    until(lambda: failing.status().is_held, "the run to be held")
    until(lambda: failing.status().backlog.in_flight == 0, "the jobs to be given back")
    before = failing.status()
    assert before.failed > 5
    assert before.backlog.pending == 0
    assert failing.imece("wait", "run").returncode == 1
    (failing.folder / "fixed-header").touch()
    assert failing.imece("resume", "run").returncode == 0
    now = failing.ended()
    assert (now.state, now.failed, now.left) == ("done", 0, 0)
    assert len(failing.outputs()) == 80
    assert now.files == 80 - before.done


def test_a_resumed_run_is_not_held_again_at_the_same_count(failing: Workbench) -> None:
    """The files that had failed are tried again and may fail again, and as many others."""
    failing.enqueue(buckets=1, files_per_job=2, retries=0, max_failed="5")
    failing.worker()
    until(lambda: failing.status().is_held, "the run to be held")
    until(lambda: failing.status().backlog.in_flight == 0, "the job to be given back")
    first = failing.status().failed
    failing.imece("resume", "run")
    until(lambda: failing.status().is_held, "the run to be held again")
    assert f"--max-failed allows {first + 5}:" in (failing.status().blocking_reason or "")
    assert failing.status().failed > first + 5


def test_a_retry_of_one_cause_is_not_held_for_the_failures_that_stay(failing: Workbench) -> None:
    failing.file("other", "body")
    failing.enqueue(buckets=1, retries=0)
    failing.worker()
    failing.ended()
    parameters = replace(failing.status().parameters, max_failed="5")
    failing.redis.hset(failing.run().key, "parameters", parameters.encode())
    numbers = {one.count: one.number for one in failing.run().causes()}
    (failing.folder / "fixed-body").touch()
    assert failing.imece("retry", "run", "--cause", str(numbers[1])).returncode == 0
    now = failing.ended()
    assert (now.state, now.failed, now.done) == ("failed", 40, 1)


def test_the_next_round_of_a_run_that_was_not_held_counts_from_none(failing: Workbench) -> None:
    failing.enqueue(buckets=1, retries=0)
    failing.worker()
    failing.ended()
    parameters = replace(failing.status().parameters, max_failed="5")
    before = failing.run().snapshot()
    assert limits(parameters, before, 80, 0) == {"most_failed": 5, "fewest_ended": 0}
    assert limits(parameters, replace(before, state="held"), 80, 0)["most_failed"] == 45
    assert limits(replace(parameters, max_failed=None), before, 80, 0) == {}


def test_a_local_run_that_is_held_says_so_and_goes_on_with_the_same_call(
    failing: Workbench,
) -> None:
    del failing.settings["redis_url"]
    paths = (str(failing.source), str(failing.target))
    call = ("local", *paths, "--max-failed", "5", "-j", "1", "--retries", "0")
    answer = failing.imece(*call)
    assert answer.returncode == 1
    assert re.search(r"run \S+: held", answer.stdout)
    assert "files have failed, and --max-failed allows 5" in answer.stdout
    assert "ValueError in processors_that_fail.py" in answer.stdout
    assert "held; to go on when that is fixed, call the same again:" in answer.stderr
    (failing.folder / "fixed-header").touch()
    answer = failing.imece(*call)
    assert answer.returncode == 0, answer
    assert len(failing.outputs()) == 80
    shown = json.loads(failing.imece("runs", "--json").stdout)
    assert [run["state"] for run in shown] == ["done"]
