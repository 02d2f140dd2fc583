"""The promise: whatever lies in the queue, nothing of it is executed; it is put on record and out
of the way, and the worker goes on with the next real job."""

import itertools
import json
import os
import pickle
import zlib
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Queue

from imece.connection import raw, text
from imece.run.job import MalformedJobError, Reference
from tests.conftest import Workbench, until

QUEUE = "rq:queue:imece"
PART = "0123abcd"

_numbers = itertools.count()


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(workbench: Workbench) -> Path:
    """A file that is there once something hostile has been executed."""
    return workbench.folder / "canary"


def fresh() -> str:
    """A job id."""
    return f"evil-{next(_numbers)}"


def put(redis: Redis, job_id: str | bytes, **fields: str | bytes) -> None:
    """A job's hash, if it has any fields, and its id in the queue."""
    key = b"rq:job:" + (job_id if isinstance(job_id, bytes) else job_id.encode())
    if fields:
        redis.hset(key, mapping=fields)  # type: ignore[arg-type]
        redis.expire(key, 1000)
    redis.lpush(QUEUE, job_id)


def data(*parts: Any) -> bytes:
    return zlib.compress(json.dumps(parts).encode())


def pickled(redis: Redis, canary: Path) -> None:
    put(redis, fresh(), data=zlib.compress(pickle.dumps(Bomb(str(canary)))))


def pickled_plain(redis: Redis, canary: Path) -> None:
    put(redis, fresh(), data=pickle.dumps(Bomb(str(canary))))


def pickled_elsewhere(redis: Redis, canary: Path) -> None:
    """In the fields RQ unpickles without being asked (rq/job.py, restore)."""
    bomb = zlib.compress(pickle.dumps(Bomb(str(canary))))
    put(redis, fresh(), data=b"?", exc_info=bomb, result=bomb, meta=bomb)


def names_os_system(redis: Redis, canary: Path) -> None:
    put(redis, fresh(), data=data("os.system", None, [f"touch {canary}"], {}))


def made_by_rq(redis: Redis, canary: Path) -> None:
    queue = Queue("imece", connection=redis)
    callback = Callback(os.system)
    job = queue.enqueue(os.system, f"touch {canary}", on_success=callback, on_failure=callback)
    redis.expire(job.key, 1000)


def leaves_the_keys_of_runs(redis: Redis, canary: Path) -> None:
    put(redis, f"run:jobs-{PART}-0-0")


def names_no_part(redis: Redis, canary: Path) -> None:
    put(redis, "run-*-0-0")


def has_negative_numbers(redis: Redis, canary: Path) -> None:
    put(redis, f"run-{PART}--1-0")


def has_truth_for_a_number(redis: Redis, canary: Path) -> None:
    put(redis, f"run-{PART}-True-0")


def has_a_number_too_large(redis: Redis, canary: Path) -> None:
    put(redis, f"run-{PART}-0-{2**64}")


def has_endless_lists(redis: Redis, canary: Path) -> None:
    put(redis, fresh(), data=b"[" * 4000)


def has_an_endless_number(redis: Redis, canary: Path) -> None:
    put(redis, fresh(), data=b"[" + b"9" * 4090 + b"]")


def is_no_json(redis: Redis, canary: Path) -> None:
    put(redis, fresh(), data=b"\xff\xfe\x00garbage")


def has_lone_surrogates(redis: Redis, canary: Path) -> None:
    put(redis, fresh(), data=data("\ud800\n\x1b[2J", None, ["run", PART, 0, 0], {}))


def has_no_data(redis: Redis, canary: Path) -> None:
    put(redis, fresh(), status="queued", created_at="never")


def holds_a_string(redis: Redis, canary: Path) -> None:
    job_id = fresh()
    redis.set(f"rq:job:{job_id}", "a string", ex=1000)
    put(redis, job_id)


@cache
def zip_bomb() -> bytes:
    return zlib.compress(bytes(2**28), 9)


def is_a_zip_bomb(redis: Redis, canary: Path) -> None:
    put(redis, fresh(), data=zip_bomb())


def has_an_id_that_is_not_text(redis: Redis, canary: Path) -> None:
    """The id, read as text, is that of another job that is there."""
    redis.hset("rq:job:evil-\N{REPLACEMENT CHARACTER}", "data", "garbage")
    redis.expire("rq:job:evil-\N{REPLACEMENT CHARACTER}", 1000)
    put(redis, b"evil-\xff", data="garbage")


def has_an_id_full_of_control_characters(redis: Redis, canary: Path) -> None:
    put(redis, "evil\n\x1b[2J\r:*", data="garbage")


