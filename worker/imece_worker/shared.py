"""What a runner has done so far, in memory it shares with its parent.

One row a file. A row counts from the moment its outcome byte is written, which is the last thing
written: whatever kills the runner, the parent finds every finished file and the one in hand.
"""

import mmap
import time
from enum import IntEnum

NONE = -1


class Outcome(IntEnum):
    """Why a row is no longer open."""

    OPEN = 0
    DONE = 1
    SKIPPED = 2
    FAILED = 3
    """This try failed; the journal says more."""


class SharedProgress:
    """Rows for the files [first, stop) of a bucket, and some words between parent and runner.

    Args:
        rows: how many files it has room for.
    """

    _STOP, _OTHERS, _CURRENT, _STARTED, _WANTED, _OVERDUE, _WORDS = range(7)

    def __init__(self, rows: int) -> None:
        self.capacity = rows
        self.first = 0
        size = 8 * (self._WORDS + 3 * rows) + rows
        memory = memoryview(mmap.mmap(-1, size))
        numbers = memory[: 8 * (self._WORDS + 3 * rows)].cast("q")
        self._words = numbers[: self._WORDS]
        self.microseconds = numbers[self._WORDS : self._WORDS + rows]
        self.bytes_in = numbers[self._WORDS + rows : self._WORDS + 2 * rows]
        self.bytes_out = numbers[self._WORDS + 2 * rows :]
        self._all_outcomes = memory[8 * (self._WORDS + 3 * rows) : size]
        self.assign(0, 0)

    def assign(self, first: int, stop: int) -> None:
        """The parent's: makes it the empty table of these files."""
        self.look_at(first, stop)
        self.outcomes[:] = bytes(stop - first)
        for word in (self._STOP, self._OTHERS):
            self._words[word] = 0
        for word in (self._CURRENT, self._OVERDUE):
            self._words[word] = NONE

    def look_at(self, first: int, stop: int) -> None:
        """The runner's: takes it for the shared progress of these files."""
        self.first = first
        self.outcomes = self._all_outcomes[: stop - first]

    @property
    def stopping(self) -> bool:
        """Parent to runner: finish the file in hand, then leave."""
        return bool(self._words[self._STOP])

    def ask_to_stop(self) -> None:
        self._words[self._STOP] = 1

    @property
    def others_wait(self) -> bool:
        """Parent to runner: other bucket jobs are waiting, so do not wait for a pause here."""
        return bool(self._words[self._OTHERS])

    @others_wait.setter
    def others_wait(self, they_do: bool) -> None:
        self._words[self._OTHERS] = int(they_do)

    @property
    def wanted(self) -> int:
        """Runner to parent: the file it wants marked before it starts."""
        return self._words[self._WANTED]

    @wanted.setter
    def wanted(self, index: int) -> None:
        self._words[self._WANTED] = index

    @property
    def overdue(self) -> int:
        """Parent to runner: the file whose time is up; nothing that comes of it counts."""
        return self._words[self._OVERDUE]

    @overdue.setter
    def overdue(self, index: int) -> None:
        self._words[self._OVERDUE] = index

    @property
    def current(self) -> int:
        """The file in hand, or NONE."""
        return self._words[self._CURRENT]

    @property
    def started(self) -> float:
        """When the file in hand was begun, seconds on the monotonic clock all processes share."""
        return self._words[self._STARTED] / 1e9

    @property
    def began(self) -> int:
        """As `started`, exactly: tells two tries of one file apart."""
        return self._words[self._STARTED]

    def begin(self, index: int) -> None:
        """The runner takes a file in hand."""
        self._words[self._STARTED] = time.monotonic_ns()
        self._words[self._CURRENT] = index

    def end(self, index: int, outcome: Outcome, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """The runner is through with the file in hand."""
        row = index - self.first
        elapsed = time.monotonic_ns() - self._words[self._STARTED]
        self.microseconds[row] = elapsed // 1000
        self.bytes_in[row] = bytes_in
        self.bytes_out[row] = bytes_out
        self.outcomes[row] = outcome
        self._words[self._CURRENT] = NONE

    def reopen(self, index: int) -> None:
        """Clears a failed row before its next try."""
        self.outcomes[index - self.first] = Outcome.OPEN

    def drop_current(self) -> None:
        """The parent has dealt with the file a dead runner had in hand."""
        self._words[self._CURRENT] = NONE
