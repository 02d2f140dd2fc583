"""The runner: the process that processes the files of bucket jobs, for as long as it is well.

imece_worker/loader.py makes it. It never speaks to Redis. It writes a row for each file that it
has tried, which its worker reads (imece_worker/execution.py). So nothing is lost when a file kills
it, and a crash or a leak ends with it.
"""

import json
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from imece.files import digests
from imece.files.rows import Outcome, Row, size_and_time
from imece.files.segment import Segment
from imece_worker import causes, stops
from imece_worker.capture import Capture, flush
from imece_worker.control import Control
from imece_worker.directories import PathError
from imece_worker.inputs import CHANGED
from imece_worker.limits import Limits, used
from imece_worker.message import JobMessage
from imece_worker.processor import CloseError, CommandError, ParameterError, Processor, said
from imece_worker.retry import next_try

PATIENCE = 1.0
"""Seconds a runner with nothing else to do waits for a retry although other jobs are pending. So
workers do not pass jobs to each other that only wait for retries."""

STOP_PATIENCE = 1.0
"""Seconds in which a worker hears of a stop, after one of its processes may have died of it."""

MARK, FINISHED, STOPPED, DEFERRED, WORN = b"m", b"f", b"s", b"d", b"w"
STALLED, REFUSED, UNCLOSED, CLOSED = b"p", b"r", b"u", b"c"
"""Runner to parent: the wish to have a file marked, or how it has left its job. Worn: another
runner is to go on. Stalled: the run's directories cannot be used; refused: the processor does not
take the run. Unclosed: an instance of the processor has failed to close. A line that says why
follows these three. Closed: the runner ends."""

GO, STOP = b"g", b"h"
"""Parent to runner, in answer to that wish."""


@dataclass(frozen=True)
class RunnerContext:
    """What a runner has for as long as it lives.

    Attributes:
        rows: the file for rows of runs without outputs.
        capture: where what the processor prints goes.
        line: to the worker.
        limits: how much it may use, and when another one takes its place.
        kind: how it goes through the files of a job.
    """

    processor: Processor
    control: Control
    rows: int
    capture: Capture
    line: socket.socket
    limits: Limits
    kind: type["Runner"]


def run(context: RunnerContext) -> NoReturn:
    """One job after the other. Does not come back."""
    code: int = 1
    try:
        context.capture.take_over()  # from here on it is a file that prints, hangs, fills memory
        context.limits.apply()
        while (message := JobMessage.receive(context.line)) is not None:
            word = context.kind(context, message).work()
            if word == WORN:
                _prepare(context, context.processor.close)
            context.line.send(word)
        _prepare(context, context.processor.close)
        context.line.send(CLOSED)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        flush()
        os._exit(code)


def _prepare(context: RunnerContext, act: Callable[[], None]) -> None:
    """What is charged to no file: the processor is made, or closed."""
    context.control.preparing = time.monotonic_ns()
    try:
        act()
    except CloseError as error:
        context.line.send(line_of(UNCLOSED, str(error)))
    finally:
        flush()
        context.control.preparing = 0


class RowError(PathError):
    """A row cannot be written."""


