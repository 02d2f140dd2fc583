"""A cursor: how far a bucket job has got, as it stands in Redis."""

import json
from dataclasses import dataclass, field

from imece.run import records
from imece.run.records import RecordError

LARGEST = 8 * 2**20
"""Bytes a cursor may have in Redis: enough for a full bucket job all of whose files have failed."""

MOST_FILES = 100_000
"""Files a bucket job holds at the most: a cursor has an entry for each that it owes a retry."""


WRONG = "what stands for the progress of a bucket job is not a cursor: "


@dataclass(frozen=True)
class PendingRetry:
    """A file that failed and is to be tried again: tries so far, and not before when (epoch seconds
    of the server's clock)."""

    tries: int
    due: float


@dataclass(frozen=True)
class Cursor:
    """Indexes into the bucket's manifest: [next, stop) has not been tried yet, `owed` has failed.

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
        retries = {str(index): [entry.tries, entry.due] for index, entry in self.retries.items()}
        position = [self.next, self.stop, retries, int(self.isolated), self.marked]
        return json.dumps(position, separators=(",", ":"))

    @classmethod
    def decode(cls, text: bytes | str) -> "Cursor":
        """The cursor in a run's hash.

        Raises:
            RecordError: it is not what `encode` makes.
        """
        try:
            return cls._of(records.unpacked(text, LARGEST, parts=3 * MOST_FILES + 10))
        except RecordError as error:
            raise RecordError(f"{WRONG}{error}") from None

    def check_within(self, files: int) -> None:
        """Raises RecordError if it points outside a bucket of so many files."""
        if self.stop > files:
            raise RecordError(f"{WRONG}it points outside its bucket")

    @classmethod
    def _of(cls, position: object) -> "Cursor":
        if not isinstance(position, list) or len(position) != 5:
            raise RecordError("it does not have five parts")
        following, stop, retries, isolated, marked = position
        if not isinstance(retries, dict) or isolated not in (0, 1):
            raise RecordError("its parts are not what they should be")
        numbers: list[object] = [following, stop, marked]
        entries = {}
        for index, entry in retries.items():
            if not isinstance(entry, list) or len(entry) != 2:
                raise RecordError("a retry does not have two parts")
            tries, due = entry
            if not index.isascii() or not index.isdigit() or len(index) > 10:
                raise RecordError("an index is not a number")
            if type(due) not in (int, float) or not 0 <= due <= records.LARGEST_NUMBER:
                raise RecordError("the time of a retry is not a time")
            entries[int(index)] = PendingRetry(tries, due)
            numbers.append(tries)
        if not all(type(number) is int for number in numbers):
            raise RecordError("a number is not whole")
        cursor = cls(following, stop, entries, bool(isolated), marked)
        inside = all(0 <= index < cursor.stop for index in entries)
        if not (inside and 0 <= cursor.next <= cursor.stop and -1 <= cursor.marked < cursor.stop):
            raise RecordError("an index points outside")
        if not all(entry.tries >= 0 for entry in entries.values()):
            raise RecordError("a count of tries is negative")
        return cursor
