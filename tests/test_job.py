"""The queue carries references to files, never code."""

import json
import pickle
import zlib
from typing import Any

import pytest
from redis import Redis
from rq.job import Job

from imece.job import FUNCTION, BucketJob, BucketQueue, MalformedJobError, Reference

REFERENCE = Reference("nightly", "0a1b2c3d", 7, 250)


def data(
    function: Any = FUNCTION,
    instance: Any = None,
    arguments: Any = ("nightly", "0a1b2c3d", 7, 250),
    keywords: Any = None,
) -> bytes:
    return json.dumps([function, instance, arguments, keywords or {}]).encode()


def put(redis: Redis, content: bytes, job_id: str = REFERENCE.job_id) -> None:
    redis.hset(f"rq:job:{job_id}", "data", content)


def test_a_staged_reference_is_read_back(redis: Redis) -> None:
    with redis.pipeline() as pipeline:
        BucketQueue("imece", redis).stage([REFERENCE], 60, pipeline)
        pipeline.execute()
    assert Reference.read(redis, REFERENCE.job_id) == REFERENCE


def test_a_staged_job_has_a_ttl_and_is_not_in_the_queue(redis: Redis) -> None:
    queue = BucketQueue("imece", redis)
    with redis.pipeline() as pipeline:
        queue.stage([REFERENCE], 60, pipeline)
        pipeline.execute()
    assert 0 < redis.ttl(f"rq:job:{REFERENCE.job_id}") <= 60
    assert redis.keys() == [f"rq:job:{REFERENCE.job_id}".encode()]


def test_tools_of_rq_can_show_a_staged_job(redis: Redis) -> None:
    queue = BucketQueue("imece", redis)
    with redis.pipeline() as pipeline:
        queue.stage([REFERENCE], 60, pipeline)
        pipeline.execute()
    job = Job.fetch(REFERENCE.job_id, redis, serializer=queue.serializer)
    assert job.description == "bucket 7 of nightly"
    assert job.get_status() == "queued"


def test_data_that_is_not_compressed_is_read_too(redis: Redis) -> None:
    put(redis, data())
    assert Reference.read(redis, REFERENCE.job_id) == REFERENCE


def test_a_job_that_is_not_there_is_none(redis: Redis) -> None:
    assert Reference.read(redis, "nothing") is None


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(pickle.dumps(("os.system", None, ("true",), {})), id="pickle"),
        pytest.param(data("os.system", arguments=["true"]), id="os.system"),
        pytest.param(data("os.system"), id="os.system with our arguments"),
        pytest.param(data(instance="x"), id="an instance"),
        pytest.param(data(keywords={"x": 1}), id="keywords"),
        pytest.param(data(arguments=["a/b", "0a1b2c3d", 7, 250]), id="run with a slash"),
        pytest.param(data(arguments=["*", "0a1b2c3d", 7, 250]), id="run with a star"),
        pytest.param(data(arguments=["x" * 65, "0a1b2c3d", 7, 250]), id="run too long"),
        pytest.param(data(arguments=["nightly\n", "0a1b2c3d", 7, 250]), id="run with newline"),
        pytest.param(data(arguments=[["nightly"], "0a1b2c3d", 7, 250]), id="run not a text"),
        pytest.param(data(arguments=["nightly", "xyz", 7, 250]), id="part no token"),
        pytest.param(data(arguments=["nightly", "0a1b2c3d", -1, 250]), id="bucket negative"),
        pytest.param(data(arguments=["nightly", "0a1b2c3d", 7, 2**32]), id="start too large"),
        pytest.param(data(arguments=["nightly", "0a1b2c3d", 7.0, 250]), id="bucket a float"),
        pytest.param(data(arguments=["nightly", "0a1b2c3d", True, 250]), id="bucket a bool"),
        pytest.param(data(arguments=["nightly", "0a1b2c3d", 7]), id="too few arguments"),
        pytest.param(data(arguments="nigh"), id="arguments a text"),
        pytest.param(b"[" * 4000, id="deep nesting"),
        pytest.param(b"null", id="null"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\x00garbage", id="garbage"),
        pytest.param(zlib.compress(bytes(10**8)), id="bomb"),
        pytest.param(zlib.compress(b"[" * 10**7), id="nested bomb"),
    ],
)
def test_anything_but_a_bucket_job_is_malformed(redis: Redis, content: bytes) -> None:
    put(redis, content)
    with pytest.raises(MalformedJobError):
        Reference.read(redis, REFERENCE.job_id)


def test_a_job_under_an_id_that_is_not_its_own_is_malformed(redis: Redis) -> None:
    put(redis, data(), "another-0a1b2c3d-7-250")
    with pytest.raises(MalformedJobError, match="not its own"):
        Reference.read(redis, "another-0a1b2c3d-7-250")


def test_a_key_that_holds_no_hash_is_malformed(redis: Redis) -> None:
    redis.set("rq:job:x", "a string")
    with pytest.raises(MalformedJobError, match="no hash"):
        Reference.read(redis, "x")


def test_a_hash_without_data_is_malformed(redis: Redis) -> None:
    redis.hset("rq:job:x", "status", "queued")
    with pytest.raises(MalformedJobError, match="no data"):
        Reference.read(redis, "x")


def test_no_way_of_running_a_job_through_rq_runs_anything(redis: Redis) -> None:
    queue = BucketQueue("imece", redis)
    queue.enqueue_call("os.system", args=("true",), job_id="hostile")
    job = BucketJob.fetch("hostile", redis, serializer=queue.serializer)
    for attempt in (
        job.perform,
        lambda: job.func,
        lambda: job.success_callback,
        lambda: job.failure_callback,
        lambda: job.stopped_callback,
    ):
        with pytest.raises(MalformedJobError):
            attempt()


def test_two_jobs_never_share_an_id() -> None:
    """The id is read back from its end: run ids may hold dashes and digits themselves."""
    first = Reference("a", "0a1b2c3d", 1, 2)
    second = Reference("a-0a1b2c3d-1-2", "0a1b2c3d", 1, 2)
    assert first.job_id != second.job_id
    assert first.field == second.field == "0a1b2c3d-1-2"
