"""The work-horse: a forked child that processes the files of bucket jobs.

It never speaks to Redis. What it does stands in the table and the journal it shares with its
parent (worker/execution.py), so nothing is lost when a file kills it. A crash or leak stays in it.
"""

import faulthandler
import gc
import io
import json
import os
import random
import resource
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import NoReturn

from imece.failure import LONGEST_REASON, tail
from imece.parent import follow_parent
from worker import descriptors, stops
from worker.assignment import Assignment
from worker.capture import Capture
from worker.directories import PlaceError
from worker.processor import CommandError, Processor
from worker.retry import next_try
from worker.scroll import Scroll
from worker.table import Outcome, Table

PATIENCE = 1.0
"""Seconds a horse that had nothing else to do sits out a pause although other jobs wait: so that
workers do not pass jobs to each other whose pauses are not over."""

STOP_PATIENCE = 1.0
"""Seconds a worker has to hear of a stop of which one of its processes may have died."""

MARK, FINISHED, STOPPED, DEFERRED, STALLED = b"m", b"f", b"s", b"d", b"p"
"""Horse to parent: the wish to have a file marked; how it is through with its job. Stalled: the
run's directories cannot be used, and the journal says why."""

GO, STOP = b"g", b"h"
"""Parent to horse, in answer to that wish."""


@dataclass(frozen=True)
class Gear:
    """What a horse has for as long as it lives.

    Attributes:
        journal: where it writes one JSON line for each failed try.
        capture: where what the processor prints goes.
        line: to the parent.
        memory_limit: bytes of address space, or None.
    """

    processor: Processor
    table: Table
    journal: Scroll
    capture: Capture
    line: socket.socket
    memory_limit: int | None


def run(gear: Gear, parent: int) -> NoReturn:
    """The child's side of the fork: one job after the other. Does not come back."""
    code: int = 1
    try:
        _settle(gear, parent)
        while (assignment := Assignment.receive(gear.line)) is not None:
            gear.line.send(Horse(gear, assignment).work())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _settle(gear: Gear, parent: int) -> None:
    """Makes a forked worker a work-horse."""
    follow_parent(parent, signal.SIGKILL)
    os.setpgrp()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stops.only_note()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(gear.capture.number, 1)
    os.dup2(gear.capture.number, 2)
    _let_go(gear)
    # The parent asks where a file hangs by SIGUSR2; answered even from within C code.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that a crash takes nothing said with it
    faulthandler.enable(2)
    faulthandler.register(signal.SIGUSR2, 2)
    if gear.memory_limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (gear.memory_limit, gear.memory_limit))
    random.seed()


def _let_go(gear: Gear) -> None:
    """Closes what is the worker's alone: connections to Redis above all. What the processor opened
    when it was imported stays its own."""
    gc.freeze()  # no object of the worker's is to close a number that will be another file's
    captures = (gear.capture, *gear.processor.captures)
    kept = {0, 1, 2, gear.line.fileno(), gear.journal.number}
    kept.update(capture.number for capture in captures)
    descriptors.close_all_but(kept, gear.processor.files)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # the processor closed or replaced it, or the disk is full: nothing to keep then


