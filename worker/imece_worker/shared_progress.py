"""What a runner has done so far, in memory and in a file that it shares with its worker.

One row a file. A row counts when its outcome byte is written, which is written last. So the parent
finds every finished file and the current one, also after the runner was killed.
"""

import fcntl
import mmap
import os
import tempfile
import time
from enum import IntEnum

from imece.process import move_up

NONE = -1
ROW = 3 * 8 + 1
"""Bytes of a row."""


class Outcome(IntEnum):
    """Why a row is no longer open."""

    OPEN = 0
    DONE = 1
    SKIPPED = 2
    FAILED = 3
    """This try failed; the journal says more."""


def memory_file(size: int) -> int:
    """A nameless file in memory; processes that have its descriptor share what is in it."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("shared")
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    os.ftruncate(number, size)
    return number


class Word:
    """A number that parent and runner share."""

    def __init__(self, place: int) -> None:
        self._place = place

    def __get__(self, owner: "SharedProgress", kind: type) -> int:
        return owner.words[self._place]

    def __set__(self, owner: "SharedProgress", value: int) -> None:
        owner.words[self._place] = value


class SharedProgress:
    """Rows for the files [first, stop) of a bucket, and some words between parent and runner.

    Args:
        rows: how many files it has room for.
        number: the runner's: the descriptor of its worker's table, which it closes.

    Attributes:
        number: the worker's descriptor of it.
        stopping: parent to runner: finish the current file, then leave.
        others_wait: parent to runner: other bucket jobs are pending, so do not wait for a pause.
        overdue: parent to runner: the file whose time is up; its result does not count.
        wanted: runner to parent: the file it wants marked before it starts.
        current: the current file, or NONE.
        began: when it was begun, nanoseconds on the monotonic clock that all processes share. Tells
            two tries of one file apart.
    """

    _STOPPING, _OTHERS_WAIT, _CURRENT, _BEGAN, _WANTED, _OVERDUE, _WORDS = range(7)

    stopping, others_wait = Word(_STOPPING), Word(_OTHERS_WAIT)
    current, began = Word(_CURRENT), Word(_BEGAN)
    wanted, overdue = Word(_WANTED), Word(_OVERDUE)

    @classmethod
    def of(cls, number: int) -> "SharedProgress":
        """The runner's: that of its worker, by its descriptor."""
        return cls((os.fstat(number).st_size - 8 * cls._WORDS) // ROW, number)

    def __init__(self, rows: int, number: int | None = None) -> None:
        self.first = 0
        size = 8 * self._WORDS + ROW * rows
        self.number = memory_file(size) if number is None else number
        memory = memoryview(mmap.mmap(self.number, size))
        numbers = memory[: 8 * (self._WORDS + 3 * rows)].cast("q")
        self.words = numbers[: self._WORDS]
        self.microseconds = numbers[self._WORDS : self._WORDS + rows]
        self.bytes_in = numbers[self._WORDS + rows : self._WORDS + 2 * rows]
        self.bytes_out = numbers[self._WORDS + 2 * rows :]
        self._all_outcomes = memory[8 * (self._WORDS + 3 * rows) : size]
        if number is None:
            self.assign(0, 0)
        else:
            os.close(number)

    def assign(self, first: int, stop: int) -> None:
        """The parent's: makes it the empty table of these files."""
        self.look_at(first, stop)
        self.outcomes[:] = bytes(stop - first)
        self.stopping = self.others_wait = False
        self.current = self.overdue = NONE

    def look_at(self, first: int, stop: int) -> None:
        """The runner's: takes it for the shared progress of these files."""
        self.first = first
        self.outcomes = self._all_outcomes[: stop - first]

    def begin(self, index: int) -> None:
        """The runner begins a file."""
        self.words[self._BEGAN] = time.monotonic_ns()  # not by name: that takes four times as long
        self.words[self._CURRENT] = index

    def end(self, index: int, outcome: Outcome, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """The runner has finished with the current file."""
        row = index - self.first
        self.microseconds[row] = (time.monotonic_ns() - self.words[self._BEGAN]) // 1000
        self.bytes_in[row] = bytes_in
        self.bytes_out[row] = bytes_out
        self.outcomes[row] = outcome
        self.words[self._CURRENT] = NONE

    def reopen(self, index: int) -> None:
        """Clears a failed row before its next try."""
        self.outcomes[index - self.first] = Outcome.OPEN

    def drop_current(self) -> None:
        """The current file's try does not count, or was counted by other means."""
        self.current = NONE


class Journal:
    """A nameless temporary file that runners append to and their worker reads. It is gone with its
    last holder.

    Args:
        number: the runner's: the descriptor of its worker's.
    """

    def __init__(self, number: int | None = None) -> None:
        if number is not None:
            self.number = move_up(number)
            return
        with tempfile.TemporaryFile(buffering=0) as file:
            self.number = move_up(os.dup(file.fileno()))
        # Whoever writes, writes at the end: parent and runner share it.
        flags = fcntl.fcntl(self.number, fcntl.F_GETFL)
        fcntl.fcntl(self.number, fcntl.F_SETFL, flags | os.O_APPEND)

    def append(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.number, data) :]

    def size(self) -> int:
        return os.lseek(self.number, 0, os.SEEK_END)

    def read(self, start: int) -> bytes:
        return os.pread(self.number, max(0, self.size() - start), start)

    def clear(self, start: int = 0) -> None:
        os.ftruncate(self.number, start)
