"""The promise: a Redis that has lost its last second loses no file, and counts none twice."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.conftest import Workbench, is_running, until
from tests.lost_second import Pair, log_size, put_back
from tests.processors_that_stamp import FAILS, stamp

FILES = 1_500
BAD = 10
"""One file in so many fails."""

SLOW = [pytest.mark.slow, pytest.mark.timeout(180)]


def a_run_in_progress(workbench: Workbench, files: int, workers: int = 2, buckets: int = 2) -> None:
    """Few long jobs: their leases outlive what Redis loses. Many short ones: takes and ends are
    lost with it."""
    (workbench.folder / "version").write_text("v1")
    workbench.settings |= {
        "processor": "tests.processors_that_stamp:stamped",
        "lease": "3",
        "heartbeat": "0.2",
    }
    for number, name in enumerate(workbench.files(files)):
        if number % BAD == 0:
            (workbench.source / name).write_bytes(FAILS)
    for _ in range(workers):
        workbench.worker()
    for worker in workbench.workers:
        worker.started()
    workbench.enqueue(buckets=buckets, files_per_job=files, retries=0)


def has_got_to(workbench: Workbench, files: int) -> None:
    until(lambda: through(workbench) >= files, f"{files} files to be through")


def through(workbench: Workbench) -> int:
    now = workbench.status()
    return now.done + now.failed + now.skipped


def books_to_the_end(workbench: Workbench, timeout: float = 60.0) -> None:
    """Looks at the books until the run ends: they never say more than can be."""

    def has_ended() -> bool:
        now = workbench.status()
        assert now.left >= 0, now.summary()
        assert min(now.done, now.failed, now.skipped) >= 0, now.summary()
        if now.state in ("done", "failed"):
            assert now.left == 0, now.summary()
        assert now.state != "held", now.summary()
        return now.has_ended

    until(has_ended, "the run to end", timeout)


def every_file_came_out_once(workbench: Workbench, files: int) -> bool:
    """Each has an output or a failure, and only one of them; books and exit code say so."""
    until(lambda: workbench.temporaries() == [], "what dead workers have left to be removed")
    names = [f"f-{number:04d}.txt" for number in range(files)]
    bad = {name for number, name in enumerate(names) if number % BAD == 0}
    outputs, failures = set(workbench.outputs()), set(workbench.failures())
    assert sorted(set(names) - outputs - failures) == [], "neither output nor failure"
    assert sorted(outputs & failures) == [], "both output and failure"
    assert failures == bad
    for name in outputs:
        assert (workbench.target / name).read_bytes() == stamp("v1", name.encode())
    now = workbench.status()
    assert (now.state, now.left) == ("failed", 0), now.summary()
    assert now.failed == len(bad)
    assert now.done + now.skipped == files - len(bad)
    backlog = now.backlog
    assert (backlog.pending, backlog.in_flight) == (0, 0)
    told = workbench.imece("wait", "run", "--json")
    assert (told.returncode, json.loads(told.stdout)["left"]) == (1, 0)
    return True


def loses_its_log(
    workbench: Workbench, files: int, chance: random.Random, workers: int = 2, buckets: int = 2
) -> None:
    """At a random moment of the run, the append-only file is put back as it was 1.2 s earlier."""
    a_run_in_progress(workbench, files, workers, buckets)
    has_got_to(workbench, int(files * chance.uniform(0.05, 0.6)))
    size = log_size(workbench.server) - chance.randrange(200)  # seldom between two commands
    time.sleep(1.2)  # what is lost
    put_back(workbench.server, size)
    books_to_the_end(workbench)


def test_a_log_that_lost_its_last_second_loses_no_file(workbench: Workbench) -> None:
    loses_its_log(workbench, 500, random.Random(3))
    assert every_file_came_out_once(workbench, 500)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(20))
def test_a_log_that_was_cut_short_at_any_moment_loses_no_file(
    workbench: Workbench, seed: int
) -> None:
    loses_its_log(workbench, FILES, random.Random(seed), workers=4, buckets=4 * (1 + seed % 4))
    assert every_file_came_out_once(workbench, FILES)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_log_that_is_cut_short_again_and_again_loses_no_file(workbench: Workbench) -> None:
    """Each time before the workers have found out all that the time before has lost."""
    chance = random.Random(5)
    a_run_in_progress(workbench, FILES, workers=4, buckets=12)
    has_got_to(workbench, 100)
    for _ in range(5):
        size = log_size(workbench.server)
        time.sleep(chance.uniform(0.2, 1.2))  # what is lost
        put_back(workbench.server, size)
    books_to_the_end(workbench)
    assert every_file_came_out_once(workbench, FILES)


def test_a_log_that_lost_the_end_of_a_run(workbench: Workbench) -> None:
    """Nobody works at that moment: the workers have long been idle."""
    a_run_in_progress(workbench, 200, buckets=8)
    has_got_to(workbench, 120)
    size = log_size(workbench.server)
    assert workbench.ended().state == "failed"
    put_back(workbench.server, size)
    assert workbench.status().left > 0
    books_to_the_end(workbench)
    assert every_file_came_out_once(workbench, 200)


def test_what_a_killed_worker_has_left_and_the_server_has_forgotten_goes_with_the_run(
    workbench: Workbench,
) -> None:
    """The server forgets that the jobs were taken, so no worker takes over what is left of them."""
    workbench.settings |= {"processor": "tests.processors:slow", "lease": "3"}
    workbench.files(60)
    workbench.enqueue(buckets=2, files_per_job=60)
    size = log_size(workbench.server)
    for worker in (workbench.worker(), workbench.worker()):
        worker.took()
    until(lambda: len(workbench.temporaries()) == 2, "two staging directories")
    runner = workbench.workers[0].runner()
    workbench.workers[0].kill()
    workbench.workers[0].wait()
    until(lambda: not is_running(runner), "its runner to be gone")
    put_back(workbench.server, size)
    now = workbench.ended()
    assert (now.state, now.done + now.skipped) == ("done", 60)
    until(lambda: workbench.temporaries() == [], "what was left to be removed")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_log_that_lost_its_last_second_together_with_a_worker(workbench: Workbench) -> None:
    a_run_in_progress(workbench, FILES, workers=4, buckets=12)
    has_got_to(workbench, 200)
    size = log_size(workbench.server)
    time.sleep(1.2)  # what is lost
    workbench.workers[0].kill()
    workbench.workers[0].wait()
    put_back(workbench.server, size)
    workbench.worker()
    books_to_the_end(workbench)
    assert every_file_came_out_once(workbench, FILES)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path) as made:
        yield made


@pytest.fixture
def replicated(pair: Pair, tmp_path: Path) -> Iterator[Workbench]:
    """A workbench at the address of a primary and its replica."""
    redis = Redis(unix_socket_path=str(pair.socket))
    made = Workbench(pair.primary, redis, tmp_path)
    made.settings["redis_url"] = pair.url
    yield made
    made.close()
    redis.close()


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=SLOW) for seed in range(10)])
def test_a_replica_that_is_promoted_late_loses_no_file(
    replicated: Workbench, pair: Pair, seed: int
) -> None:
    """The replica lacks the last 1.5 s of its primary. It has been up for long, so nothing but its
    data says that something happened."""
    chance = random.Random(seed)
    a_run_in_progress(replicated, FILES, workers=4, buckets=4 * (1 + seed % 4))
    has_got_to(replicated, int(FILES * chance.uniform(0.05, 0.6)))
    pair.hold_back()
    time.sleep(1.5)  # what is lost
    pair.promote()
    books_to_the_end(replicated)
    assert every_file_came_out_once(replicated, FILES)
