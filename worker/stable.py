"""Where the worker keeps its work-horse: forks it, gives it jobs, puts an end to it."""

import os
import signal
import socket
import sys
import time

from worker import capture, horse
from worker.assignment import Assignment
from worker.capture import Capture
from worker.horse import Gear
from worker.orphans import Orphans
from worker.processor import Processor
from worker.scroll import Scroll
from worker.table import Table

YOUTH = 1.0
"""Seconds within which a horse is given the next job too. To fork one takes as long as a hundred
quick files; and what a processor leaks still lies in a process that is soon gone."""

FEWEST_ROWS = 2**16
GIVE_PATIENCE = 5.0


class Stable:
    """At most one horse at a time, and what it shares with this process.

    Args:
        memory_limit: MiB of address space for the horse, or None.
    """

    def __init__(self, processor: Processor, memory_limit: int | None) -> None:
        self._processor = processor
        self._memory_limit = memory_limit * 2**20 if memory_limit is not None else None
        self.table = Table(FEWEST_ROWS)
        self.journal, self.capture = Scroll(), Capture()
        self._captures = [self.capture, *processor.captures]
        self._drainer = 0
        self._orphans = Orphans()
        self.line: socket.socket | None = None
        self._pid = 0
        self._born = 0.0

    def prepare(self, first: int, stop: int) -> Table:
        """The table, empty, for the files [first, stop) of a bucket."""
        if stop - first > self.table.capacity:
            self.dismiss()
            self.table = Table(stop - first)
        self.table.assign(first, stop)
        self.journal.clear()
        return self.table

    def give(self, assignment: Assignment) -> None:
        """To the horse that is there, if it is young and well, or else to a new one."""
        self.capture.clear()
        if self.line is None or time.monotonic() - self._born > YOUTH:
            self._fork()
        if self._takes(assignment):
            return
        self._fork()
        if not self._takes(assignment):
            self.kill()  # it dies young, or does not listen: `death` tells

    def _takes(self, assignment: Assignment) -> bool:
        assert self.line is not None  # noqa: S101 - `give` has forked
        self.line.settimeout(GIVE_PATIENCE)
        try:
            assignment.send(self.line)
        except OSError:
            return False
        return True

    def _fork(self) -> None:
        self.dismiss()
        self._keep_draining()
        ours, theirs = socket.socketpair()
        gear = Gear(
            self._processor, self.table, self.journal, self.capture, theirs, self._memory_limit
        )
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            horse.run(gear, parent)
        theirs.close()
        self.line, self._pid, self._born = ours, pid, time.monotonic()
        self._orphans.own.add(pid)
        try:
            os.setpgid(pid, pid)  # the horse does so itself; whoever is first
        except OSError:
            pass

    def _keep_draining(self) -> None:
        """Sees to it that there is a drainer."""
        if self._drainer:
            ended, _ = os.waitpid(self._drainer, os.WNOHANG)
            if not ended:
                return
            self._orphans.own.discard(self._drainer)
            for each in self._captures:
                each.forget_drainer()
        parent = os.getpid()
        self._drainer = os.fork()
        if self._drainer == 0:
            capture.drain(self._captures, parent)
        self._orphans.own.add(self._drainer)

    def hear(self) -> bytes:
        """A word of the horse; nothing if it has hung up."""
        assert self.line is not None  # noqa: S101 - there is a horse
        try:
            return self.line.recv(1)
        except OSError:
            return b""

    def answer(self, word: bytes) -> None:
        assert self.line is not None  # noqa: S101 - there is a horse
        try:
            self.line.send(word)
        except OSError:
            pass  # it has died since it asked

    def death(self) -> int | None:
        """The exit code of a horse that has ended, negative for a signal; else None."""
        self._orphans.bury()
        self._keep_draining()
        ended, status = os.waitpid(self._pid, os.WNOHANG)
        if not ended:
            return None
        self._forget()
        return os.waitstatus_to_exitcode(status)

    def signal(self, number: signal.Signals) -> None:
        """To the horse alone."""
        os.kill(self._pid, number)

    def kill(self) -> None:
        """The horse and what it has started; `death` tells when it is gone."""
        self.signal(signal.SIGKILL)
        _kill_group(self._pid)

    def dismiss(self) -> None:
        """Puts an end to the horse, if there is one."""
        if self.line is not None:
            self.kill()
            os.waitpid(self._pid, 0)
            self._forget()
        else:
            self._orphans.kill()  # as process 1: others' too

    def _forget(self) -> None:
        assert self.line is not None  # noqa: S101 - there was a horse
        self.line.close()
        self.line = None
        self._orphans.own.discard(self._pid)
        _kill_group(self._pid)  # what the processor has left behind
        self._orphans.kill()  # and what has left the group


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
