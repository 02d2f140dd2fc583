"""A bucket job: the one kind of job the queue carries, as a reference to files, never as code.

RQ's `Job` runs whatever function its data names, and its serializer may be pickle. This one is
JSON, and `func` returns the one thing this queue runs: nothing at all, for the worker reads the
reference and does the rest (rq/job.py, `Job.func`, `Job._deserialize_data`).
"""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError
from rq import Queue
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from imece import scripts
from imece.connection import raw

FUNCTION = "imece.bucket"
"""What stands in a job's data where RQ keeps the function's name."""

LONGEST_DATA = 4096

_RUN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PART = re.compile(r"[0-9a-f]{8}")


class MalformedJobError(Exception):
    """What lies in the queue under this id is not a bucket job."""


@dataclass(frozen=True)
class Reference:
    """Which files a bucket job stands for: a slice of a bucket's manifest, named by its start.

    `part` names the enqueuing the manifest came with: the first, or a retry.
    """

    run: str
    part: str
    bucket: int
    start: int

    @property
    def job_id(self) -> str:
        return f"{self.run}-{self.part}-{self.bucket}-{self.start}"

    @property
    def field(self) -> str:
        """The field of this job in the run's hashes of jobs and holders."""
        return f"{self.part}-{self.bucket}-{self.start}"

    def encode(self) -> str:
        """A job's data, as RQ's JSON serializer has it."""
        arguments = [self.run, self.part, self.bucket, self.start]
        return json.dumps([FUNCTION, None, arguments, {}])

    @classmethod
    def read(cls, redis: Redis, job_id: str) -> "Reference | None":
        """The reference in the hash of a job; None if there is no such job.

        Only the data is read, never RQ's other fields: some of them name code or addresses, or are
        unpickled by RQ (rq/job.py, `Job.restore`).

        Raises:
            MalformedJobError: it is not a bucket job.
        """
        try:
            found = redis.hget(f"rq:job:{job_id}", "data")
        except ResponseError:
            raise MalformedJobError("its key holds no hash") from None
        if found is None:
            if redis.exists(f"rq:job:{job_id}"):
                raise MalformedJobError("its hash has no data")
            return None
        data = raw(found)
        try:
            data = zlib.decompressobj().decompress(data, LONGEST_DATA)
        except zlib.error:
            pass  # RQ takes data that is not compressed, too
        reference = cls.decode(data)
        if reference.job_id != job_id:
            raise MalformedJobError("it stands under an id that is not its own")
        return reference

    @classmethod
    def decode(cls, data: bytes) -> "Reference":
        """The reference in a job's data.

        Raises:
            MalformedJobError: it is anything else.
        """
        try:
            function, instance, arguments, keywords = json.loads(data)
            run, part, bucket, start = arguments
        except (ValueError, TypeError, RecursionError):
            raise MalformedJobError("its data is not that of a bucket job") from None
        if function != FUNCTION or instance is not None or keywords != {}:
            raise MalformedJobError(
                f"it names {str(function)[:80]!r}, which this queue does not run"
            )
        texts_fit = isinstance(run, str) and isinstance(part, str)
        if not (texts_fit and _RUN.fullmatch(run) and _PART.fullmatch(part)):
            raise MalformedJobError("its run or part is not a name")
        numbers_fit = type(bucket) is int and type(start) is int
        if not (numbers_fit and 0 <= bucket < 2**32 and 0 <= start < 2**32):
            raise MalformedJobError("its bucket or start is not a number in range")
        return cls(run, part, bucket, start)


class BucketJob(Job):
    """RQ's job, able to carry a reference and nothing else."""

    @property
    def func(self) -> NoReturn:
        raise MalformedJobError("jobs of this queue name no code")

    success_callback = failure_callback = stopped_callback = func

    def perform(self) -> Any:
        return self.func


class BucketQueue(Queue):
    """RQ's queue, of bucket jobs. A worker listens to exactly one: RQ pops several queues without
    an intermediate list, and a kill then loses the job (rq/queue.py, `dequeue_any`)."""

    job_class = BucketJob

    def __init__(self, name: str, connection: Redis) -> None:
        super().__init__(
            name, connection=connection, serializer=JSONSerializer, job_class=BucketJob
        )

    def stage(self, references: Sequence[Reference], ttl: int, pipeline: Pipeline) -> None:
        """Writes the jobs' hashes, without putting the jobs in the queue: a commit does that.

        Args:
            ttl: seconds the hashes live if nothing renews them.
        """
        job = self.create_job(
            FUNCTION,
            timeout=-1,
            result_ttl=0,
            ttl=ttl,
            description="",
            status=JobStatus.QUEUED,
        )
        common = job.to_dict()
        del common["data"], common["description"]
        arguments: list[str | bytes | int | float] = [ttl, len(common)]
        for name, value in common.items():
            arguments += [name, value]
        for reference in references:
            arguments += [reference.encode(), f"bucket {reference.bucket} of {reference.run}"]
        keys = [f"rq:job:{reference.job_id}" for reference in references]
        scripts.run("stage", pipeline, keys, arguments)
