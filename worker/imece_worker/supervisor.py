"""Keeps the worker's runner: forks it, gives it jobs, ends it and everything that processors leave
running.

A process whose parent has ended is adopted by the nearest ancestor that asks for it, or by process
1, which in a container is the worker. The worker kills it and takes its exit code. Otherwise it
would stay as a zombie.
"""

import os
import signal
import socket
import sys
import time
from contextlib import suppress

from imece.process import adopt_orphans, move_up
from imece_worker import capture, runner
from imece_worker.capture import Capture
from imece_worker.message import JobMessage
from imece_worker.processor import Processor
from imece_worker.runner import RunnerContext
from imece_worker.shared_progress import Journal, SharedProgress

YOUTH = 1.0
"""Seconds during which a runner gets the next job too. To fork one takes as long as a hundred quick
files. And what a processor leaks still ends with its runner soon."""

FEWEST_ROWS = 2**16
GIVE_PATIENCE = 5.0
ORPHANS_PATIENCE = 1.0


class Supervisor:
    """At most one runner at a time, and what it shares with this process.

    Args:
        memory_limit: MiB of address space for the runner, or None.
    """

    def __init__(self, processor: Processor, memory_limit: int | None) -> None:
        self._processor = processor
        self._memory_limit = memory_limit * 2**20 if memory_limit is not None else None
        self.shared = SharedProgress(FEWEST_ROWS)
        self.journal, self.capture = Journal(), Capture()
        self._captures = [self.capture, *processor.captures]
        self._drainer = 0
        self._orphans = Orphans()
        self.line: socket.socket | None = None
        self._pid = 0
        self._born = 0.0

    def prepare(self, first: int, stop: int) -> SharedProgress:
        """The table, empty, for the files [first, stop) of a bucket."""
        if stop - first > self.shared.capacity:
            self.dismiss()
            self.shared = SharedProgress(stop - first)
        self.shared.assign(first, stop)
        self.journal.clear()
        return self.shared

    def give(self, message: JobMessage) -> None:
        """To the present runner if it is young and takes it, otherwise to a new one."""
        self.capture.clear()
        if self.line is None or time.monotonic() - self._born > YOUTH:
            self._fork()
        if self._takes(message):
            return
        self._fork()
        if not self._takes(message):
            self.kill()  # it dies at once, or does not listen: `death` tells

    def _takes(self, message: JobMessage) -> bool:
        assert self.line is not None  # noqa: S101 - `give` has forked
        self.line.settimeout(GIVE_PATIENCE)
        try:
            message.send(self.line)
        except OSError:
            return False
        return True

    def _fork(self) -> None:
        self.dismiss()
        self._keep_draining()
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            line, limit = socket.socket(fileno=move_up(theirs.detach())), self._memory_limit
            context = RunnerContext(
                self._processor, self.shared, self.journal, self.capture, line, limit
            )
            runner.run(context, parent)
        theirs.close()
        self.line, self._pid, self._born = ours, pid, time.monotonic()
        self._orphans.own.add(pid)
        with suppress(OSError):  # the runner does so itself, and may be first
            os.setpgid(pid, pid)

    def _keep_draining(self) -> None:
        """Starts a drainer if there is none."""
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
        """A word of the runner; nothing if it has closed its end."""
        assert self.line is not None  # noqa: S101 - there is a runner
        try:
            return self.line.recv(1)
        except OSError:
            return b""

    def answer(self, word: bytes) -> None:
        assert self.line is not None  # noqa: S101 - there is a runner
        with suppress(OSError):  # it has died since it asked
            self.line.send(word)

    def death(self) -> int | None:
        """The exit code of the runner if it has ended, negative for a signal; otherwise None."""
        self._orphans.reap()
        self._keep_draining()
        ended, status = os.waitpid(self._pid, os.WNOHANG)
        if not ended:
            return None
        self._forget()
        return os.waitstatus_to_exitcode(status)

    def signal(self, number: signal.Signals) -> None:
        """To the runner alone."""
        os.kill(self._pid, number)

    def kill(self) -> None:
        """The runner and what it has started; `death` tells when it is gone."""
        self.signal(signal.SIGKILL)
        _kill_group(self._pid)

    def dismiss(self) -> None:
        """Ends the runner, if there is one."""
        if self.line is not None:
            self.kill()
            os.waitpid(self._pid, 0)
            self._forget()
        else:
            self._orphans.kill()  # as process 1: others' too

    def _forget(self) -> None:
        assert self.line is not None  # noqa: S101 - there was a runner
        self.line.close()
        self.line = None
        self._orphans.own.discard(self._pid)
        _kill_group(self._pid)  # what the processor has left behind
        self._orphans.kill()  # and what has left the group


class Orphans:
    """Children of this process that it has not started itself.

    Made after all processes but runners and drainers are there. These are left alone, for example
    one that the import of the processor has started.
    """

    def __init__(self) -> None:
        adopt_orphans()
        self.own = children()
        """Children that it has started itself."""

    def reap(self) -> None:
        """Takes the exit codes of those that have ended, and of no other process."""
        if not _any_has_ended():
            return
        for pid in children() - self.own:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def kill(self) -> None:
        """All of them, and those that they leave when they end."""
        end = time.monotonic() + ORPHANS_PATIENCE
        while orphans := children() - self.own:
            for pid in orphans:
                with suppress(ProcessLookupError, PermissionError):  # PermissionError: a
                    os.kill(pid, signal.SIGKILL)  # set-user-id program of another user
            self.reap()
            if time.monotonic() > end:
                return  # one cannot be killed at the moment: it is tried again
            time.sleep(0.001)


def children() -> set[int]:
    """The children of all threads of this process; none where the system does not tell."""
    found: set[int] = set()
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return found  # /proc is another namespace's, and its numbers are not ours
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children") as file:
                found.update(map(int, file.read().split()))
    except OSError:
        pass  # a thread that has just ended, or a system that does not tell
    return found


def _any_has_ended() -> bool:
    """Whether any child has ended; quicker than to look for all."""
    if not hasattr(os, "waitid"):
        return True
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
