"""The promise: a run whose keys somebody has spoilt stops no worker, hides no other run, and is
answered with a sentence.

One thing is spoilt at a time, in the keys of a run of its own. Then one worker has to get past all
of them to a healthy run, and every command has to say something of each.
"""

import json
import re
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from imece.connection import raw, text
from imece.errors import ImeceError
from imece.run import keys
from imece.run.job import Reference
from imece.run.lease import Lease
from tests.conftest import Workbench, WorkerProcess, until

Spoil = Callable[[Redis, str], None]

DEEP = b"[" * 100_000
HUGE = b"9" * 5000
BIG = b"9" * 19
RAW = b"\xff\xfe\x1b[2J"


def parameters(**changes: Any) -> Spoil:
    """Some of the run's parameters are others."""

    def spoil(redis: Redis, run: str) -> None:
        found = redis.hget(run, "parameters")
        assert isinstance(found, bytes)
        redis.hset(run, "parameters", json.dumps(json.loads(found) | changes))

    return spoil


def field(name: str, value: bytes) -> Spoil:
    """A field of the run's hash is another."""

    def spoil(redis: Redis, run: str) -> None:
        redis.hset(run, name, value)

    return spoil


def cursor(value: bytes) -> Spoil:
    def spoil(redis: Redis, run: str) -> None:
        for job in redis.hkeys(f"{run}:jobs"):
            redis.hset(f"{run}:jobs", job, value)

    return spoil


def manifest(pack: Callable[[], bytes]) -> Spoil:
    """A bucket's names are these. They are packed when they are needed: some take a second."""

    def spoil(redis: Redis, run: str) -> None:
        blob = pack()
        for key in redis.keys(f"{run}:manifest:*"):
            for bucket in redis.hkeys(text(key)):
                redis.hset(text(key), bucket, blob)

    return spoil


def entry(key: str, name: bytes, value: bytes) -> Spoil:
    """A hash of the run has another entry."""

    def spoil(redis: Redis, run: str) -> None:
        redis.hset(f"{run}:{key}", name, value)
        redis.expire(f"{run}:{key}", 1000)

    return spoil


def ranked(name: bytes, number: float, key: str = "slowest") -> Spoil:
    def spoil(redis: Redis, run: str) -> None:
        redis.zadd(f"{run}:{key}", {name: number})
        redis.expire(f"{run}:{key}", 1000)

    return spoil


def other_kind(key: str) -> Spoil:
    """A key of the run holds a text."""

    def spoil(redis: Redis, run: str) -> None:
        redis.set(f"{run}:{key}", "a text", ex=1000)

    return spoil


def whole_kind(kind: str) -> Spoil:
    """The run's own key is no hash."""

    def spoil(redis: Redis, run: str) -> None:
        redis.delete(run)
        if kind == "list":
            redis.rpush(run, "a text")
        else:
            redis.set(run, "a text", ex=1000)

    return spoil


def kind_of_manifest(redis: Redis, run: str) -> None:
    for key in redis.keys(f"{run}:manifest:*"):
        redis.set(text(key), "a text", ex=1000)


def gone(*suffixes: str) -> Spoil:
    """Some of the run's keys are deleted."""

    def spoil(redis: Redis, run: str) -> None:
        for suffix in suffixes:
            for key in redis.keys(f"{run}{suffix}"):
                redis.delete(key)

    return spoil


def without(name: str) -> Spoil:
    """A field of the run's hash is gone."""

    def spoil(redis: Redis, run: str) -> None:
        redis.hdel(run, name)

    return spoil


def empty_queue(spoil: Spoil) -> Spoil:
    """And none of its jobs is in the queue."""

    def spoil_both(redis: Redis, run: str) -> None:
        spoil(redis, run)
        redis.delete("rq:queue:imece")

    return spoil_both


def garbled_job(redis: Redis, run: str) -> None:
    redis.delete(f"{run}:jobs", f"{run}:waiting", "rq:queue:imece")
    redis.hset(f"{run}:jobs", RAW, "[0,1,{},0,-1]")
    redis.expire(f"{run}:jobs", 1000)