HOSTILE: list[Callable[[Redis, Path], None]] = [
    pickled,
    pickled_plain,
    pickled_elsewhere,
    names_os_system,
    made_by_rq,
    leaves_the_keys_of_runs,
    has_negative_numbers,
    has_truth_for_a_number,
    has_a_number_too_large,
    names_no_part,
    has_endless_lists,
    has_an_endless_number,
    is_no_json,
    has_lone_surrogates,
    has_no_data,
    holds_a_string,
    is_a_zip_bomb,
    has_an_id_that_is_not_text,
    has_an_id_full_of_control_characters,
]


def refused(workbench: Workbench) -> list[dict[str, Any]]:
    """What is on record, newest first."""
    return [json.loads(line) for line in workbench.redis.lrange("imece:imece:refused", 0, -1)]


def nothing_is_counted(workbench: Workbench) -> bool:
    """What KEDA sees: with this at zero the last worker may leave."""
    redis = workbench.redis
    return (
        redis.llen(QUEUE) + redis.llen(f"{QUEUE}:intermediate") + redis.zcard("rq:wip:imece") == 0
    )


def test_no_hostile_job_is_executed_and_the_real_ones_are_done(
    workbench: Workbench, canary: Path
) -> None:
    """All at once, in front of real work, and one worker that has to survive them all."""
    names = workbench.files(10)
    workbench.enqueue()
    for hostile in HOSTILE:
        hostile(workbench.redis, canary)
    assert workbench.redis.llen(QUEUE) == 10 + len(HOSTILE)
    worker = workbench.worker(log_format="json")
    assert workbench.ended().state == "done"
    assert workbench.outputs() == names
    assert workbench.check_books().done == 10
    assert not canary.exists()
    assert worker.process.poll() is None
    records = refused(workbench)
    assert len(records) == len(HOSTILE)
    assert len(worker.events("job refused")) == len(HOSTILE)
    for record in records:
        assert record["job"]
        assert record["job"].isprintable()
        assert record["reason"].isprintable()
        assert datetime.fromtimestamp(record["at"]).year >= 2020
    until(lambda: nothing_is_counted(workbench), "the queue to be empty")
    assert workbench.leaves_nothing_behind()


def test_each_of_them_is_refused_by_the_reader_of_jobs(redis: Redis, workbench: Workbench) -> None:
    """The same one by one, without a worker: to see which of them gets through."""
    for hostile in HOSTILE:
        canary = workbench.folder / hostile.__name__
        hostile(redis, canary)
        job_id = raw(redis.lpop(QUEUE))
        with pytest.raises(MalformedJobError) as error:
            Reference.parse(job_id)
        assert str(error.value).isprintable(), hostile.__name__
        assert not canary.exists()


def test_what_lies_under_a_jobs_key_is_never_read(workbench: Workbench, canary: Path) -> None:
    workbench.files(3)
    workbench.enqueue(buckets=1)
    [job] = map(raw, workbench.redis.lrange(QUEUE, 0, -1))
    bomb = zlib.compress(pickle.dumps(Bomb(str(canary))))
    for kind in ("success", "failure", "stopped"):
        workbench.redis.hset(b"rq:job:" + job, f"{kind}_callback_name", "os.system")
    for field in ("data", "exc_info", "result", "meta"):
        workbench.redis.hset(b"rq:job:" + job, field, bomb)
    workbench.redis.hset(b"rq:job:" + job, "dependency_ids", "evil")
    worker = workbench.worker()
    assert workbench.ended().state == "done"
    assert workbench.check_books().done == 3
    assert not canary.exists()
    assert worker.stop() == 0


