"""The numbers people and programs read, against values worked out by hand."""

import json
import random
from dataclasses import replace

import pytest
from redis import Redis

from imece.errors import RunError
from imece.run import durations, keys, status
from imece.run.status import Backlog, Status
from imece.run.store import Run
from imece_producer import display
from tests.conftest import Workbench


def rate(slots: dict[int, int], age: float, ended: float | None = None) -> float:
    """The rate of a run that was started at 1000, seen `age` seconds later."""
    ended_at = 1000 + ended if ended is not None else None
    return status._rate(slots, 1000.0, ended_at, 1000 + age)


def test_the_rate_is_that_of_the_last_minute() -> None:
    assert rate({0: 100, 5: 200}, age=10) == 30.0  # 300 files in 10 s
    busy = dict.fromkeys(range(40, 100, 5), 0)
    assert rate({0: 10_000, 30: 500} | busy | {40: 30, 95: 30}, age=99) == pytest.approx(60 / 59)


def test_time_without_workers_is_no_time_of_the_rate() -> None:
    """100 files in 10 s, then a pause, then 20 in the 4 s since."""
    slots = {0: 50, 5: 50, 50: 20}
    assert rate(slots, age=54) == pytest.approx(120 / 14)
    assert rate(slots, age=54, ended=54) == pytest.approx(120 / 14)
    assert rate(slots, age=65) == pytest.approx(70 / 10)
    assert rate(slots, age=200) == 0.0


def test_the_rate_of_a_run_that_has_just_begun_is_not_boundless() -> None:
    assert rate({0: 50}, age=0.001) == 50.0


def test_the_rate_of_a_run_that_stands_still_is_nothing() -> None:
    assert rate({0: 100}, age=300) == 0.0
    assert rate({}, age=10) == 0.0
    assert status._rate({}, None, None, 1000.0) == 0.0


def test_the_rate_of_an_ended_run_is_that_of_the_whole() -> None:
    slots = dict.fromkeys(range(0, 50, 5), 10)
    assert rate(slots, age=10_000, ended=50) == 2.0
    assert rate({0: 100}, age=10_000, ended=0.5) == 200.0


def test_a_step_holds_what_begins_with_the_same_four_bits() -> None:
    numbers = [*range(5_000), *(2**power + odd for power in range(13, 40) for odd in (-1, 0, 1))]
    for number in numbers:
        [step] = durations.steps([number])
        assert durations.least(step) <= number < durations.least(step + 1)
        assert durations.least(step + 1) - durations.least(step) <= max(1, number / 8)


def test_a_quantile_of_many_files_is_right_to_one_part_in_eight() -> None:
    chance = random.Random(5)
    took = sorted(int(chance.lognormvariate(8, 2)) for _ in range(10_000))
    counts = durations.steps(took)
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        found = durations.quantile(counts, share, took[0] / 1e6, took[-1] / 1e6)
        true = took[max(0, round(share * len(took)) - 1)] / 1e6
        assert found == pytest.approx(true, rel=1 / 8)


def test_a_quantile_is_never_outside_what_was_seen() -> None:
    counts = durations.steps([500_000, 500_100, 500_200])
    for share in (0.01, 0.5, 0.99, 1.0):
        found = durations.quantile(counts, share, 0.5, 0.5002)
        assert found is not None
        assert 0.5 <= found <= 0.5002


def test_of_no_files_there_is_no_quantile() -> None:
    assert durations.quantile({}, 0.5, 0.0, 1.0) is None


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([0], " "),
        ([0, 0], "  "),
        ([1, 1], "██"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], " ▁▂▃▄▅▆▇█"),
        ([0, 1, 1000], " ▁█"),  # little is not nothing
    ],
)
def test_a_sparkline_has_a_bar_for_each_value(values: list[int], line: str) -> None:
    assert display.sparkline(values) == line


def test_a_sparkline_that_is_too_long_keeps_the_peaks() -> None:
    values = [0] * 600
    values[123] = 8
    line = display.sparkline(values, width=60)
    assert line == " " * 12 + "█" + " " * 47
    assert len(display.sparkline([1] * 61, width=60)) <= 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0, "0 ms"),
        (0.85, "850 ms"),
        (1, "1.0 s"),
        (4.25, "4.2 s"),
        (59.94, "59.9 s"),
        (60, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_seconds_are_shown_as_people_say_them(seconds: float | None, text: str) -> None:
    assert display.seconds(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.9996, "1.0 s"), (59.96, "1 min 00 s")])
