"""The queue carries references to files, never code. A job's id is the reference, and all of it."""

import pytest
from redis import Redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job

from imece.run.job import MalformedJobError, Reference

REFERENCE = Reference("nightly", "0a1b2c3d", 7, 250)


@pytest.mark.parametrize(
    "reference",
    [
        REFERENCE,
        Reference("a-0a1b2c3d-1-2", "0a1b2c3d", 1, 2),
        Reference("_", "ffffffff", 0, 2**32 - 1),
        Reference("x" * 64, "00000000", 2**32 - 1, 0),
    ],
)
def test_a_reference_is_read_back_from_its_id(reference: Reference) -> None:
    assert Reference.parse(reference.job_id.encode()) == reference
    assert Reference.of_field(reference.run, reference.field.encode()) == reference


@pytest.mark.parametrize(
    "job_id",
    [
        b"",
        b"nonsense",
        b"a/b-0a1b2c3d-7-250",
        b"run:jobs-0a1b2c3d-7-250",
        b"*-0a1b2c3d-7-250",
        b"-0a1b2c3d-7-250",
        b"x" * 65 + b"-0a1b2c3d-7-250",
        b"nightly\n-0a1b2c3d-7-250",
        b"nightly-0a1b2c3d-7-250\n",
        b"nightly-xyz-7-250",
        b"nightly-*-7-250",
        b"nightly-0A1B2C3D-7-250",
        b"nightly-0a1b2c3d--1-250",
        b"nightly-0a1b2c3d-7-4294967296",
        b"nightly-0a1b2c3d-07-250",
        b"nightly-0a1b2c3d-7.0-250",
        b"nightly-0a1b2c3d-True-250",
        b"nightly-0a1b2c3d-7-" + b"9" * 10**6,
        "nightly-0a1b2c3d-٧-250".encode(),
        b"\xff\x00garbage",
        b"[" * 10**6,
    ],
)
def test_anything_else_is_malformed(job_id: bytes) -> None:
    with pytest.raises(MalformedJobError):
        Reference.parse(job_id)


def test_rqs_own_workers_find_no_job_and_run_nothing(redis: Redis) -> None:
    queue = Queue("imece", connection=redis)
    redis.rpush(queue.key, REFERENCE.job_id)
    assert queue.count == 1, "and its tools count it"
    with pytest.raises(NoSuchJobError):
        Job.fetch(REFERENCE.job_id, redis)


def test_two_jobs_never_share_an_id() -> None:
    """The id is read back from its end: run ids may hold dashes and digits themselves."""
    first = Reference("a", "0a1b2c3d", 1, 2)
    second = Reference("a-0a1b2c3d-1-2", "0a1b2c3d", 1, 2)
    assert first.job_id != second.job_id
    assert first.field == second.field == "0a1b2c3d-1-2"