@cache
def many_names() -> bytes:
    """255 kB that were 134 million names, and 5 GB."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(b"a\0" * 2**20) for _ in range(128)) + packer.flush()


# These can be neither processed nor shown.
PARAMETERS: dict[str, Spoil] = {
    "no-json": field("parameters", RAW),
    "deep": field("parameters", DEEP),
    "a-number": field("parameters", HUGE),
    "a-list": field("parameters", b"[1,2]"),
    "an-empty-object": field("parameters", b"{}"),
    "input-NUL": parameters(input="/a\0b"),
    "input-surrogate": parameters(input="/\ud800"),
    "input-relative": parameters(input="in"),
    "input-number": parameters(input=7),
    "output-empty": parameters(output=""),
    "output-relative": parameters(output="out"),
    "output-NUL": parameters(output="/out\0"),
    "output-surrogate": parameters(output="/out\udbff"),
    "suffix-slash": parameters(suffix="/../../x"),
    "suffix-NUL": parameters(suffix=".\0"),
    "suffix-surrogate": parameters(suffix=".\ud800"),
    "include-text": parameters(include="*.csv"),
    "include-numbers": parameters(include=[1]),
    "source-unknown": parameters(source="\x1b[2J"),
    "buckets-none-left": parameters(buckets=0),
    "retries-huge": parameters(retries=10**300),
    "retries-negative": parameters(retries=-1),
    "pause-infinite": parameters(retry_pause=float("inf")),
    "pause-NaN": parameters(retry_pause=float("nan")),
    "timeout-zero": parameters(timeout=0),
    "timeout-huge": parameters(timeout=1e308),
    "seed-huge": parameters(seed=2**200),
    "one-more": parameters(more=1),
}

# Somebody has removed them, or put something else there. They can be held and nothing else: in the
# queue is a job of each of the first ones, and none of the others.
REMOVED: dict[str, Spoil] = {
    "jobs-gone": gone(":jobs"),
    "jobs-and-waiting-gone": gone(":jobs", ":waiting"),
    "manifest-gone": gone(":manifest:*"),
    "jobs-kind": other_kind("jobs"),
    "waiting-kind": other_kind("waiting"),
    "holders-kind": other_kind("holders"),
    "failures-kind-too": other_kind("failures"),
    "manifest-kind": kind_of_manifest,
    "parameters-gone": without("parameters"),
    "generation-text": field("generation", b"first"),
    "done-word": field("done", b"many"),
}
UNQUEUED: dict[str, Spoil] = {
    name: empty_queue(REMOVED[name])
    for name in ("jobs-gone", "manifest-gone", "jobs-kind", "waiting-kind", "parameters-gone")
} | {
    "parameters-garbled": empty_queue(field("parameters", RAW)),
    "parameters-other": empty_queue(parameters(more=1)),
    "job-garbled": garbled_job,
}

# No hash, so no state: the run can only be deleted.
NO_RUN: dict[str, Spoil] = {
    "whole-text": whole_kind("string"),
    "whole-list": whole_kind("list"),
    "claim-kind": other_kind("claim"),
    "state-gone": without("state"),
}

# These cannot be processed; their runs can be shown.
JOBS: dict[str, Spoil] = {
    "cursor-deep": cursor(DEEP),
    "cursor-deep-inside": cursor(b"[0,1," + DEEP),
    "cursor-huge": cursor(b"[0," + HUGE + b",{},0,-1]"),
    "cursor-infinite": cursor(b'[0,1,{"0":[1,1e999]},0,-1]'),
    "cursor-NaN": cursor(b'[0,1,{"0":[1,NaN]},0,-1]'),
    "cursor-tries-negative": cursor(b'[0,1,{"0":[-5,0]},0,-1]'),
    "cursor-tries-huge": cursor(b'[0,1,{"0":[' + HUGE + b",0]},0,-1]"),
    "cursor-outside": cursor(b"[0,1000000,{},0,-1]"),
    "cursor-raw": cursor(RAW),
    "manifest-raw": manifest(lambda: RAW),
    "manifest-empty": manifest(lambda: zlib.compress(b"")),
    "manifest-outside": manifest(lambda: zlib.compress(b"../../outside")),
    "manifest-absolute": manifest(lambda: zlib.compress(b"/etc/passwd")),
    "manifest-many-names": manifest(many_names),
    "manifest-zeros": manifest(lambda: zlib.compress(bytes(2**27), 1)),
}

# These may be processed or not.
SHOWN: dict[str, Spoil] = {
    "created-NaN": field("created", b"nan"),
    "created-text": field("created", RAW),
    "state-raw": field("state", RAW),
    "done-text": field("done", b"many"),
    "done-huge": field("done", HUGE),
    "done-negative": field("done", b"-5"),
    "failed-raw": field("failed", RAW),
    "bytes-largest": field("bytes_out", BIG),
    "files-fraction": field("files", b"1.5"),
    "generation-text": field("generation", b"first"),
    "started-infinite": field("started", b"inf"),
    "ended-NaN": field("ended", b"nan"),
    "trouble-raw": field("blocking_reason", RAW),
    "trouble-at-text": field("blocked_at", b"now"),
    "durations-text": entry("durations", b"one", b"1"),
    "durations-huge": entry("durations", HUGE, b"1"),
    "durations-count": entry("durations", b"5", HUGE),
    "timeline-text": entry("timeline", RAW, b"1"),
    "slowest-infinite": ranked(b"f", float("inf")),
    "slowest-raw": ranked(RAW, 5.0),
    "current-infinite": ranked(b"0-0-0:f", float("inf"), "current"),
    "current-raw": ranked(RAW, 5.0, "current"),
    "current-kind": other_kind("current"),
    "failure-deep": entry("failures", b"f", DEEP),
    "failure-raw": entry("failures", RAW, RAW),
    "failure-other-types": entry("failures", b"f", b'{"reason":7,"tries":"x","at":[],"worker":{}}'),
    "causes-text": entry("causes", b"1:text", b"x" * 20_000),
    "causes-kind": other_kind("causes"),
    "durations-kind": other_kind("durations"),
    "failures-kind": other_kind("failures"),
}

GROUPS = {"parameters": PARAMETERS, "jobs": JOBS, "shown": SHOWN}
ALL = {**GROUPS, "removed": REMOVED, "no run": NO_RUN}


def poisoned(workbench: Workbench, cases: dict[str, Spoil]) -> None:
    """A spoilt run for each case, then a healthy one."""
    workbench.file("f")
    for name, spoil in cases.items():
        workbench.enqueue_apart(name, buckets=1, overwrite=True)
        spoil(workbench.redis, f"imece:imece:run:{name}")
    workbench.enqueue("healthy", overwrite=True)


FOR_PROGRAMMERS = re.compile(
    r"Traceback|WRONGTYPE|BROKEN|user_script|script:|pipeline|b'|\(char \d|unpack |__init__|"
    r"Error -?\d"
)


def is_clean(answer: Any) -> bool:
    """A sentence: no traceback, no text of Redis, Lua or Python, and nothing that a terminal would
    obey."""
    printed = answer.stdout + answer.stderr
    return not FOR_PROGRAMMERS.search(printed) and all(
        line.isprintable() for line in printed.splitlines()
    )


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_a_worker_goes_past_spoilt_runs_to_the_next_one(workbench: Workbench, group: str) -> None:
    poisoned(workbench, GROUPS[group])
    worker = workbench.worker(log_format="json")
    assert workbench.ended("healthy").state == "done"
    assert worker.process.poll() is None
    assert not (workbench.folder.parent / "outside").exists()
    if group != "shown":
        refused = [
            json.loads(line) for line in workbench.redis.lrange("imece:imece:refused", 0, -1)
        ]
        assert len(refused) == len(GROUPS[group])
        assert all(record["reason"].isprintable() for record in refused)
    peak = next(
        line
        for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    assert int(peak.split()[1]) < 700_000  # kB
    assert worker.stop() == 0


@pytest.mark.parametrize("group", GROUPS)
def test_the_list_of_runs_shows_the_others(workbench: Workbench, group: str) -> None:
    poisoned(workbench, GROUPS[group])
    for options in ((), ("--json",)):
        answer = workbench.imece("runs", *options)
        assert answer.returncode == 0, answer.stderr
        assert is_clean(answer), answer.stderr
        assert "healthy" in answer.stdout
        for name in GROUPS[group]:
            assert f"run {name} " in answer.stderr or name in answer.stdout, name


@pytest.mark.parametrize("group", GROUPS)
def test_reading_a_spoilt_run_is_a_status_or_an_error_with_a_reason(
    workbench: Workbench, group: str
) -> None:
    poisoned(workbench, GROUPS[group])
    for name in GROUPS[group]:
        try:
            summary = workbench.status(name).summary()
            assert group != "parameters", name
            json.dumps(summary, allow_nan=False)
        except (ImeceError, ResponseError) as error:  # the second: a key of another kind
            assert len(str(error)) < 2000


def commands(workbench: Workbench, name: str) -> dict[str, tuple[str, ...]]:
    """All that reads or changes a run, by the command's name."""
    folders = (str(workbench.source), str(workbench.folder / f"out-of-{name}"))
    return {
        "status": ("status", name),
        "failures": ("failures", name),
        "retry": ("retry", name),
        "resume": ("resume", name),
        "cancel": ("cancel", name),
        "enqueue": ("enqueue", *folders, "--run-id", name, "--overwrite"),
        "delete": ("delete", name),
    }


