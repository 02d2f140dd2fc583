"""A bucket job: the one kind of job the queue carries. Its id is a reference to files.

There is nothing but the id: no code is named, nothing is unpickled, and a million jobs cost no
million hashes. RQ's own workers find no job under such an id, and drop it (rq/job.py, `Job.fetch`).
"""

import re
from dataclasses import dataclass

from imece.run.records import RecordError

_ID = re.compile(rb"([A-Za-z0-9_-]{1,64})-([0-9a-f]{8})-([0-9]{1,10})-([0-9]{1,10})")


class MalformedJobError(RecordError):
    """What lies in the queue is not a bucket job."""


@dataclass(frozen=True)
class Reference:
    """Which files a bucket job stands for: a slice of a bucket's manifest, named by its start.

    `part` names the enqueuing the manifest came with.
    """

    run: str
    part: str
    bucket: int
    start: int

    @property
    def job_id(self) -> str:
        return f"{self.run}-{self.field}"

    @property
    def field(self) -> str:
        """The field of this job in the run's hashes of jobs and holders."""
        return f"{self.part}-{self.bucket}-{self.start}"

    @classmethod
    def parse(cls, job_id: bytes) -> "Reference":
        """The reference that a job's id is.

        Raises:
            MalformedJobError: it is none that imece makes.
        """
        found = _ID.fullmatch(job_id)
        if found is None:
            raise MalformedJobError("its id is not that of a bucket job")
        run, part, bucket, start = (group.decode("ascii") for group in found.groups())
        reference = cls(run, part, int(bucket), int(start))
        if reference.job_id.encode() != job_id or max(reference.bucket, reference.start) >= 2**32:
            raise MalformedJobError("its bucket or start is not a number in range")
        return reference

    @classmethod
    def of_field(cls, run: str, field: bytes) -> "Reference":
        """The job of a run by its field; raises MalformedJobError as `parse`."""
        return cls.parse(run.encode() + b"-" + field)
