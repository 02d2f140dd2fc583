"""The promise: a file that a worker has been at for longer than a second is named wherever somebody
looks: in the status, in the worker's log and metrics, and when the worker is asked to stop."""

import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from imece import names
from imece.run import keys, status
from imece.run.claim import Batch, CurrentFile
from imece.run.dead_workers import requeue_dead
from imece.run.job import Cursor
from imece.run.status import Status
from imece_producer import display
from imece_producer.follow import Lines
from imece_producer.local import record
from tests.conftest import Workbench, until
from tests.test_lease import QUEUE, Hand
from tests.test_metrics import samples, watched

NAME = b"odd: \xff\n\x1b[2J.txt"


def named(workbench: Workbench) -> list[bytes]:
    return [name for name, _ in workbench.status().current_files]


def hold_up(workbench: Workbench, name: bytes = NAME, quick: int = 3) -> Path:
    """Files of which one, in a job of its own, waits for the path that is returned."""
    go_on = workbench.folder / "go-on"
    workbench.files(quick)
    (workbench.source / os.fsdecode(name)).write_text(f"wait-for {go_on}")
    workbench.settings["processor"] = "tests.processors:by_content"
    return go_on


# In Redis, without a worker


@pytest.fixture
def hands(workbench: Workbench) -> list[Hand]:
    """One for each of 25 jobs, which all have been taken."""
    workbench.files(25)
    workbench.enqueue(buckets=1, files_per_job=1)
    made = [Hand(workbench, f"hand-{number}") for number in range(25)]
    for hand in made:
        hand.hold()
    return made


def beat(hand: Hand, name: bytes | None, seconds: float = 0.0) -> None:
    current = CurrentFile(name, seconds) if name is not None else None
    assert hand.lease.checkpoint("continue", current=current)[0] in ("held", "stop")


def test_the_longest_come_first_and_twenty_are_named(
    workbench: Workbench, hands: list[Hand]
) -> None:
    for number, hand in enumerate(hands):
        beat(hand, b"file-%d" % number, 10.0 + number)
    now = workbench.status()
    assert now.current_files_count == 25
    assert [name for name, _ in now.current_files] == [b"file-%d" % n for n in range(24, 4, -1)]
    assert now.current_files[0].seconds == pytest.approx(34.0, abs=5)
    summary = now.summary()
    assert len(summary["current_files"]) == status.CURRENT_FILES
    assert summary["current_files_count"] == 25


def test_a_worker_is_named_with_the_file_that_it_is_at_now(
    workbench: Workbench, hands: list[Hand]
) -> None:
    hand = hands[0]
    beat(hand, NAME, 2.0)
    assert named(workbench) == [NAME]
    beat(hand, NAME, 3.0)
    assert named(workbench) == [NAME]
    beat(hand, b"next", 1.5)
    assert named(workbench) == [b"next"]
    beat(hand, None)
    assert named(workbench) == []
    assert not workbench.redis.exists("imece:imece:run:run:current")


def test_quick_files_leave_no_trace(workbench: Workbench, hands: list[Hand]) -> None:
    workbench.redis.config_resetstat()
    for hand in hands:
        hand.record(stop=1)
        beat(hand, None)
    assert not workbench.redis.exists("imece:imece:run:run:current")
    assert "cmdstat_zrem" not in workbench.redis.info("commandstats")


@pytest.mark.parametrize("action", ["return", "defer", "stall", "finish"])
def test_it_is_gone_with_the_job(workbench: Workbench, hands: list[Hand], action: str) -> None:
    for hand in hands[:2]:
        beat(hand, b"of " + hand.name.encode(), 5.0)
    hands[0].send(action, 1, Cursor(1, 1), Batch(done=1))  # type: ignore[arg-type]
    assert named(workbench) == [b"of hand-1"]


def test_it_is_gone_with_the_run(workbench: Workbench, hands: list[Hand]) -> None:
    for hand in hands:
        beat(hand, b"name", 5.0)
    for hand in hands:
        hand.send("finish", 1, Cursor(1, 1), Batch(done=1))
    assert workbench.status().state == "done"
    assert named(workbench) == []
    assert not workbench.redis.exists("imece:imece:run:run:current")