class Horse:
    """The loop over the files."""

    def __init__(self, gear: Gear, assignment: Assignment) -> None:
        self._a = assignment
        self._gear = gear
        self._table = gear.table
        self._table.look_at(assignment.first, assignment.first + len(assignment.files))
        self._owed = dict(assignment.cursor.owed)
        # To look for what is not there takes a quarter of a quick file's time in a large directory.
        self._looks_for_outputs = not assignment.parameters.overwrite and (
            assignment.cursor.careful or not assignment.untouched
        )
        self._inputs, self._outputs = assignment.places.inputs, assignment.places.outputs
        self._tried_any = False
        self._stalled = False
        self._pid = os.getpid()

    def work(self) -> bytes:
        """To the end of the job, or until it cannot go on."""
        try:
            return self._work()
        finally:
            self._a.places.close()

    def _work(self) -> bytes:
        """First each file once, then those that failed, when their pauses are over."""
        cursor = self._a.cursor
        for index in range(cursor.next, cursor.stop):
            if self._table.outcomes[index - self._a.first] == Outcome.DONE:
                continue  # proven to be done by a worker that died
            if (word := self._turn(index)) is not None:
                return word
        while self._owed:
            index = min(self._owed, key=lambda owed: self._owed[owed].due)
            if (reason := self._sit_out(self._owed[index].due)) is not None:
                return reason
            self._table.reopen(index)
            if (word := self._turn(index)) is not None:
                return word
        return FINISHED

    def _turn(self, index: int) -> bytes | None:
        """One try of one file; how the job is left, if it is left with it."""
        if self._table.stopping or not self._may_start(index):
            return STOPPED
        counts = self._try(index)
        if self._stalled:
            return STALLED
        return None if counts else STOPPED

    def _sit_out(self, due: float) -> bytes | None:
        """Waits until a retry is due; gives way to a stop, and after a while to other jobs."""
        patience_ends = time.monotonic() + (0 if self._tried_any else PATIENCE)
        while (left := due - self._a.clock.now()) > 0:
            if self._table.stopping:
                return STOPPED
            if self._table.others_wait and time.monotonic() >= patience_ends:
                return DEFERRED
            time.sleep(min(left, 0.05))
        return STOPPED if self._table.stopping else None

    def _may_start(self, index: int) -> bool:
        """In careful mode: has the file marked, and waits until it is."""
        if not self._a.cursor.careful:
            return True
        self._table.wanted = index
        self._gear.line.send(MARK)
        while not select.select([self._gear.line], [], [], 0.05)[0]:
            if self._table.stopping:
                return False
        return self._gear.line.recv(1) == GO

    def _try(self, index: int) -> bool:
        """False if the try does not count."""
        table, name = self._table, self._a.files[index - self._a.first]
        self._tried_any = True
        signals = stops.heard()
        table.begin(index)
        places = self._a.places
        try:
            outcome, bytes_in, bytes_out = self._process(index, name)
            _flush()
            self._owed.pop(index, None)
            table.end(index, outcome, bytes_in, bytes_out)
        except BaseException as error:
            self._end_copy()
            self._bow_to_the_limit(index)
            _flush()
            stopped = self._was_stopped(error, signals)
            fault = None if stopped else places.fault(error)
            if self._outputs is not None:
                self._outputs.discard(index, name)
            places.forget()  # no other file is to fail for a directory that is gone
            if stopped:
                table.drop_current()
                return False
            if fault is not None:
                self._stall(fault)
            else:
                self._record(index, _reason(error))
                table.end(index, Outcome.FAILED)
        if not self._gear.capture.silent():
            self._gear.capture.clear()
        return True

    def _was_stopped(self, error: BaseException, signals: int) -> bool:
        """Whether a try failed, or may have, because all of the worker's processes were told to
        stop: who can tell what a program, or a process that a function has started, made of it?

        Args:
            signals: how many this process had heard when the try was begun.
        """
        killed = isinstance(error, CommandError) and stops.is_death_by_stop(error.code)
        if not killed and stops.heard() == signals:
            return False
        end = time.monotonic() + STOP_PATIENCE
        while not self._table.stopping and time.monotonic() < end:
            time.sleep(0.01)
        return self._table.stopping

    def _process(self, index: int, name: bytes) -> tuple[Outcome, int, int]:
        inputs, outputs = self._inputs, self._outputs
        found = inputs.look(name)
        if outputs is None:
            target = None
        else:
            if self._looks_for_outputs and outputs.is_current(name, found.st_mtime_ns):
                return Outcome.SKIPPED, 0, 0
            target = outputs.prepare(index, name)
        self._gear.processor(inputs.path, target)
        self._end_copy()
        self._bow_to_the_limit(index)
        if inputs.changed():
            raise PlaceError("the input changed while it was processed")
        bytes_out = outputs.commit(index, name) if outputs is not None else 0
        return Outcome.DONE, found.st_size, bytes_out

    def _stall(self, fault: str) -> None:
        """The place is at fault: the file in hand is not charged a try."""
        self._stalled = True
        self._gear.journal.append(json.dumps({"stalled": fault}).encode() + b"\n")
        self._table.drop_current()

    def _end_copy(self) -> None:
        """Ends a child that the processor has forked and not ended: one horse keeps the table."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _bow_to_the_limit(self, index: int) -> None:
        """Waits to be killed if the file's time is up: the question where it hangs, a signal, may
        have ended a call that hung, and what came of that is nothing to keep."""
        while self._table.overdue == index:
            time.sleep(0.01)

    def _record(self, index: int, reason: str) -> None:
        """One line in the journal; the parent takes it from there."""
        tries = self._owed[index].tries + 1 if index in self._owed else 1
        owed = next_try(tries, self._a.parameters, self._a.clock)
        if owed is None:
            self._owed.pop(index, None)
        else:
            self._owed[index] = owed
        line = {
            "index": index,
            "began": self._table.began,
            "tries": tries,
            "due": owed.due if owed else None,
            "reason": reason,
            "output": self._gear.capture.text(),
        }
        self._gear.journal.append(json.dumps(line).encode() + b"\n")


def _reason(error: BaseException) -> str:
    if isinstance(error, PlaceError | CommandError):
        return str(error)
    # Our own frames say nothing to the processor's author: begin at theirs.
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith(
        "worker."
    ):
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except Exception:  # a processor's own class
        text = type(error).__name__
    return tail(text, LONGEST_REASON)
