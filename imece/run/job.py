"""A bucket job: the one kind of job the queue carries. Its id is a reference to files; its cursor,
in the run's hash of jobs, says how far it is.

There is nothing but the id in the queue: no code is named, nothing is unpickled, and a million jobs
cost no million hashes. RQ's own workers find no job under such an id, and drop it (rq/job.py,
`Job.fetch`).
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from imece.run import records
from imece.run.records import RecordError

MOST_FILES = 100_000
"""The most files of a bucket job: a cursor has an entry for each that it owes a retry."""

LARGEST_CURSOR = 8 * 2**20
"""Bytes a cursor may have in Redis: enough for a full bucket job all of whose files have failed."""

WRONG = "what stands for the progress of a bucket job is not a cursor: "
_ID = re.compile(rb"([A-Za-z0-9_-]{1,64})-([0-9a-f]{8})-([0-9]{1,10})-([0-9]{1,10})")
_INDEX = re.compile(r"[0-9]{1,10}")


class MalformedJobError(RecordError):
    """An entry of the queue is not a bucket job."""


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


@dataclass(frozen=True)
class PendingRetry:
    """A file that failed and is to be tried again.

    Attributes:
        tries: so far.
        due: not before then, epoch seconds of the server's clock.
        error: a number for the cause of the last try, if the next one is likely to end alike; or 0.
    """

    tries: int
    due: float
    error: int = 0


@dataclass(frozen=True)
class Cursor:
    """How far a bucket job is: indexes into the bucket's manifest. [next, stop) has not been tried
    yet, `retries` has failed.

    Attributes:
        isolated: a worker died with this job, at a file that is not known: from here on each file
            is marked before it starts.
        marked: the file that was about to start when this was written, or -1.
    """

    next: int
    stop: int
    retries: dict[int, PendingRetry] = field(default_factory=dict)
    isolated: bool = False
    marked: int = -1

    def encode(self) -> str:
        retries = {
            str(index): [entry.tries, entry.due, entry.error]
            for index, entry in self.retries.items()
        }
        position = [self.next, self.stop, retries, int(self.isolated), self.marked]
        return json.dumps(position, separators=(",", ":"))

    @classmethod
    def decode(cls, text: bytes | str) -> "Cursor":
        """The cursor in a run's hash.

        Raises:
            RecordError: it is not what `encode` makes.
        """
        try:
            return cls._of(records.unpacked(text, LARGEST_CURSOR, parts=4 * MOST_FILES + 10))
        except RecordError as error:
            raise RecordError(f"{WRONG}{error}") from None

    @classmethod
    def _of(cls, position: Any) -> "Cursor":
        match position:
            case [first, stop, dict(retries), 0 | 1 as isolated, marked]:
                numbers = [first, stop, marked]
            case _:
                raise RecordError("it does not have the five parts of one")
        entries = {}
        for index, entry in retries.items():
            match entry:
                case [tries, int() | float() as due, error] if _INDEX.fullmatch(index):
                    entries[int(index)] = PendingRetry(tries, due, error)
                    numbers += [tries, error]
                case _:
                    raise RecordError("a retry in it is not one")
        if not all(type(number) is int for number in numbers):
            raise RecordError("a number in it is not whole")
        if not (0 <= first <= stop and -1 <= marked < stop and all(i < stop for i in entries)):
            raise RecordError("an index in it points outside")
        if not all(entry.tries >= 0 <= entry.due for entry in entries.values()):
            raise RecordError("a count or time of retries is negative")
        return cls(first, stop, entries, bool(isolated), marked)

    def check_within(self, files: int) -> None:
        """Raises RecordError if it points outside a bucket of so many files."""
        if self.stop > files:
            raise RecordError(f"{WRONG}it points outside its bucket")
