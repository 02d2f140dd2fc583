"""The promise: every key in Redis has a TTL, and none is cut short. After every command."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from imece.settings import load
from tests import forks
from tests.conftest import ROOT, Workbench, until
from tests.key_lifetimes import flaws

TICK = 2.0
"""Seconds between two signs of life of a producer that lists."""

MANY = 3_000
"""More jobs than are in the queue at a time."""


def nothing_is_wrong(workbench: Workbench) -> bool:
    assert flaws(workbench.redis, workbench.load()) == []
    return True


def told(workbench: Workbench, *arguments: str, code: int = 0) -> str:
    """What a command prints. Before and after it no key has a wrong TTL."""
    answer = workbench.imece(*arguments)
    assert answer.returncode == code, answer.stderr
    assert nothing_is_wrong(workbench), arguments
    return answer.stdout


def enqueue(workbench: Workbench, *options: str, run_id: str = "run") -> str:
    source, target = str(workbench.source), str(workbench.target)
    return told(workbench, "enqueue", source, target, "--run-id", run_id, *options)


class SlowListing:
    """`imece enqueue` that reads its names from a pipe, and gets them slowly."""

    def __init__(self, workbench: Workbench, run_id: str) -> None:
        self._redis = workbench.redis
        self._run = f"imece:imece:run:{run_id}"
        self._is_new = not self._redis.exists(self._run)
        self._process = forks.Popen[bytes](
            [
                *(sys.executable, "-m", "imece_producer", "enqueue"),
                *(str(workbench.source), str(workbench.target), "--run-id", run_id),
                *("--from-file", "-", "--files-per-job", "1"),
            ],
            env={**os.environ, **workbench.environment()},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def claimed(self) -> "SlowListing":
        """Waits until the id is taken."""
        until(self._has_claimed, "the id to be taken", timeout=60)
        self.since = time.monotonic()
        return self

    def _has_claimed(self) -> bool:
        assert self._process.poll() is None, "it has ended without a list"
        first = [self._run] if self._is_new else []
        return bool(self._redis.exists(f"{self._run}:claim", *first))

    def send(self, names: list[str]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{name}\n" for name in names).encode())
        self._process.stdin.flush()

    def finish(self, seconds: float) -> None:
        """Ends the list so many seconds after the id was taken; waits for the commit."""
        time.sleep(max(0.0, self.since + seconds - time.monotonic()))  # the listing takes so long
        _, said = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, said


NAMES = [f"f-{number:04d}.txt" for number in range(1_000)]


@pytest.mark.parametrize("attempt", [0, 1, 2])
def test_a_run_that_was_listed_slowly_is_there_for_its_whole_time(
    workbench: Workbench, attempt: int
) -> None:
    """The sign of life of the producer comes at the moment of the commit, or just after it."""
    listing = SlowListing(workbench, "run").claimed()
    listing.send(NAMES)
    listing.finish(TICK - 0.06 + 0.02 * attempt)
    assert workbench.status().files == len(NAMES)
    assert nothing_is_wrong(workbench)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_runs_that_were_listed_slowly_are_there_time_after_time(workbench: Workbench) -> None:
    """Twenty runs of 1,000 jobs; each listing ends just before a sign of life."""
    chance = random.Random(23)
    cut = {}
    for attempt in range(20):
        listing = SlowListing(workbench, f"run-{attempt}").claimed()
        listing.send(NAMES)
        listing.finish(chance.uniform(TICK - 0.08, TICK + 0.01))
        if found := flaws(workbench.redis, workbench.load()):
            cut[attempt] = found
        workbench.redis.flushall()
    assert cut == {}


def test_while_a_listing_goes_on_its_claim_lives_for_seconds(workbench: Workbench) -> None:
    listing = SlowListing(workbench, "run").claimed()
    assert nothing_is_wrong(workbench)
    listing.send(NAMES[:10])
    listing.finish(2 * TICK + 0.5)
    assert nothing_is_wrong(workbench)
    assert workbench.status().files == 10


def test_while_the_next_round_is_listed_the_last_one_keeps_its_time(workbench: Workbench) -> None:
    workbench.files(20)
    given = ("--from-file", str(names_file(workbench, NAMES[:10])), "--files-per-job", "1")
    enqueue(workbench, *given)
    workbench.worker()
    workbench.ended()
    listing = SlowListing(workbench, "run").claimed()
    assert nothing_is_wrong(workbench)
    listing.send(NAMES[:20])
    listing.finish(TICK)
    assert nothing_is_wrong(workbench)
    last = workbench.ended()
    assert (last.files, last.done, last.skipped) == (20, 10, 10)
    assert nothing_is_wrong(workbench)


def names_file(workbench: Workbench, names: list[str]) -> Path:
    path = workbench.folder / "names"
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def test_a_small_run_from_its_enqueuing_to_its_end(workbench: Workbench) -> None:
    workbench.files(30)
    workbench.settings["processor"] = "tests.processors:slow"
    enqueue(workbench)
    worker = workbench.worker().took()
    assert nothing_is_wrong(workbench)
    until(lambda: workbench.status().done, "the first files")
    assert nothing_is_wrong(workbench)
    told(workbench, "status", "run")
    told(workbench, "wait", "run")
    told(workbench, "runs")
    assert worker.stop() == 0
    assert nothing_is_wrong(workbench)


def test_a_run_of_more_jobs_than_are_in_the_queue_at_a_time(workbench: Workbench) -> None:
    names = [f"f-{number:04d}.txt" for number in range(MANY)]
    given = ("--from-file", str(names_file(workbench, names)), "--files-per-job", "1")
    enqueue(workbench, *given)
    workbench.worker().took(10)
    assert nothing_is_wrong(workbench)
    told(workbench, "status", "run", "--json")
    told(workbench, "cancel", "run")
    told(workbench, "runs")
    enqueue(workbench, *given)  # on again: whatever the cancel has cut short lives on
    workbench.workers[0].took(20)
    assert nothing_is_wrong(workbench)
    told(workbench, "cancel", "run")
    told(workbench, "delete", "run")
    assert list(workbench.redis.scan_iter("imece:imece:run:*")) == []


def test_a_run_that_fails_is_retried_and_has_a_next_round(workbench: Workbench) -> None:
    workbench.files(5)
    workbench.file("bad.txt", "raise")
    workbench.settings["processor"] = "tests.processors:by_content"
    enqueue(workbench)
    workbench.worker()
    assert workbench.ended().state == "failed"
    assert nothing_is_wrong(workbench)
    told(workbench, "failures", "run", "--full")
    told(workbench, "wait", "run", code=1)
    told(workbench, "retry", "run")
    assert workbench.ended().state == "failed"
    assert nothing_is_wrong(workbench)
    workbench.file("bad.txt", "good now")
    workbench.file("more.txt")
    enqueue(workbench)
    assert workbench.ended().state == "done"
    assert nothing_is_wrong(workbench)
    told(workbench, "delete", "run")


def test_a_worker_that_is_killed_and_its_successor(workbench: Workbench) -> None:
    workbench.files(40)
    workbench.settings |= {"processor": "tests.processors:slow", "lease": "3"}
    enqueue(workbench, "--buckets", "2")
    worker = workbench.worker().took()
    until(lambda: workbench.status().done, "the first files")
    worker.kill()
    worker.wait()
    assert nothing_is_wrong(workbench)
    workbench.worker().took()
    assert nothing_is_wrong(workbench)
    workbench.ended()
    assert nothing_is_wrong(workbench)


def test_a_job_that_is_refused(workbench: Workbench) -> None:
    workbench.redis.hset("rq:job:nonsense", "data", "nonsense")
    workbench.redis.expire("rq:job:nonsense", workbench.load().run_ttl)
    workbench.redis.rpush("rq:queue:imece", "nonsense")
    workbench.worker()
    until(lambda: workbench.redis.llen("imece:imece:refused"), "the job to be refused")
    assert nothing_is_wrong(workbench)


def test_a_run_with_lifetimes_of_its_own(workbench: Workbench) -> None:
    workbench.settings |= {"run_ttl": "7200", "result_ttl": "1800"}
    workbench.files(3)
    enqueue(workbench)
    workbench.worker()
    workbench.ended()
    assert nothing_is_wrong(workbench)


def test_a_local_run(workbench: Workbench) -> None:
    workbench.files(60)
    state = workbench.folder / "state"
    call = ["local", str(workbench.source), str(workbench.target), "--run-id", "here"]
    given = {"processor": "tests.processors:slow", "state_dir": str(state)}
    settings = load(**given)
    environment = {f"IMECE_{name.upper()}": value for name, value in given.items()}
    process = forks.Popen(
        [sys.executable, "-m", "imece_producer", *call, "--max-replicas", "1"],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    address = state / "here" / "server.url"
    try:
        until(address.exists, "the local run's server")
        redis = Redis.from_url(address.read_text())
        done = "imece:imece:run:here"
        until(lambda: int(redis.hget(done, "done") or 0) > 0, "the first files")
        assert flaws(redis, settings) == []
        status = workbench.imece("status", "here", "--json", redis_url=address.read_text())
        assert json.loads(status.stdout)["state"] == "running"
        assert flaws(redis, settings) == []
        redis.close()
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
