"""The words that a worker and its runner share in memory. What becomes of the files is in the rows
that the runner writes (imece/files/segment.py)."""

import mmap
import os
import tempfile
import time

from imece.errors import SettingsError

NONE = -1


def memory_file(size: int) -> int:
    """A nameless file in memory; processes that have its descriptor share what is in it.

    Raises:
        SettingsError: a file may not be as large.
    """
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("shared")
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    try:
        os.ftruncate(number, size)
    except OSError as error:
        raise SettingsError(
            f"no {size} bytes of memory for worker and runner: {error.strerror}. The limit of the "
            "size of files (`ulimit -f`) has to be larger"
        ) from None
    return number


class Word:
    """A number that worker and runner share."""

    def __init__(self, place: int) -> None:
        self._place = place

    def __get__(self, owner: "Control", kind: type) -> int:
        return owner.words[self._place]

    def __set__(self, owner: "Control", value: int) -> None:
        owner.words[self._place] = value


class Control:
    """
    Args:
        number: the runner's: the descriptor of its worker's, which it closes.

    Attributes:
        number: the worker's descriptor of it.
        stopping: worker to runner: finish the current file, then leave.
        others_wait: worker to runner: other bucket jobs are pending, so do not wait for a pause.
        overdue: worker to runner: the file whose time is up; its result does not count.
        wanted: runner to worker: the file it wants marked before it starts.
        current: the current file, or NONE.
        last: the last file of the batch in hand, of which `current` is the first; else the same.
        began: when it was begun, nanoseconds on the monotonic clock that all processes share.
        rows: how many rows of this job the runner had written then. With one more, the current file
            has its row.
        preparing: when the processor began to make itself ready, or to close, as `began`; 0: it
            does neither.
        void: the file whose output was not put in its place after all, and that has no later row.
        unwritten: the file that is done, but the processor has closed what its row goes to.
    """

    _STOPPING, _OTHERS_WAIT, _CURRENT, _BEGAN, _WANTED, _OVERDUE, _ROWS = range(7)
    _VOID, _UNWRITTEN, _PREPARING, _LAST, _WORDS = range(7, 12)
    _SIZE = 8 * _WORDS

    stopping, others_wait = Word(_STOPPING), Word(_OTHERS_WAIT)
    current, began = Word(_CURRENT), Word(_BEGAN)
    wanted, overdue = Word(_WANTED), Word(_OVERDUE)
    rows, void, unwritten = Word(_ROWS), Word(_VOID), Word(_UNWRITTEN)
    preparing, last = Word(_PREPARING), Word(_LAST)

    def __init__(self, number: int | None = None) -> None:
        self.number = memory_file(self._SIZE) if number is None else number
        self.words = memoryview(mmap.mmap(self.number, self._SIZE)).cast("q")
        if number is None:
            self.clear()
        else:
            os.close(number)

    def clear(self) -> None:
        """For the next job."""
        self.stopping = self.others_wait = False
        self.preparing = 0
        self.current = self.overdue = self.void = self.unwritten = NONE

    def begin(self, file: int, rows: int, last: int | None = None) -> None:
        """The runner begins a file; or a batch, from this file to the last."""
        words = self.words  # not by name: that takes four times as long
        words[self._LAST] = file if last is None else last
        words[self._ROWS] = rows
        words[self._BEGAN] = time.monotonic_ns()
        words[self._CURRENT] = file

    def in_hand(self) -> int:
        """How many files the runner is at, if there is a current file. The two words may be of two
        moments while it goes on."""
        return max(1, self.last - self.current + 1)

    def microseconds(self) -> int:
        """Since the current file was begun."""
        return (time.monotonic_ns() - self.words[self._BEGAN]) // 1000

    def end(self) -> None:
        """There is no current file: it has its row, or its try does not count."""
        self.words[self._CURRENT] = NONE