class Runner:
    """The loop over the files."""

    def __init__(self, context: RunnerContext, message: JobMessage) -> None:
        self._a = message
        self._context = context
        self._control = context.control
        self._retries = dict(message.cursor.retries)
        self._inputs, self._outputs = message.paths.inputs, message.paths.outputs
        self._segment = Segment.nameless(context.rows)
        self._rows = 0
        self._stalled: str | None = None
        self._lost_ours = False
        self._pid = os.getpid()

    def work(self) -> bytes:
        """To the end of the job, or until it cannot go on; how the job is left, in a word."""
        if (word := self._take()) is not None:
            return word
        self._used = used()
        try:
            if self._outputs is not None:
                self._segment = Segment.of(self._outputs.staged().number)
        except (OSError, PathError) as error:
            return line_of(STALLED, self._a.paths.fault(error) or str(error))
        try:
            return self._work()
        finally:
            self._segment.close()
            self._a.paths.close()

    def _take(self) -> bytes | None:
        """Makes the processor ready; how the job is left, if that fails."""
        processor, given = self._context.processor, self._a.parameters.set
        signals = stops.heard()
        try:
            _prepare(self._context, lambda: processor.close_others(given))
            _prepare(self._context, lambda: processor.take(given))
        except ParameterError as error:
            return line_of(REFUSED, str(error))
        except BaseException as error:
            self._end_copy()
            if self._was_stopped(error, signals):
                return STOPPED
            cause = causes.of_exception(error, processor.package, None)
            # What may pass is tried again after a pause, and not for ever.
            word = STALLED if causes.may_pass(error) else REFUSED
            return line_of(word, f"the processor cannot be made: {said(error)} ({cause})")
        self._end_copy()
        if not self._context.capture.silent():
            self._context.capture.clear()
        return None

    def _work(self) -> bytes:
        """First each file once, then those that failed, after their pauses."""
        cursor = self._a.cursor
        ahead = set(self._a.ahead)
        to_do = [index for index in range(cursor.next, cursor.stop) if index not in ahead]
        if (word := self._try_all(to_do)) is not None:
            return word
        while self._retries:
            index = min(self._retries, key=lambda retry: self._retries[retry].due)
            if (reason := self._wait_for_retry(self._retries[index].due)) is not None:
                return reason
            if (word := self._try_next(index)) is not None:
                return word
        return FINISHED

    def _try_all(self, to_do: list[int]) -> bytes | None:
        """One try of each of these files; how the job is left, if it is left before the end."""
        for index in to_do:
            if (word := self._try_next(index)) is not None:
                return word
        return None

    def _try_next(self, index: int) -> bytes | None:
        """One try of one file; how the job is left, if it is left after that."""
        if self._control.stopping:
            return STOPPED
        if self._context.limits.are_reached():
            return WORN
        if not self._may_start(index):
            return STOPPED
        counts = self._try(index)
        if self._stalled is not None:
            return line_of(STALLED, self._stalled)
        return None if counts else STOPPED

    def _wait_for_retry(self, due: float) -> bytes | None:
        """Waits until a retry is due; gives way to a stop, and after a while to other jobs."""
        patience_ends = time.monotonic() + (0 if self._rows else PATIENCE)
        while (left := due - self._a.clock.now()) > 0:
            if self._control.stopping:
                return STOPPED
            if self._control.others_wait and time.monotonic() >= patience_ends:
                return DEFERRED
            time.sleep(min(left, 0.05))
        return STOPPED if self._control.stopping else None

    def _may_start(self, index: int) -> bool:
        """In crash isolation: waits until the parent has marked the file."""
        if not self._a.cursor.isolated:
            return True
        self._control.wanted = index
        self._context.line.send(MARK)
        return self._context.line.recv(1) == GO

    def _try(self, index: int) -> bool:
        """False if the try does not count."""
        control, name = self._control, self._a.files[index - self._a.first]
        self._context.limits.tried += 1
        signals = stops.heard()
        control.begin(index, self._rows)
        paths = self._a.paths
        try:
            self._process(index, name)
            if self._lost_ours:
                os._exit(causes.CODE_OF_CLOSED_OURS)
            self._retries.pop(index, None)
        except BaseException as error:
            self._end_copy()
            self._respect_time_limit(index)
            flush()
            if self._lost_ours or not self._inputs.tree.is_held():
                os._exit(causes.CODE_OF_CLOSED_OURS)  # what rows go to may be closed as well
            stopped = self._was_stopped(error, signals)
            fault = None if stopped else self._fault(error)
            if self._outputs is not None:
                self._outputs.discard()
            paths.forget()  # no other file is to fail for a directory that is gone
            if stopped:
                control.void = index
                control.end()
                return False
            if fault is None:
                limit = self._context.limits.address_space
                cause = causes.of_exception(
                    error, self._context.processor.package, limit and limit * 2**20
                )
                number = causes.error_number(error, cause)
                fault = self._record(index, cause, number, causes.reason(error))
            if fault is not None:  # the file is not charged a try
                control.void = index
                self._stalled = fault
        control.end()
        if not self._context.capture.silent():
            self._context.capture.clear()
        return True

    def _was_stopped(self, error: BaseException, signals: int) -> bool:
        """Whether a try failed, or may have failed, because all of the worker's processes were told
        to stop: a program, or a process that a function started, may have stopped then.

        Args:
            signals: how many this process had heard when the try was begun.
        """
        killed = isinstance(error, CommandError) and stops.is_death_by_stop(error.code)
        if not killed and stops.heard() == signals:
            return False
        end = time.monotonic() + STOP_PATIENCE
        while not self._control.stopping and time.monotonic() < end:
            time.sleep(0.01)
        return bool(self._control.stopping)

    def _process(self, index: int, name: bytes) -> None:
        """The row comes right before the output: where both are, the file is done."""
        inputs, outputs = self._inputs, self._outputs
        found = inputs.look(name)
        target = outputs.prepare(index, name) if outputs is not None else None
        self._context.processor(inputs.path, target, name)
        self._end_copy()
        self._respect_time_limit(index)
        hashes = self._hashes(inputs.path, target)
        if not inputs.tree.is_held():
            # All that this runner has open may be closed, or be the processor's own by now. The
            # file is finished with what is opened afresh; the next one gets another runner.
            self._lost_ours = True
            self._a.paths.forget()
            if outputs is not None:
                outputs.prepare(index, name)
                self._segment = Segment.of(outputs.staged().number)
        if inputs.changed():
            raise PathError(CHANGED)
        flush()

        def note(made: os.stat_result | None) -> None:
            row = self._row(index, Outcome.DONE, found, made)
            self._append(row._replace(detail=hashes))

        if outputs is not None:
            outputs.commit(note)
        elif self._lost_ours:
            self._control.unwritten = index
        else:
            note(None)

    def _hashes(self, source: bytes, target: bytes | None) -> bytes:
        """Of the input, and of an output that is a file, if the run wants them. One that cannot be
        read has none: whether it can be taken is said when it is put in its place."""
        if not self._a.parameters.hashes or target is None:
            return b""
        try:
            found = digests.of_file(source)
        except OSError:  # the processor has consumed it
            return b""
        try:
            return found + digests.of_file(target, follow=False)
        except OSError:
            return found

    def _row(
        self,
        index: int,
        outcome: Outcome,
        found: os.stat_result | None = None,
        made: os.stat_result | None = None,
    ) -> Row:
        """Of the current file.

        Args:
            found: its input, if it was looked at.
            made: its output.
        """
        before, self._used = self._used, used()
        made_size, made_time = size_and_time(made) if made else (0, 0)
        return Row(
            index,
            outcome,
            tries=self._retries[index].tries + 1 if index in self._retries else 1,
            ended=int(time.time()),
            peak=self._used[1],
            cpu=int((self._used[0] - before[0]) * 1e6),
            microseconds=self._control.microseconds(),
            size=found.st_size if found else 0,
            mtime=found.st_mtime_ns if found else 0,
            output_size=made_size,
            output_mtime=made_time,
        )

    def _append(self, row: Row) -> None:
        """Raises RowError if it cannot be written: then the try does not count."""
        try:
            self._segment.append(row)
        except OSError as error:
            raise RowError(
                f"what was done cannot be noted: {error.strerror}", error.errno
            ) from None
        self._rows += 1

    def _fault(self, error: BaseException) -> str | None:
        """What is wrong with the run's directories, so that a file failed; or None."""
        fault = self._a.paths.fault(error)
        return fault or (str(error) if isinstance(error, RowError) else None)

    def _end_copy(self) -> None:
        """Ends a child that the processor has forked and not ended: only one runner may write
        rows."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _respect_time_limit(self, index: int) -> None:
        """Waits to be killed if the file's time is up. The signal that asks where it hangs may have
        ended the call that hung, and its result is not to be kept."""
        while self._control.overdue == index:
            time.sleep(0.01)

    def _record(self, index: int, cause: str, error: int, reason: str) -> str | None:
        """A failed try: its row; or what is wrong with the directories, if that cannot be
        written."""
        before = self._retries.get(index)
        _, retry = next_try(before, error, self._a.parameters, self._a.clock)
        detail = {
            "due": retry.due if retry else None,
            "cause": cause,
            "error": error,
            "reason": reason,
            "output": self._context.capture.text(),
        }
        try:
            row = self._row(index, Outcome.FAILED)
            self._append(row._replace(detail=json.dumps(detail).encode()))
        except RowError as error:
            return self._fault(error)
        if retry is None:
            self._retries.pop(index, None)
        else:
            self._retries[index] = retry
        return None


def line_of(word: bytes, why: str) -> bytes:
    return word + why.replace("\n", " ").encode("utf-8", "replace") + b"\n"