def answers(workbench: Workbench, command: str, cases: dict[str, Spoil]) -> dict[str, Any]:
    """What a command says of each run; each answer is a sentence, and Redis is not to blame."""
    with ThreadPoolExecutor(2) as pool:
        calls = {
            name: pool.submit(workbench.imece, *commands(workbench, name)[command])
            for name in cases
        }
        ended = {name: call.result() for name, call in calls.items()}
    for name, answer in ended.items():
        assert answer.returncode in (0, 1, 2), (name, answer.stderr)
        assert is_clean(answer), (name, answer.stdout + answer.stderr)
        assert answer.stdout or answer.stderr or command == "failures", name
    return ended


def can_be_deleted(workbench: Workbench, cases: dict[str, Spoil]) -> None:
    """At once, or after the cancel that `imece delete` asks for."""
    refused = {
        name: None
        for name, answer in answers(workbench, "delete", cases).items()
        if answer.returncode
    }
    for name in refused:
        cancelled = workbench.imece("cancel", name)
        assert cancelled.returncode == 0, (name, cancelled.stderr)
        deleted = workbench.imece("delete", name)
        assert deleted.returncode == 0, (name, deleted.stderr)
    for name in cases:
        assert workbench.redis.keys(f"imece:imece:run:{name}*") == [], name


