"""One execution of a bucket job, in the worker: gives it to runners, watches them, records
checkpoints.

Runners never speak to Redis. So one that hangs, crashes or goes on during an outage of Redis loses
nothing: what it has done stands in its rows.
"""

import logging
import signal
import time
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

from imece import names
from imece.errors import SettingsError
from imece.run.claim import Action, Claim, Claimed
from imece_worker import causes, log, runner, stops
from imece_worker.checkpoints import Checkpoints, Unanswered
from imece_worker.context import WorkerContext
from imece_worker.control import NONE
from imece_worker.directories import PathError
from imece_worker.long_files import LongFiles
from imece_worker.message import JobMessage
from imece_worker.paths import Paths
from imece_worker.progress import Progress
from imece_worker.retry import ServerClock

Ending = Literal["finished", "returned", "deferred", "stalled", "refused", "lost", "abandoned"]

DUMP_PATIENCE = 0.2
"""Seconds in which a hanging runner can say where it hangs, before it is killed."""

OUTAGE_PATIENCE = 30.0
"""Seconds a stopping worker waits for Redis to come back, to record its last checkpoint."""

MOST_EARLY_CRASHES = 3
"""How many runners in a row may die without a current file before the job is given back."""


class Execution:
    """Processes what a lease claims."""

    def __init__(
        self, context: WorkerContext, lease: Claim, claimed: Claimed, paths: Paths
    ) -> None:
        self._context = context
        self._lease = lease
        self._claimed = claimed
        self._paths = paths
        self._supervisor = context.supervisor
        self._first = min([claimed.cursor.next, *claimed.cursor.retries])
        self._control = self._supervisor.control
        self._control.clear()
        self._control.others_wait = claimed.pending > 0
        self._stalled = ""
        self._alone = (0, 0)
        self._clock = ServerClock.at(claimed.now)
        self._progress = Progress(
            claimed, self._supervisor.nameless(), self._control, context.name, self._clock
        )
        self._long_files = LongFiles(self._progress, context.statistics, lease, claimed)
        self._checkpoints = Checkpoints(
            context, lease, paths, self._progress, self._control, self._long_files
        )

    def run(self) -> Ending:
        """To the end of the job, or until the worker is asked to stop."""
        try:
            return self._run()
        except PathError as error:
            self._supervisor.dismiss()
            try:
                return self._stall(str(error))
            except PathError as another:  # nor can the last outputs be put on storage
                return self._stall(str(another))

    def _run(self) -> Ending:
        files = self._claimed.files[self._first : self._claimed.cursor.stop]
        segment = self._paths.occupy(self._header(), files)
        if segment is not None:
            self._progress.segment = segment
        self._paths.sweep_once(self._lease.reference.run)
        self._take_over()
        early_crashes = 0
        while not self._progress.finished():
            if self._context.wakeup.stopping:
                return self._end("return", "returned")
            before = self._progress.cursor()
            outcome = self._process()
            if self._checkpoints.lost:
                return self._lose()
            if outcome == runner.DEFERRED:
                return self._end("defer", "deferred")
            if outcome == runner.STALLED:
                return self._stall(self._supervisor.why)
            if outcome == runner.REFUSED:
                return self._hold(self._supervisor.why)
            if outcome == runner.STOPPED:
                return self._end("return", "returned")
            if outcome == runner.WORN:
                self._supervisor.dismiss()
            if self._progress.finished():
                break
            attributed = isinstance(outcome, int) and self._attribute_crash(outcome)
            if self._stalled:
                return self._stall(self._stalled)
            now = self._progress.cursor()
            got_on = (now.next, now.retries) != (before.next, before.retries)
            early_crashes = 0 if attributed or got_on else early_crashes + 1
            if early_crashes == MOST_EARLY_CRASHES:
                reason = f"worker {self._context.name}: its processes die before their first file"
                log.event("job cannot start", logging.ERROR, reason=reason)
                return self._end("stall", "stalled", reason)
        return self._end("finish", "finished")

    def _header(self) -> dict[str, Any]:
        """What all rows of this execution have in common."""
        reference, parameters = self._lease.reference, self._claimed.parameters
        return {
            "execution": self._lease.execution,
            "at": self._claimed.now,
            "first": self._first,
            "run": reference.run,
            "part": reference.part,
            "input": parameters.input,
            "suffix": parameters.suffix,
            "worker": self._context.name,
            **self._supervisor.interpreter.version.header(),
            "set": parameters.set,
            "imece": _version(),
        }

    def _lose(self) -> Ending:
        """Another worker has the job, or will have it. It reads our rows and clears up after us,
        unless it does not know of us."""
        if self._lease.is_remembered():
            self._paths.leave()
        else:
            self._paths.clear(self._lease.execution)
        return "lost"

    def _stall(self, reason: str) -> Ending:
        """Gives the job back: its directories cannot be used."""
        about = {"run": self._lease.reference.run, "job": self._lease.reference.field}
        log.event("directories cannot be used", logging.ERROR, **about, reason=reason)
        return self._end("stall", "stalled", reason)

    def _hold(self, reason: str) -> Ending:
        """Gives the job back, and lets the run wait for a person: no worker could do it."""
        about = {"run": self._lease.reference.run, "job": self._lease.reference.field}
        log.event("processor refuses the run", logging.ERROR, **about, reason=reason)
        return self._end("hold", "refused", f"worker {self._context.name}: {reason}")

    def _take_over(self) -> None:
        """Clears up after executions whose worker died with this job. What has its row, and its
        output, is done; everything else is done again."""
        claimed, progress = self._claimed, self._progress
        if not claimed.earlier:
            return
        progress.isolated = True
        for execution in claimed.earlier:
            progress.take_over(self._paths.rows_of(execution), self._paths.holds)
        for execution in claimed.earlier:
            self._paths.restore(execution, claimed.files)
            self._paths.clear(execution)
        now, marked = progress.cursor(), claimed.cursor.marked
        if marked != NONE and (marked >= now.next or marked in now.retries):
            reason = f"{causes.DIED_WITH_WORKER} (killed, out of memory?)"
            self._charge(marked, causes.DIED_WITH_WORKER, reason, "")

    def _process(self) -> int | bytes:
        """Gives the job to a runner and watches it, until it leaves the job or dies.

        Returns:
            How it left the job, in a word; or its exit code, negative for a signal, if it has died.
        """
        claimed, first = self._claimed, self._first
        cursor = self._progress.cursor()
        files = claimed.files[first : cursor.stop]
        message = JobMessage(
            first=first,
            files=files,
            cursor=cursor,
            ahead=self._progress.ahead(),
            parameters=claimed.parameters,
            paths=self._paths,
            clock=self._clock,
            alone=self._alone,
        )
        if (word := self._give(message)) is not None:
            return word
        self._progress.rows = 0  # of the next runner
        outcome = self._watch()
        self._progress.collect()
        if isinstance(outcome, int):
            self._progress.drop_half_a_row()
        return outcome

    def _give(self, message: JobMessage) -> bytes | None:
        """Waits if the processor has to be imported anew. A word if it does not come to that.

        Raises:
            SettingsError: the worker's own cannot be imported any more. The job is given back.
        """
        context, supervisor = self._context, self._supervisor
        try:
            while not supervisor.give(message):
                self._checkpoints.beat()
                context.wakeup.wait(context.settings.heartbeat, supervisor.interpreter.line)
                if self._checkpoints.lost or context.wakeup.stopping:
                    return runner.STOPPED
        except SettingsError as error:
            if context.wakeup.stopping:
                return runner.STOPPED
            if message.parameters.processor is not None:
                supervisor.why = str(error)
                return runner.REFUSED
            self._end("return", "returned")
            raise
        return None

    def _watch(self) -> int | bytes:
        """Signs of life, checkpoints, marks, the time limit."""
        context, control, supervisor = self._context, self._control, self._supervisor
        control.overdue = control.void = control.unwritten = NONE
        beat_due = time.monotonic() + context.settings.heartbeat
        lines = [supervisor.line] if supervisor.line is not None else []
        is_told = False
        while True:
            # A checkpoint that is due already waits for Redis to be asked again.
            record_due = max(self._checkpoints.due, context.outage.ask_at)
            due = min(beat_due, record_due, self._deadline())
            if context.wakeup.wait(due - time.monotonic(), *lines):
                word = supervisor.hear()
                if word == runner.MARK:
                    self._mark()
                elif word == runner.UNCLOSED:
                    pass  # the supervisor has told
                elif word:
                    return word
                else:
                    lines = []  # its death is a signal of its own
            if context.wakeup.stopping and not is_told:
                is_told = control.stopping = True
                self._long_files.tell_of_stop()
            if supervisor.prepares() and context.wakeup.stopping:
                supervisor.dismiss()
                return runner.STOPPED
            if (code := supervisor.death()) is not None:
                return code
            if control.overdue == NONE and time.monotonic() >= self._deadline():
                self._stop_overdue()
            now = time.monotonic()
            if now >= min(beat_due, record_due):
                beat_due = now + context.settings.heartbeat
                self._checkpoints.beat()
            if self._checkpoints.lost or context.wakeup.at_once:
                supervisor.dismiss()
                return -signal.SIGKILL

    def _deadline(self) -> float:
        """When the current file will have taken too long, on the monotonic clock."""
        if self._control.current == NONE or self._control.overdue != NONE:
            return float("inf")
        limit = self._claimed.parameters.timeout * self._control.in_hand()
        return self._control.began / 1e9 + limit

    def _stop_overdue(self) -> None:
        """Kills the runner, also in C code. Before that, the runner says where it hangs."""
        self._control.overdue, began = self._control.current, self._control.began
        if self._control.overdue == NONE:
            return
        try:
            self._supervisor.signal(signal.SIGUSR2)
            size, end = -1, time.monotonic() + DUMP_PATIENCE
            while size != (size := self._supervisor.capture.size()) or size == 0:
                if time.monotonic() > end:
                    break
                time.sleep(0.02)
        except ProcessLookupError:
            pass
        if (self._control.current, self._control.began) == (self._control.overdue, began):
            self._supervisor.kill()
        else:
            self._control.overdue = NONE  # it has ended after all

    def _attribute_crash(self, code: int) -> bool:
        """Charges the runner's death to its current file. False if it had none."""
        control, progress = self._control, self._progress
        index = control.current
        if index == NONE:
            log.event("process died without a current file", logging.WARNING, exit=code)
            return False
        if control.in_hand() > 1:  # nobody knows which: they are tried one by one
            self._alone = (index, control.last + 1)
            self._stalled = self._paths.fault(None) or ""
            self._paths.restore(self._lease.execution, self._claimed.files)
            control.end()
            return True
        is_written, is_overdue = progress.rows > control.rows, control.overdue == index
        is_done = control.unwritten == index
        if is_written:
            is_written = progress.settle(self._paths.holds)
        if not (is_written or is_done or is_overdue):
            self._stalled = self._paths.fault(None) or ""
        self._paths.restore(self._lease.execution, self._claimed.files)
        control.end()
        if is_written or self._stalled:
            return True
        if is_done:
            progress.note_done(index, self._paths.inputs.found(self._claimed.files[index]))
        elif self._was_stopped(code):
            pass
        elif is_overdue:
            limit = self._claimed.parameters.timeout
            how = f"took longer than its limit of {limit:g} s, and was killed"
            reason = f"{self._supervisor.capture.text()}\n{how}".strip()
            self._charge(index, causes.of_timeout(limit), reason, "")
        else:
            self._charge(index, *causes.death(code), self._supervisor.capture.text())
        return True

    def _was_stopped(self, code: int) -> bool:
        """Whether the runner died because the worker is to stop, and not of its file."""
        wakeup = self._context.wakeup
        if stops.is_death_by_stop(code):
            end = time.monotonic() + runner.STOP_PATIENCE
            while not wakeup.stopping and (left := end - time.monotonic()) > 0:
                wakeup.wait(left)
            return wakeup.stopping
        return wakeup.at_once

    def _charge(self, index: int, cause: str, reason: str, output: str) -> None:
        tries = self._progress.charge(index, cause, reason, output)
        log.event(
            "file killed its process",
            logging.WARNING,
            run=self._lease.reference.run,
            file=names.shown(self._claimed.files[index]),
            tries=tries,
            reason=reason.splitlines()[-1],
        )

    def _mark(self) -> None:
        """Records that the runner is about to start a file, and lets it."""
        self._progress.collect()
        self._progress.marked = self._control.wanted
        while not (self._checkpoints.lost or self._context.wakeup.stopping):
            self._checkpoints.due = 0.0
            carries_mark = self._checkpoints.unanswered is None  # else an older batch goes first
            if not self._checkpoints.beat():
                self._checkpoints.wait_for_redis()
            elif carries_mark:
                break
        go = not (self._checkpoints.lost or self._control.stopping or self._context.wakeup.stopping)
        self._supervisor.answer(runner.GO if go else runner.STOP)

    def _end(self, action: Action, ending: Ending, reason: str = "") -> Ending:
        """Records the rest and gives the lease up. Waits for a Redis that is away."""
        self._progress.marked = NONE  # there is no current file
        checkpoints = self._checkpoints
        if checkpoints.may_be_lost:  # then others need what is removed below
            checkpoints.send("continue", checkpoints.unanswered)
            if checkpoints.lost:
                return self._lose()
        self._supervisor.rest()
        # Before the end is recorded: nobody who sees the end sees a temporary file.
        if not self._paths.clear(self._lease.execution):
            self._supervisor.dismiss()  # with what the processor has left running
            self._paths.clear(self._lease.execution)
        last: Unanswered | None = None
        sent_before = False
        while True:
            if checkpoints.unanswered is not None:
                through = checkpoints.send("continue", checkpoints.unanswered)
            else:
                last = last or checkpoints.next_batch()
                through = checkpoints.send(action, last, reason)
                if through:
                    # Lost when it is sent the second time: the first time it was recorded.
                    return "lost" if checkpoints.lost and not sent_before else ending
                sent_before = True
            if checkpoints.lost:
                return "lost"
            while self._context.outage.left():
                self._context.alive()
                checkpoints.wait_for_redis()
                patience = 0.0 if self._context.wakeup.at_once else OUTAGE_PATIENCE
                if self._context.wakeup.stopping and self._context.outage.lasted() > patience:
                    return "abandoned"


@cache
def _version() -> str:
    return version("imece")