def test_it_is_gone_with_its_worker(workbench: Workbench, hands: list[Hand]) -> None:
    for hand in hands[:2]:
        beat(hand, b"of " + hand.name.encode(), 5.0)
    hands[0].lapse()
    list(requeue_dead(workbench.redis, workbench.load(), {}, 0.0, 10**6))
    assert hands[0].member.encode() not in workbench.redis.zrange(keys.leases(QUEUE), 0, -1)
    assert b"of hand-0" not in named(workbench)


def test_whoever_takes_a_job_is_not_at_the_file_of_the_last_one(
    workbench: Workbench, hands: list[Hand]
) -> None:
    """Somebody has removed the leases, so nobody has noticed the end of the first worker."""
    beat(hands[0], NAME, 5.0)
    workbench.redis.delete(keys.leases(QUEUE))
    workbench.redis.lpush(keys.pending(QUEUE), hands[0].lease.reference.job_id)
    Hand(workbench, "another").hold()
    assert named(workbench) == []


def test_a_held_run_names_the_files_that_are_still_in_work(
    workbench: Workbench, hands: list[Hand]
) -> None:
    for hand in hands[:2]:
        beat(hand, b"of " + hand.name.encode(), 5.0)
    workbench.run().hold("for a reason")
    assert named(workbench) == []
    beat(hands[0], b"of hand-0", 6.0)
    assert named(workbench) == [b"of hand-0"]


def test_all_that_is_noted_ends_with_the_run(workbench: Workbench, hands: list[Hand]) -> None:
    beat(hands[0], NAME, 5.0)
    assert workbench.redis.ttl("imece:imece:run:run:current") > 0
    workbench.run().cancel(60)
    workbench.run().delete()
    assert list(workbench.redis.scan_iter("imece:imece:run:*")) == []


# With a worker


def test_the_status_names_it_until_it_ends(workbench: Workbench) -> None:
    go_on = hold_up(workbench)
    workbench.enqueue(buckets=1)
    workbench.worker()
    until(lambda: named(workbench) == [NAME], "the file to be named")
    found = json.loads(workbench.imece("status", "run", "--json").stdout)
    assert found["current_files_count"] == 1
    assert os.fsencode(found["current_files"][0]["file"]) == NAME
    assert found["current_files"][0]["seconds"] >= 1
    shown = workbench.imece("status", "run").stdout
    line = next(line for line in shown.splitlines() if "current" in line)
    assert names.shown(NAME) in line
    go_on.touch()
    assert workbench.ended().done == 4
    assert named(workbench) == []


def test_it_is_soon_gone_when_its_worker_is_killed(workbench: Workbench) -> None:
    hold_up(workbench)
    workbench.enqueue(buckets=1)
    worker = workbench.worker()
    until(lambda: named(workbench) == [NAME], "the file to be named")
    worker.kill()
    worker.wait()
    workbench.settings["processor"] = "tests.processors:copy"
    workbench.worker()
    workbench.ended()
    assert named(workbench) == []


def test_the_log_and_the_metrics_have_it(workbench: Workbench) -> None:
    go_on = hold_up(workbench)
    workbench.enqueue(buckets=1)
    worker, port = watched(workbench, log_level="debug")
    until(lambda: worker.events("file takes long"), "the log to tell")
    event = worker.events("file takes long")[0]
    assert (event["file"], event["run"]) == (names.shown(NAME), "run")
    assert event["seconds"] >= 1
    until(lambda: samples(port)["imece_current_file_seconds", ""] > 1, "the metric")
    assert not any(name == "imece_slow_file_seconds" for name, _ in samples(port))
    go_on.touch()
    workbench.ended()
    until(lambda: samples(port)["imece_current_file_seconds", ""] == 0, "the metric to end")
    assert len(worker.events("file takes long")) == 1


