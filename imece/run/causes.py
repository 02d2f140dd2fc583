"""The causes of a run's failures: what failed files have in common, and how many have it.

The script that records a checkpoint counts them (lua/checkpoint.lua), so a look at them costs the
same for ten failed files as for a million.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from imece.errors import RunError
from imece.run import records
from imece.run.failure import Failure
from imece.run.records import RecordError

MOST = 200
"""How many causes of a round are counted by themselves; as lua/checkpoint.lua has it."""

SHOWN = 3
"""How many are shown with a run's numbers."""

NOT_KNOWN, OTHER = 0, MOST + 1
"""The numbers of failures whose record has no cause, and of those whose cause came after `MOST`
others."""

LONGEST = 200
LONGEST_MESSAGE = 300
"""Characters of a cause, and of a first example's message."""


@dataclass(frozen=True)
class Cause:
    """What failures of a round have in common.

    Attributes:
        number: in the order in which the causes of the round were first seen, from 1 on.
        count: how many files have failed with it; 0 if all of them have been tried again since.
        text: where and how they failed; it has nothing in it that differs from file to file.
        file, message: the first of them, and the last line of its reason.
    """

    number: int
    count: int
    text: str
    file: bytes
    message: str

    def entry(self) -> dict[str, Any]:
        """For programs; bytes of the name that are not UTF-8 come as lone surrogates."""
        return {
            "number": self.number,
            "count": self.count,
            "cause": self.text,
            "file": self.file.decode("utf-8", "surrogateescape"),
            "message": self.message,
        }

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> "Cause":
        """What `entry` has made."""
        return cls(
            int(entry["number"]),
            int(entry["count"]),
            str(entry["cause"]),
            entry["file"].encode("utf-8", "surrogateescape"),
            str(entry["message"]),
        )


def of_hash(found: Mapping[bytes, bytes], failed: int) -> list[Cause]:
    """The causes in a run's hash, by their numbers.

    Args:
        failed: how many files have failed. Those that are counted by no cause are in the first
            entry then.

    Raises:
        RecordError: it is not what lua/checkpoint.lua makes.
    """
    if len(found) > 5 * (OTHER + 1):
        raise RecordError("its causes are more than imece counts")
    causes = []
    for number in range(1, OTHER + 1):
        fields = {
            name: found[key]
            for name in ("text", "count", "file", "message")
            if (key := f"{number}:{name}".encode()) in found
        }
        if (text := records.text(fields, "text")) is None:
            continue
        count = records.whole(fields, "count")
        message = records.text(fields, "message") or ""
        causes.append(Cause(number, count, text, fields.get("file", b""), message))
    if (rest := failed - sum(cause.count for cause in causes)) > 0:
        causes.insert(0, Cause(NOT_KNOWN, rest, "not known", b"", ""))
    return causes


def commonest(causes: Iterable[Cause], most: int | None = None) -> list[Cause]:
    """Those that files have failed with, the commonest first."""
    there = [cause for cause in causes if cause.count]
    return sorted(there, key=lambda cause: (-cause.count, cause.number))[:most]


def numbers(causes: Iterable[Cause]) -> Callable[[Failure], int]:
    """What tells the number of a failure's cause."""
    known = {cause.text: cause.number for cause in causes if NOT_KNOWN < cause.number < OTHER}
    return lambda failure: known.get(failure.cause, OTHER if failure.cause else NOT_KNOWN)


def check(run_id: str, causes: Iterable[Cause], number: int) -> None:
    """Raises RunError if no failed file has the cause of this number."""
    if not any(cause.number == number and cause.count for cause in causes):
        raise RunError(
            f"run {run_id} has no failed file with cause {number}",
            f"`imece failures {run_id} --by-cause` lists the causes",
        )