@pytest.mark.parametrize("group", ["removed", "no run"])
def test_what_stands_there_in_place_of_a_run_can_be_deleted(
    workbench: Workbench, group: str
) -> None:
    poisoned(workbench, ALL[group])
    can_be_deleted(workbench, ALL[group])
    assert workbench.imece("status", "healthy").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "command", ["status", "failures", "cancel", "retry", "resume", "enqueue", "delete"]
)
@pytest.mark.parametrize("group", ALL)
def test_every_command_answers_with_a_sentence(
    workbench: Workbench, group: str, command: str
) -> None:
    poisoned(workbench, ALL[group])
    answers(workbench, command, ALL[group])
    if command != "delete":
        can_be_deleted(workbench, ALL[group])
    healthy = workbench.imece("status", "healthy")
    assert healthy.returncode == 0


# A run that cannot go on is held, and says what helps


def remedy(workbench: Workbench, name: str) -> str:
    """The command that the run's trouble names."""
    blocking_reason = text(workbench.redis.hget(f"imece:imece:run:{name}", "blocking_reason"))
    assert blocking_reason.isprintable()
    found = re.search(r"`imece (\w+) ", blocking_reason)
    assert found, blocking_reason
    return found[1]


def is_held(workbench: Workbench, name: str) -> bool:
    return workbench.redis.hget(f"imece:imece:run:{name}", "state") == b"held"