def test_a_worker_that_stops_says_which_file_it_finishes(workbench: Workbench) -> None:
    go_on = hold_up(workbench)
    workbench.enqueue(buckets=1, timeout=600.0)
    worker = workbench.worker(log_format="json")
    until(lambda: named(workbench) == [NAME], "the file to be named")
    worker.kill(signal.SIGTERM)
    until(lambda: worker.events("stopping after the current file"), "the log to tell")
    event = worker.events("stopping after the current file")[0]
    assert event["file"] == names.shown(NAME)
    assert event["at_most"] + event["seconds"] == pytest.approx(600)
    go_on.touch()
    assert worker.wait() == 0
    assert len(worker.events("stopping after the current file")) == 1


# For people


@pytest.fixture
def running(workbench: Workbench) -> Status:
    workbench.files(1)
    workbench.enqueue()
    return replace(workbench.status(), state="running", files=100, done=50)


def test_the_status_fits_on_eighty_columns(running: Status) -> None:
    long = b"a/very/long/directory/" * 20 + b"the-end.tif"
    files = [CurrentFile(long, 7265.0), CurrentFile(NAME, 192.0)]
    files += [CurrentFile(b"x", 2.0), CurrentFile(b"y", 1.0)]
    block = display.block(replace(running, current_files=files, current_files_count=30))
    lines = block.splitlines()
    first = next(number for number, line in enumerate(lines) if "current" in line)
    assert lines[first].startswith("  current  2 h 01 min")
    assert lines[first].endswith("directory/the-end.tif")
    assert lines[first + 1].split("  ")[-1] == names.shown(NAME)
    assert lines[first + 3] == "           27 more files for longer than a second"
    assert max(map(len, lines[first : first + 4])) <= 80


def test_a_terminal_shows_them_below_the_bar(running: Status) -> None:
    files = [CurrentFile(b"a/long/directory/" * 20 + NAME, 192.0), CurrentFile(b"x", 2.0)]
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    console.print(Lines(replace(running, current_files=files, current_files_count=9), "2 workers"))
    assert isinstance(console.file, io.StringIO)
    bar, *lines = console.file.getvalue().splitlines()
    assert "50/100" in bar
    assert lines[0].startswith("  3 min 12 s    …")
    assert lines[0].endswith(names.shown(NAME))
    assert len(lines[0]) <= 80
    assert lines[2] == "  7 more files for longer than a second"


def test_a_line_of_a_log_stays_the_same_for_a_while(running: Status) -> None:
    def line(seconds: float) -> str:
        return display.line(replace(running, current_files=[CurrentFile(b"x" * 300, seconds)]))

    assert line(61.0) == line(119.0) != line(120.0)
    assert line(61.0).endswith("more than 1 min at …" + "x" * 59)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.0, "1 s"), (9.9, "5 s"), (59.0, "30 s"), (3599.0, "30 min"), (9000.0, "2 h")],
)
def test_how_long_is_said_in_steps(seconds: float, text: str) -> None:
    assert display.more_than(seconds) == f"more than {text}"


@pytest.mark.parametrize(
    ("others", "rate", "ages", "left"),
    [
        (100, 10.0, [], 10.0),
        (100, 10.0, [5.0], 15.0),  # as the slowest, which took 20 s
        (0, 0.0, [5.0, 18.0], 15.0),
        (0, 0.0, [300.0], 280.0),  # it may go on for as long as it is past the slowest
        (0, 0.0, [900.0], 100.0),  # but the limit is 1,000 s
        (100, 0.0, [300.0], None),
        (0, 0.0, [], None),
    ],
)
def test_the_time_left_is_not_before_the_end_of_a_current_file(
    others: int, rate: float, ages: list[float], left: float | None
) -> None:
    current = [CurrentFile(b"", seconds) for seconds in ages]
    assert status._time_left(others, rate, 20.0, 1000.0, current) == left


def test_a_call_that_was_killed_leaves_no_current_files(running: Status, tmp_path: Path) -> None:
    now = replace(running, current_files=[CurrentFile(NAME, 5.0)], current_files_count=1)
    record.write(tmp_path, now, ["local"], None)
    left = record.read(tmp_path)
    assert left is not None
    assert (left.status.current_files, left.status.current_files_count) == ([], 0)