def test_seconds_that_round_up_take_the_next_unit(seconds: float, text: str) -> None:
    assert display.seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3_140_000, "3.1 MB"),
        (999_999, "1.0 MB"),
        (7_000_000_000_000_000, "7000.0 TB"),
    ],
)
def test_sizes_are_shown_in_units_of_a_thousand(size: int, text: str) -> None:
    assert display.size(size) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 files/s"), (0.123, "0.12 files/s"), (9.96, "10 files/s"), (12345.6, "12,346 files/s")],
)
def test_a_rate_is_shown_with_two_digits_at_least(value: float, text: str) -> None:
    assert display.rate(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.9, "59 s"), (162, "2 min"), (7_300, "2 h"), (700_000, "8 d")],
)
def test_an_age_is_short(seconds: float, text: str) -> None:
    assert display.age(seconds) == text


def test_counts_have_a_plural() -> None:
    assert display.count(1, "file") == "1 file"
    assert display.count(0, "file") == "0 files"
    assert display.count(1_234_567, "file") == "1,234,567 files"


@pytest.fixture
def fresh(workbench: Workbench) -> Status:
    """The status of a run of ten files that has just been enqueued."""
    workbench.files(10)
    workbench.enqueue(buckets=1, files_per_job=5)
    return workbench.status()


def test_a_fresh_run_has_all_its_files_left(fresh: Status) -> None:
    assert (fresh.state, fresh.files, fresh.left, fresh.jobs_left) == ("queued", 10, 10, 2)
    assert (fresh.rate, fresh.time_left, fresh.seconds) == (0.0, None, 0.0)
    assert fresh.backlog == Backlog(pending=2, in_flight=0, workers=0)
    assert not fresh.has_ended


def test_the_time_left_is_what_is_left_at_the_rate(workbench: Workbench, redis: Redis) -> None:
    """Put together by hand: started 20 s ago, 10 files a second in the last slots."""
    workbench.files(1)
    workbench.enqueue()
    key = "imece:imece:run:run"
    now = workbench.status().now
    redis.hset(key, mapping={"state": "running", "started": now - 20, "files": 1000})
    redis.hset(key, mapping={"done": 150, "failed": 20, "skipped": 30})
    redis.hset(f"{key}:timeline", mapping={"0": 50, "5": 50, "10": 100, "15": 0})
    assert workbench.status().time_left is None  # there is no worker
    redis.sadd(keys.workers("imece"), keys.worker("one"))
    redis.set(keys.worker("one"), "")
    seen = workbench.status()
    assert seen.left == 800
    assert seen.rate == pytest.approx(10, rel=0.1)
    assert seen.time_left == pytest.approx(80, rel=0.1)
    assert seen.seconds == pytest.approx(20, rel=0.1)


def test_blocking_reason_is_shown(workbench: Workbench, fresh: Status) -> None:
    key = "imece:imece:run:run"
    workbench.redis.hset(key, mapping={"blocking_reason": "no disk", "blocked_at": fresh.now - 50})
    assert workbench.status().blocking_reason == "no disk"
    assert "reason   no disk" in display.block(workbench.status())


def test_the_summary_for_programs_has_every_number(fresh: Status) -> None:
    summary = json.loads(json.dumps(fresh.summary()))
    assert summary["run"] == "run"
    assert summary["state"] == "queued"
    assert (summary["files"], summary["left"], summary["pending"]) == (10, 10, 2)
    assert summary["time_left"] is None
    assert {"done", "failed", "skipped", "rate", "workers", "in_flight"} <= summary.keys()


def test_the_lines_for_people_say_how_far_it_is(fresh: Status) -> None:
    running = replace(fresh, state="running", files=2000, done=1000, failed=2, rate=50.0)
    running = replace(running, time_left=19.96, backlog=Backlog(3, 2, 2))
    assert display.line(running) == (
        "running: 1,000 done, 2 failed, 0 skipped, 998 left of 2,000, 50 files/s, 20.0 s left, "
        "2 workers"
    )
    block = display.block(running)
    assert "1,000 done, 2 failed, 0 skipped, 998 left of 2,000" in block
    assert "bucket jobs in the queue imece: 3 pending, 2 in flight" in block
    assert "imece failures run says which failed and why" in block
    ended = replace(running, state="failed")
    assert display.line(ended) == "failed: 1,000 done, 2 failed, 0 skipped, 998 left of 2,000"


def test_files_that_were_skipped_are_no_part_of_a_rate(fresh: Status) -> None:
    ended = replace(fresh, state="failed", done=2, failed=1, skipped=7)
    assert "  time      2.0 s, 1.5 files/s" in display.summary(ended, 2.0, [])


def test_a_run_that_is_not_there_has_no_status(redis: Redis) -> None:
    with pytest.raises(RunError, match="there is no run nothing: `imece runs` lists"):
        status.read(Run(redis, "imece", "nothing"))


def test_the_backlog_is_what_the_cluster_scales_by(redis: Redis) -> None:
    redis.rpush("rq:queue:q", "a", "b")
    redis.rpush("rq:queue:q:intermediate", "c")
    redis.zadd("rq:wip:q", {"d:1": 5, "e:1": 6})
    assert status.backlog(redis, "q") == Backlog(pending=3, in_flight=2, workers=0)
