"""What processors print: its beginning and its end, in memory, however much it is.

It goes through a pipe. A separate process, the drainer, empties the pipe into memory that worker,
runner and drainer share. So nobody who prints waits for a busy worker, and no kill loses what was
printed.
"""

import faulthandler
import fcntl
import io
import mmap
import os
import select
import signal
import sys
import termios
import time
from array import array
from collections.abc import Sequence
from typing import NoReturn

from imece.process import follow_parent, move_up, name_process
from imece.run.failure import LONGEST_OUTPUT, tail
from imece_worker import stops
from imece_worker.control import memory_file

HEAD, TAIL = 2**13, 2**16
"""Bytes that are kept of the beginning, and of the end."""

DRAINER = "imece-drainer"
PATIENCE = 1.0
"""Seconds a reader waits for what is still in the pipe; the drainer takes some microseconds."""


class Capture:
    """A pipe, and what came through it since it was last cleared.

    Args:
        given: the runner's: the numbers of its worker's.

    Attributes:
        reading: the drainer's end.
        number: the end for those who print.
        memory: the descriptor of the memory; the runner closes its own.
    """

    # Bytes drained in all; where in them the current file begins; whether more are being drained.
    _COUNT, _BASE, _BUSY, _WORDS = range(4)

    def __init__(self, given: tuple[int, int] | None = None) -> None:
        size = 8 * self._WORDS + HEAD + TAIL
        if given is None:
            self.reading, self.number = os.pipe()
            os.set_blocking(self.reading, False)
            self.memory = memory_file(size)
        else:
            self.reading, self.number, self.memory = -1, move_up(given[0]), given[1]
        self._waiting = array("i", [0])  # bytes in the pipe, when last asked
        memory = memoryview(mmap.mmap(self.memory, size))
        self._words = memory[: 8 * self._WORDS].cast("q")
        self._head = memory[8 * self._WORDS :][:HEAD]
        self._ring = memory[8 * self._WORDS + HEAD :][:TAIL]
        if given is not None:
            os.close(self.memory)

    def take_over(self) -> None:
        """What this process prints goes here; and where it hangs, if the parent asks by SIGUSR2,
        also from within C code."""
        flush()
        os.dup2(self.number, 1)
        os.dup2(self.number, 2)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # a crash takes nothing said with it
        faulthandler.enable(2)
        faulthandler.register(signal.SIGUSR2, 2)

    def silent(self) -> bool:
        """Whether nothing was printed since it was last cleared; quicker than `size`."""
        fcntl.ioctl(self.number, termios.FIONREAD, self._waiting)
        words = self._words  # in this order, to see what the drainer is taking at this moment
        return (
            not (self._waiting[0] or words[self._BUSY]) and words[self._COUNT] == words[self._BASE]
        )

    def size(self) -> int:
        """Bytes printed since it was last cleared."""
        return self._written() - self._words[self._BASE]

    def clear(self) -> None:
        self._words[self._BASE] = self._written()

    def _written(self) -> int:
        """Bytes ever printed: those that are drained, and those still in the pipe."""
        end = None
        while True:
            count = self._words[self._COUNT]
            fcntl.ioctl(self.number, termios.FIONREAD, self._waiting)
            waiting = self._waiting[0]
            if not self._words[self._BUSY] and count == self._words[self._COUNT]:
                return count + waiting
            # The drainer is taking some of it at this moment.
            end = end or time.monotonic() + PATIENCE
            if time.monotonic() > end:
                return count + waiting
            time.sleep(0)

    def text(self) -> str:
        """The beginning and the end of what was printed, at most LONGEST_OUTPUT characters."""
        size = self._drained()
        rest = self._end(min(size, 4 * LONGEST_OUTPUT)).decode("utf-8", "replace").strip()
        if size <= 4 * LONGEST_OUTPUT and len(rest) <= LONGEST_OUTPUT:
            return rest
        start = bytes(self._head).decode("utf-8", "replace").lstrip()[: LONGEST_OUTPUT // 4]
        lines, newline, _ = start.rpartition("\n")
        start = lines if newline else start
        left_out = f"\n… ({size} bytes in all) …\n"
        return start + left_out + tail(rest, LONGEST_OUTPUT - len(start) - len(left_out))

    def end(self, longest: int) -> str:
        """The end of what was printed, in so many characters."""
        size = self._drained()
        return tail(self._end(min(size, 4 * longest)).decode("utf-8", "replace"), longest)

    def _drained(self) -> int:
        """As `size`, when the pipe is empty."""
        wanted, end = self._written(), time.monotonic() + PATIENCE
        while self._words[self._COUNT] < wanted and time.monotonic() < end:
            time.sleep(0.0005)
        return max(0, self._words[self._COUNT] - self._words[self._BASE])

    def _end(self, size: int) -> bytes:
        count = self._words[self._COUNT]
        return self._between(count - size, count)

    def _between(self, start: int, stop: int) -> bytes:
        """Some of the last TAIL bytes, by their places in all that was ever printed."""
        place, size = start % TAIL, stop - start
        part = bytes(self._ring[place : place + size])
        return part + bytes(self._ring[: size - len(part)])

    def drain(self) -> None:
        """The drainer's: takes what is in the pipe."""
        words = self._words
        words[self._BUSY] = 1
        try:
            count, base = words[self._COUNT], words[self._BASE]
            place = count % TAIL
            taken = os.readv(self.reading, [self._ring[place:], self._ring[:place]])
            start, stop = max(count, base), min(count + taken, base + HEAD)
            if start < stop:
                self._head[start - base : stop - base] = self._between(start, stop)
            words[self._COUNT] = count + taken
        except BlockingIOError:
            pass
        finally:
            words[self._BUSY] = 0

    def forget_drainer(self) -> None:
        """A drainer that was killed may have said that it is draining."""
        self._words[self._BUSY] = 0


def flush() -> None:
    """Writes what is printed and not written yet."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # the processor closed or replaced it, or the disk is full: nothing to keep then


def drain(captures: Sequence[Capture], parent: int) -> NoReturn:
    """The drainer's side of the fork; does not come back. It ends with the worker."""
    try:
        follow_parent(parent, signal.SIGKILL)
        name_process(DRAINER)
        signal.set_wakeup_fd(-1)
        stops.ignore()
        os.setpgrp()  # Ctrl-C is not for it either
        by_number = {capture.reading: capture for capture in captures}
        poll = select.poll()
        for reading in by_number:
            poll.register(reading, select.POLLIN)
        while True:
            for reading, _ in poll.poll():
                by_number[reading].drain()
    finally:
        os._exit(1)