def helps(workbench: Workbench, name: str) -> None:
    """What the run's trouble asks for makes it a run that is done."""
    if remedy(workbench, name) == "delete":
        assert workbench.imece("delete", name).returncode == 0
    answer = workbench.imece(*commands(workbench, name)["enqueue"])
    assert answer.returncode == 0, (name, answer.stderr)
    assert workbench.ended(name).state == "done"


def is_refused(workbench: Workbench, name: str, told: str) -> None:
    """Nothing goes on with the run, and what helps is told."""
    for command in ("resume", "retry"):
        answer = workbench.imece(command, name)
        assert answer.returncode == 2
        assert told in answer.stderr, answer.stderr
        assert is_clean(answer), answer.stderr


@pytest.mark.parametrize("name", REMOVED)
def test_a_run_whose_records_are_gone_is_held_when_a_job_of_it_is_taken(
    workbench: Workbench, name: str
) -> None:
    workbench.files(3)
    workbench.enqueue_apart(name, buckets=1, files_per_job=1, overwrite=True)
    REMOVED[name](workbench.redis, f"imece:imece:run:{name}")
    workbench.worker()
    until(lambda: is_held(workbench, name), "the run to be held")
    is_refused(workbench, name, f"imece {remedy(workbench, name)} ")
    helps(workbench, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNQUEUED)
def test_a_run_whose_records_are_gone_is_held_by_idle_workers(
    workbench: Workbench, name: str
) -> None:
    workbench.files(3)
    workbench.enqueue_apart(name, buckets=1, overwrite=True)
    UNQUEUED[name](workbench.redis, f"imece:imece:run:{name}")
    workbench.worker()
    until(lambda: is_held(workbench, name), "the run to be held", 30)
    helps(workbench, name)


@pytest.mark.parametrize("name", ["manifest-raw", "cursor-raw", "cursor-outside"])
def test_to_go_on_with_a_garbled_run_says_what_helps(workbench: Workbench, name: str) -> None:
    workbench.files(3)
    workbench.enqueue_apart(name, buckets=1, overwrite=True)
    JOBS[name](workbench.redis, f"imece:imece:run:{name}")
    workbench.worker()
    until(lambda: is_held(workbench, name), "the run to be held")
    is_refused(workbench, name, f"imece enqueue IN OUT --run-id {name}")
    assert "imece resume" not in workbench.imece("status", name).stdout
    helps(workbench, name)


@pytest.mark.parametrize("name", ["jobs-gone", "manifest-gone", "parameters-gone"])
def test_without_any_worker_enqueue_lists_again(workbench: Workbench, name: str) -> None:
    """Also a run that still looks as if it were on."""
    workbench.files(3)
    workbench.enqueue_apart(name, buckets=1)
    REMOVED[name](workbench.redis, f"imece:imece:run:{name}")
    answer = workbench.imece("resume", name)
    if name != "manifest-gone":
        assert f"imece enqueue IN OUT --run-id {name}" in answer.stderr, answer.stderr
        again = workbench.enqueue_apart(name, buckets=1)
        assert again.how == "resumed"
        assert workbench.status(name).files == 3


def test_nothing_is_left_out_in_silence_of_a_run_that_has_lost_some_names(
    workbench: Workbench,
) -> None:
    """One bucket's names are gone, the others' are there."""
    workbench.files(20)
    workbench.enqueue("run", buckets=4, target="-")
    (manifest_key,) = workbench.redis.keys("imece:imece:run:run:manifest:*")
    workbench.redis.hdel(text(manifest_key), workbench.redis.hkeys(text(manifest_key))[0])
    workbench.imece("cancel", "run")
    answer = workbench.imece("resume", "run")
    assert answer.returncode == 2
    assert "imece enqueue IN OUT --run-id run" in answer.stderr


def test_a_count_of_files_that_is_too_low_makes_no_negative_numbers(workbench: Workbench) -> None:
    workbench.files(5)
    workbench.enqueue("run", buckets=5)
    workbench.redis.hset("imece:imece:run:run", "files", "2")
    workbench.worker()
    last = workbench.ended("run")
    assert (last.done, last.left) == (5, 0)
    assert last.blocking_reason is not None
    for options in ((), ("--json",)):
        answer = workbench.imece("status", "run", *options)
        assert not re.search(r"\B-3", answer.stdout)
    assert "too low by 3" in last.blocking_reason


