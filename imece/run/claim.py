"""What a worker claims of a bucket job, and what it records of it. Nothing here speaks to Redis."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from imece.run.causes import LONGEST_MESSAGE
from imece.run.failure import Failure
from imece.run.job import Cursor, Reference
from imece.run.parameters import Parameters

Action = Literal["continue", "finish", "return", "defer", "stall", "hold", "leave"]
Verdict = Literal["held", "stop", "lost", "gone", "round"]
"""`stop`: the run is not on any more; the file in hand is finished, and no other is begun. `round`:
another round has begun, and nothing was recorded; outputs may have been removed before it."""


@dataclass
class Batch:
    """What has happened since the last checkpoint.

    Attributes:
        durations: step of imece/run/durations.py -> files that took so long.
        shortest: microseconds of the file that was quickest; -1 if none is done.
        microseconds: what the files took that were done, all together; not recorded in Redis.
    """

    done: int = 0
    failed: int = 0
    retried: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    durations: dict[int, int] = field(default_factory=dict)
    failures: list[tuple[bytes, Failure]] = field(default_factory=list)
    slowest: list[tuple[bytes, int]] = field(default_factory=list)
    microseconds: int = 0
    shortest: int = -1

    @property
    def has_rows(self) -> bool:
        """Whether it tells of any try that has ended."""
        return bool(self.done or self.failed or self.retried)

    def causes(self) -> list[tuple[str, int, bytes, str]]:
        """Of the failures: each cause, how many have it, and the first with its message."""
        known = [(name, failure) for name, failure in self.failures if failure.cause]
        counts = Counter(failure.cause for _, failure in known)
        first = {failure.cause: (name, failure) for name, failure in reversed(known)}
        return [
            (cause, count, first[cause][0], first[cause][1].last_line[:LONGEST_MESSAGE])
            for cause, count in counts.items()
        ]

    def deltas(self) -> str:
        """For lua/checkpoint.lua."""
        counters = ("done", "failed", "retried", "bytes_in", "bytes_out")
        others = ("shortest", "durations")
        return json.dumps({name: getattr(self, name) for name in (*counters, *others)})


@dataclass(frozen=True)
class Claimed:
    """What comes with a lease.

    Attributes:
        earlier: executions that held the job and did not give it back: they died with it.
        now: when the job was taken, epoch seconds of the server's clock.
        files: the names in the whole bucket; the cursor's indexes point here.
        pending: how many jobs wait in the queue.
        unseen: when the round was enqueued, if the producer has not seen the output directory
            and this is the first job that is taken of the round.
    """

    cursor: Cursor
    earlier: list[str]
    parameters: Parameters
    now: float
    files: list[bytes]
    pending: int
    unseen: float | None = None


class CurrentFile(NamedTuple):
    """The file that a worker processes at this moment, and for how many seconds."""

    name: bytes
    seconds: float


class Trouble(NamedTuple):
    """Why a checkpoint was not recorded, and may be later: the log's event, and what is wrong."""

    event: str
    error: str


class Claim(Protocol):
    """Where progress is recorded: a lease, or what stands in for one without Redis."""

    @property
    def reference(self) -> Reference: ...

    @property
    def execution(self) -> str: ...

    def checkpoint(
        self,
        action: Action,
        number: int = 0,
        cursor: Cursor | None = None,
        batch: Batch | None = None,
        reason: str = "",
        current: CurrentFile | None = None,
    ) -> tuple[Verdict, int]: ...

    def trouble(self, error: Exception) -> Trouble | None:
        """Why `checkpoint` has failed, if the same call may succeed later."""

    def is_remembered(self) -> bool: ...