def test_a_job_of_a_run_that_is_not_there_is_dropped(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.enqueue()
    reference = Reference("nowhere", PART, 0, 0)
    workbench.redis.lpush(QUEUE, reference.job_id)
    worker = workbench.worker(log_format="json")
    assert workbench.ended().state == "done"
    assert workbench.check_books().done == 3
    [dropped] = worker.events("job dropped")
    assert (dropped["run"], dropped["reason"]) == ("nowhere", "gone")
    assert not workbench.redis.exists("imece:imece:run:nowhere")
    assert not workbench.redis.exists("imece:imece:run:nowhere:holders")
    until(lambda: nothing_is_counted(workbench), "the queue to be empty")


def the_manifest(workbench: Workbench, run: str) -> str:
    [key] = workbench.redis.keys(f"{run}:manifest:*")
    return text(key)


def climbs_out(workbench: Workbench, run: str) -> None:
    blob = zlib.compress(b"../../outside")
    workbench.redis.hset(the_manifest(workbench, run), "0", blob)


def is_absolute(workbench: Workbench, run: str) -> None:
    workbench.redis.hset(the_manifest(workbench, run), "0", zlib.compress(b"/etc/passwd"))


def is_garbage(workbench: Workbench, run: str) -> None:
    workbench.redis.hset(the_manifest(workbench, run), "0", b"garbage")


def is_cut_off(workbench: Workbench, run: str) -> None:
    blob = workbench.redis.hget(the_manifest(workbench, run), "0")
    assert isinstance(blob, bytes)
    workbench.redis.hset(the_manifest(workbench, run), "0", blob[:-4])


def unpacks_to_too_much(workbench: Workbench, run: str) -> None:
    packer = zlib.compressobj(1)
    blob = b"".join(packer.compress(b"a" * 2**24) for _ in range(20)) + packer.flush()
    workbench.redis.hset(the_manifest(workbench, run), "0", blob)


def unpacks_to_nothing_but_separators(workbench: Workbench, run: str) -> None:
    packer = zlib.compressobj(1)
    blob = b"".join(packer.compress(bytes(2**24)) for _ in range(8)) + packer.flush()
    workbench.redis.hset(the_manifest(workbench, run), "0", blob)


def a_cursor(workbench: Workbench, run: str, text: str) -> None:
    [field] = workbench.redis.hkeys(f"{run}:jobs")
    workbench.redis.hset(f"{run}:jobs", field, text)


def has_a_cursor_past_its_end(workbench: Workbench, run: str) -> None:
    a_cursor(workbench, run, "[0,1000000,{},0,-1]")


def has_a_cursor_of_fractions(workbench: Workbench, run: str) -> None:
    a_cursor(workbench, run, "[0.5,1,{},0,-1]")


def has_a_cursor_marked_outside(workbench: Workbench, run: str) -> None:
    a_cursor(workbench, run, "[0,1,{},1,99]")


def has_a_cursor_that_owes_what_is_not_there(workbench: Workbench, run: str) -> None:
    a_cursor(workbench, run, '[0,1,{"99":[1,0]},0,-1]')


def has_a_cursor_that_is_a_list(workbench: Workbench, run: str) -> None:
    a_cursor(workbench, run, "[0,1,[],0,-1]")


def has_no_parameters(workbench: Workbench, run: str) -> None:
    workbench.redis.hset(run, "parameters", "{}")


def has_parameters_of_other_types(workbench: Workbench, run: str) -> None:
    found = workbench.redis.hget(run, "parameters")
    assert isinstance(found, bytes)
    parameters = json.loads(found) | {"timeout": "soon", "retries": None, "input": 7}
    workbench.redis.hset(run, "parameters", json.dumps(parameters))


def holds_a_list(workbench: Workbench, run: str) -> None:
    workbench.redis.delete(f"{run}:jobs")
    workbench.redis.rpush(f"{run}:jobs", "list")
    workbench.redis.expire(f"{run}:jobs", 1000)


SPOILERS = [
    climbs_out,
    is_absolute,
    is_garbage,
    is_cut_off,
    unpacks_to_too_much,
    unpacks_to_nothing_but_separators,
    has_a_cursor_past_its_end,
    has_a_cursor_of_fractions,
    has_a_cursor_marked_outside,
    has_a_cursor_that_owes_what_is_not_there,
    has_a_cursor_that_is_a_list,
    has_no_parameters,
    has_parameters_of_other_types,
    holds_a_list,
]


def test_spoilt_runs_are_refused_and_the_next_one_is_done(workbench: Workbench) -> None:
    workbench.file("f")
    workbench.settings["lease"] = "60"  # who looks for lost jobs holds such runs, too
    for spoil in SPOILERS:
        workbench.enqueue_apart(spoil.__name__, buckets=1)
        spoil(workbench, f"imece:imece:run:{spoil.__name__}")
    workbench.enqueue("run", overwrite=True)
    worker = workbench.worker(log_format="json")
    assert workbench.ended("run").state == "done"
    assert worker.process.poll() is None
    assert len(worker.events("job refused")) == len(SPOILERS), worker.log()
    jobs = {record["job"].split("-")[0] for record in refused(workbench)}
    assert jobs == {spoil.__name__ for spoil in SPOILERS}
    assert workbench.check_books().done == 1
    assert not (workbench.folder.parent / "outside").exists()
    until(lambda: nothing_is_counted(workbench), "the queue to be empty")
    status = Path(f"/proc/{worker.pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 700_000  # kB
    assert worker.stop() == 0
    assert workbench.immortal_keys() == []


def test_a_spoilt_run_says_why_it_does_not_go_on(workbench: Workbench) -> None:
    workbench.file("f")
    workbench.enqueue()
    climbs_out(workbench, "imece:imece:run:run")
    workbench.worker()
    until(lambda: workbench.status().blocking_reason, "word of it")
    assert "has an empty, '.' or '..' part" in str(workbench.status().blocking_reason)
    assert workbench.status().left == 1