# A key that all runs share is of another type

SHARED = keys.shared("imece")


def spoil_shared(redis: Redis, key: str) -> None:
    redis.delete(key)
    if SHARED[key] == "string":
        redis.rpush(key, "an entry")
    else:
        redis.set(key, "a text")


def is_told_of(worker: WorkerProcess, key: str) -> bool:
    told = [entry["error"] for entry in worker.events("key in redis has the wrong type")]
    if len(told) > 1 and "another type of value" in told[-1]:
        told.pop()  # it was repaired between the command that failed and the look at the keys
    assert len(told) <= 1, told  # not again at each try
    assert all(f"`redis-cli DEL {key}` helps" in error for error in told), told
    return bool(told)


@pytest.mark.slow
@pytest.mark.parametrize("key", SHARED)
def test_a_worker_that_starts_with_a_spoilt_key_says_what_helps_and_goes_on(
    workbench: Workbench, key: str
) -> None:
    workbench.files(3)
    workbench.enqueue(buckets=1, files_per_job=1)
    spoil_shared(workbench.redis, key)
    worker = workbench.worker(log_format="json", heartbeat="0.2")
    until(lambda: is_told_of(worker, key), "word of it")
    if key not in (keys.pending("imece"), keys.moving("imece"), keys.leases("imece")):
        until(
            lambda: workbench.redis.hget("imece:imece:run:run", "done") == b"3", "all of the files"
        )
    workbench.redis.delete(key)
    assert workbench.ended(timeout=60).done == 3
    assert "Traceback" not in worker.log()
    assert is_told_of(worker, key)
    assert worker.stop() == 0
    workbench.check_books()


@pytest.mark.parametrize("key", SHARED)
def test_a_job_in_hand_goes_on_while_a_key_is_spoilt(workbench: Workbench, key: str) -> None:
    workbench.files(3)
    workbench.file("f-0001.txt", f"wait-for {workbench.folder}/go")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, files_per_job=10)
    worker = workbench.worker(log_format="json", heartbeat="0.2").took()
    until(lambda: workbench.status().done == 1, "the first file")
    spoil_shared(workbench.redis, key)
    (workbench.folder / "go").touch()
    until(lambda: is_told_of(worker, key), "word of it")
    until(lambda: len(workbench.outputs()) >= 3, "the other files")
    workbench.redis.delete(key)
    last = workbench.ended(timeout=60)
    assert (last.done + last.skipped, last.failed) == (3, 0)
    assert "Traceback" not in worker.log()
    assert worker.events("run held") == []
    assert worker.stop() == 0


def test_a_key_that_was_repaired_since_is_waited_for_like_one_that_was_not(
    workbench: Workbench,
) -> None:
    workbench.file("f")
    workbench.enqueue(buckets=1)
    reference = Reference("run", "00000000", 0, 0)
    lease = Lease(workbench.redis, workbench.load(), reference, "0" * 32)
    with pytest.raises(ResponseError) as failed:
        workbench.redis.lpush("imece:imece:runs", "an entry")
    assert lease.trouble(failed.value) is not None
    other_kind("jobs")(workbench.redis, "imece:imece:run:run")
    assert lease.trouble(failed.value) is None  # it is the run's


def test_a_list_of_runs_with_ids_that_are_none_is_shown(workbench: Workbench) -> None:
    workbench.file("f")
    workbench.enqueue("healthy")
    for run_id in (RAW, b"", b"a:b", b"x" * 10_000):
        workbench.redis.zadd("imece:imece:runs", {run_id: 1})
        workbench.redis.hset(b"imece:imece:run:" + run_id, "state", RAW)
        assert raw(workbench.redis.hget(b"imece:imece:run:" + run_id, "state")) == RAW
    answer = workbench.imece("runs")
    assert answer.returncode == 0, answer.stderr
    assert is_clean(answer), answer.stderr
    assert "healthy" in answer.stdout
    until(lambda: workbench.status("healthy").state == "queued", "the healthy run")
