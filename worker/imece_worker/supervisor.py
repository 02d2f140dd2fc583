"""Keeps the worker's runner: has one made by the interpreter, gives it jobs, ends it and everything
that processors leave running.

A runner lives as long as it is well. It is a child of the worker, which sees at once how it ends;
where the interpreter is the runner itself, a new interpreter takes its place.
"""

import fcntl
import logging
import os
import signal
import socket
import tempfile
import time
from contextlib import suppress

from imece.errors import SettingsError
from imece.files.segment import Segment
from imece.process import move_up
from imece_worker import capture, log, runner
from imece_worker.capture import Capture
from imece_worker.control import Control
from imece_worker.interpreter import LONG_IMPORT, Interpreter
from imece_worker.message import JobMessage
from imece_worker.orphans import Orphans

GIVE_PATIENCE = 5.0
CLOSE_PATIENCE = 10.0
"""Seconds that a processor may take to close before its worker ends."""

MOST_STILLBORN = 3
"""How many orders of a runner in a row may fail."""


class Supervisor:
    """At most one runner at a time, and what it shares with this process.

    Args:
        interpreter: one that is ready.

    Attributes:
        rows: a nameless file, for the rows of runs without outputs.
        why: the runner has left its last job, if it was stalled or refused.
        line: to the runner; None if there is none.
    """

    def __init__(self, interpreter: Interpreter) -> None:
        self.interpreter = interpreter
        self.control, self.capture = Control(), Capture()
        self.rows = _nameless_file()
        self.why = ""
        self._captures = [self.capture, Capture()]  # the second: a program's standard error
        self._drainer = 0
        self._orphans = Orphans()
        self._orphans.own.add(interpreter.pid)
        self._orphans.spare()
        self.line: socket.socket | None = None
        self._pid = 0
        self._is_at_work = self._is_importing = False
        self._stillborn = 0
        self._told_after = LONG_IMPORT
        self._keep_draining()

    def nameless(self) -> Segment:
        """The segment of a job without outputs."""
        os.ftruncate(self.rows, 0)
        return Segment.nameless(self.rows)

    def give(self, message: JobMessage) -> bool:
        """To the present runner, or to a new one. False if there can be none yet, because the
        processor is imported anew: `interpreter.line` can be read when it is.

        Raises:
            SettingsError: it cannot be imported, or no process can be forked.
        """
        self.capture.clear()
        if self.line is not None:
            if self.interpreter.ended() is None and self._takes(message):
                return True
            self.dismiss()
        if not self._begin():
            return False
        if not self._takes(message):
            self.kill()  # it dies at once, or does not listen: `death` tells
        return True

    def use(self, processing: dict[str, str]) -> None:
        """Has the interpreter import another processor, if it has not this one."""
        if processing == self.interpreter.processing:
            return
        self._let_close()
        self.dismiss()
        self.interpreter.processing = processing
        self._start_anew()

    def _takes(self, message: JobMessage) -> bool:
        assert self.line is not None  # noqa: S101 - there is a runner
        self.line.settimeout(GIVE_PATIENCE)
        self._is_at_work = True
        try:
            message.send(self.line)
        except OSError:
            return False
        return True

    def _begin(self) -> bool:
        """Has a runner made. False if there is nobody yet who could make it."""
        if self.interpreter.ended() is not None and not self._is_importing:
            self._start_anew()
        try:
            if not self.interpreter.is_ready():
                return False
        except SettingsError:
            self._end_interpreter()  # the next file may need another one
            self._is_importing = False
            raise
        if self._is_importing:
            self._orphans.spare()
            self._is_importing = False
        self._keep_draining()
        ours, theirs = socket.socketpair()
        with theirs:
            captured = [number for each in self._captures for number in (each.number, each.memory)]
            self.interpreter.order([theirs.fileno(), self.control.number, self.rows, *captured])
        ours.settimeout(GIVE_PATIENCE)
        try:
            self._pid = int(ours.recv(20))
        except (OSError, ValueError):  # ValueError: it has died
            ours.close()
            self._start_anew()
            self._stillborn += 1
            if self._stillborn == MOST_STILLBORN:
                raise SettingsError("no process can be started for the processor") from None
            return False
        self._stillborn = 0
        self.line = ours
        self._orphans.own.add(self._pid)
        return True

    def _start_anew(self) -> None:
        """The processor is imported anew, and what its last import has left running ends."""
        self._end_interpreter()
        self.interpreter.start()
        self._orphans.own.add(self.interpreter.pid)
        self._is_importing = True

    def _end_interpreter(self) -> None:
        if self.interpreter.pid not in self._orphans.own:
            return  # it has ended before, and its number may be another process's
        self.interpreter.end()
        self._orphans.own.discard(self.interpreter.pid)
        _kill_group(self.interpreter.pid)
        self._orphans.kill()

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
            word = self.line.recv(1)
        except OSError:
            return b""
        if word in (runner.STALLED, runner.REFUSED):
            self.why = self._rest_of_line()
        if word == runner.UNCLOSED:
            log.event("processor not closed", logging.WARNING, reason=self._rest_of_line())
        elif word not in (b"", runner.MARK):
            self._is_at_work = False
        return word

    def _rest_of_line(self) -> str:
        assert self.line is not None  # noqa: S101 - there is a runner
        data = b""
        while not data.endswith(b"\n"):
            try:
                part = self.line.recv(1)  # no more: a word may follow
            except OSError:
                break
            if not part:
                break
            data += part
        return data.decode("utf-8", "replace").strip()

    def prepares(self) -> bool:
        """Whether the processor is being made or closed. The log says if that takes long."""
        if not (began := self.control.preparing):
            self._told_after = LONG_IMPORT
            return False
        lasts = time.monotonic() - began / 1e9
        if lasts >= self._told_after:
            self._told_after = 2 * lasts
            why = f"to make it, or to close it, takes longer than {lasts:.0f} s"
            log.event("processor not ready yet", logging.WARNING, reason=why)
        return True

    def answer(self, word: bytes) -> None:
        assert self.line is not None  # noqa: S101 - there is a runner
        with suppress(OSError):  # it has died since it asked
            self.line.send(word)

    def death(self) -> int | None:
        """The exit code of the runner if it has ended, negative for a signal; otherwise None."""
        self._orphans.reap()
        self._keep_draining()
        if (ended := self.interpreter.ended()) is not None and not self._is_interpreter:
            self.kill()  # what the import has started may be gone, too
        if not self._is_interpreter:
            ended = self._wait(os.WNOHANG)
        if ended is not None:
            self._forget()
        return ended

    @property
    def _is_interpreter(self) -> bool:
        return self._pid == self.interpreter.pid

    def _wait(self, options: int) -> int | None:
        ended, status = os.waitpid(self._pid, options)
        return os.waitstatus_to_exitcode(status) if ended else None

    def signal(self, number: signal.Signals) -> None:
        """To the runner alone."""
        os.kill(self._pid, number)

    def kill(self) -> None:
        """The runner and what it has started; `death` tells when it is gone."""
        self.signal(signal.SIGKILL)
        _kill_group(self._pid)

    def dismiss(self) -> None:
        """Ends the runner, if there is one."""
        if self.line is None:
            return
        if self._is_interpreter:
            self.interpreter.end()
        else:
            self.kill()
            self._wait(0)
        self._forget()

    def _forget(self) -> None:
        assert self.line is not None  # noqa: S101 - there was a runner
        self.line.close()
        self.line, self._is_at_work = None, False
        if self._is_interpreter:
            self._end_interpreter()
            return
        self._orphans.own.discard(self._pid)
        _kill_group(self._pid)  # what the processor has left behind
        self._orphans.kill()  # and what has left the group

    def rest(self) -> None:
        """Between two jobs: ends what processors have left running, and a runner that is still at
        a job. As process 1, it takes the exit codes of others' orphans, too."""
        if self._is_at_work:
            self.dismiss()
        elif self.line is not None:
            self.death()
        if not self._is_importing:
            self._orphans.kill()

    def end(self) -> None:
        """Ends all: the worker is about to end."""
        self._let_close()
        self.dismiss()
        self._end_interpreter()

    def _let_close(self) -> None:
        """Lets a runner that is between two jobs close its processor."""
        if self.line is None or self._is_at_work:
            return
        with suppress(OSError):  # it has died
            self.line.shutdown(socket.SHUT_WR)
            self.line.settimeout(CLOSE_PATIENCE)
        word = runner.UNCLOSED
        while word == runner.UNCLOSED:
            word = self.hear()


def _nameless_file() -> int:
    """Whoever writes to it writes at its end. It is gone with its last holder."""
    with tempfile.TemporaryFile(buffering=0) as file:
        number = move_up(os.dup(file.fileno()))
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    fcntl.fcntl(number, fcntl.F_SETFL, flags | os.O_APPEND)
    return number


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
