"""One execution of a bucket job, in the parent: forks horses, watches them, records checkpoints.

All that goes to Redis goes from here, so a horse that hangs, crashes or outlives an outage of
Redis loses nothing: what it has done stands in the table.
"""

import logging
import os
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from redis.exceptions import RedisError

from imece import names
from imece.connection import is_outage
from imece.cursor import Cursor
from imece.job import Reference
from imece.lease import Action, Batch, Claimed, Verdict
from imece.settings import Settings
from worker import horse, log, stops
from worker.assignment import Assignment
from worker.directories import PlaceError
from worker.outage import Outage
from worker.place import Places
from worker.progress import Progress
from worker.retry import ServerClock
from worker.stable import Stable
from worker.table import NONE, Outcome
from worker.tally import Tally
from worker.wakeup import Wakeup

Ending = Literal["finished", "returned", "deferred", "stalled", "lost", "abandoned"]

DUMP_PATIENCE = 0.2
"""Seconds a hanging horse is given to say where it hangs before it is killed."""

OUTAGE_PATIENCE = 30.0
"""Seconds a worker that is to stop waits for Redis to come back, to record its last checkpoint."""

SWEEP_PATIENCE = 1.0
"""Seconds a look for what dead workers have left may take: the lease has to be renewed."""

MOST_SWEPT = 1000
_swept: set[str] = set()
"""The runs in whose output directories this worker has looked for what dead ones have left."""

FENCE_AFTER = 2
"""Heartbeats without an answer after which a worker that is through asks first whether the job is
still its own; after three it may be thought dead (imece/rescue.py)."""

BARREN_HORSES = 3
"""How many horses in a row may die without a file in hand before the job is given back."""


@dataclass(frozen=True)
class Workshop:
    """What all executions of one worker share.

    Attributes:
        name: the worker's.
        alive: shows that the worker lives; called at every sign of life.
        tally: told of what Redis has recorded.
        outage: what the worker knows of Redis being away.
    """

    name: str
    settings: Settings
    stable: Stable
    wakeup: Wakeup
    alive: Callable[[], None]
    tally: Tally
    outage: Outage = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outage", Outage(self.settings.lease))  # it is frozen


@dataclass
class Unanswered:
    """A batch that was sent and must be sent again as it is until Redis answers."""

    number: int
    cursor: Cursor
    batch: Batch


class Claim(Protocol):
    """Where progress is recorded: a lease, or what stands in for one without Redis."""

    @property
    def reference(self) -> Reference: ...

    @property
    def execution(self) -> str: ...

    def checkpoint(
        self,
        action: Action,
        number: int = 0,
        cursor: Cursor | None = None,
        batch: Batch | None = None,
        reason: str = "",
    ) -> tuple[Verdict, int]: ...

    def is_remembered(self) -> bool: ...


class Execution:
    """Processes what a lease claims."""

    def __init__(self, workshop: Workshop, lease: Claim, claimed: Claimed, places: Places) -> None:
        self._shop = workshop
        self._lease = lease
        self._claimed = claimed
        self._places = places
        self._stable = workshop.stable
        self._first = min([claimed.cursor.next, *claimed.cursor.owed])
        self._table = self._stable.prepare(self._first, claimed.cursor.stop)
        self._table.others_wait = claimed.pending > 0
        self._clock = ServerClock.at(claimed.now)
        self._progress = Progress(
            claimed, self._table, self._stable.journal, workshop.name, self._clock
        )
        self._untouched = claimed.untouched or False
        if claimed.untouched is None and places.untouched():
            self._untouched = True
            self._progress.note_untouched()
        self._number = 0
        self._unanswered: Unanswered | None = None
        self._checkpoint_due = time.monotonic() + workshop.settings.checkpoint
        self._lost = False
        self._answered_at = time.monotonic()

    def run(self) -> Ending:
        """To the end, or until the worker is asked to stop."""
        try:
            self._places.occupy()
        except PlaceError as error:
            return self._stall(str(error))
        self._sweep()
        self._take_over()
        barren = 0
        while not self._progress.finished():
            if self._shop.wakeup.stopping:
                return self._end("return", "returned")
            before = self._progress.cursor()
            outcome = self._gallop()
            if self._lost:
                return self._lose()
            if outcome == horse.DEFERRED:
                return self._end("defer", "deferred")
            if outcome == horse.STALLED:
                return self._stall(self._progress.stalled)
            if outcome == horse.STOPPED:
                self._stable.dismiss()  # it may have left an answer unread
                return self._end("return", "returned")
            if self._progress.finished():
                break
            held = isinstance(outcome, int) and self._hold_to_account(outcome)
            if self._progress.stalled:
                return self._stall(self._progress.stalled)
            now = self._progress.cursor()
            got_on = (now.next, now.owed) != (before.next, before.owed)
            barren = 0 if held or got_on else barren + 1
            if barren == BARREN_HORSES:
                reason = f"worker {self._shop.name}: its processes die before their first file"
                log.event("job cannot start", logging.ERROR, reason=reason)
                return self._end("stall", "stalled", reason)
        return self._end("finish", "finished")

    def _lose(self) -> Ending:
        """Another worker has the job, or will: it reads our proofs, and clears up after us. If it
        knows nothing of us, we do."""
        if self._is_remembered():
            self._places.leave()
        else:
            self._places.clear(self._lease.execution)
        return "lost"

    def _is_remembered(self) -> bool:
        try:
            return self._lease.is_remembered()
        except RedisError:
            return True

    def _stall(self, reason: str) -> Ending:
        """Gives the job back, because its directories cannot be used."""
        about = {"run": self._lease.reference.run, "job": self._lease.reference.field}
        log.event("directories cannot be used", logging.ERROR, **about, reason=reason)
        return self._end("stall", "stalled", reason)

    def _sweep(self) -> None:
        """Once for each run: what dead workers have left in its output directory."""
        run = self._lease.reference.run
        if run not in _swept:
            if len(_swept) >= MOST_SWEPT:
                _swept.clear()
            _swept.add(run)
            self._places.sweep(patience=SWEEP_PATIENCE)

    def _take_over(self) -> None:
        """Clears up after executions whose worker died with this job. What they can prove to have
        done is done; all else is done again."""
        claimed, progress = self._claimed, self._progress
        if not claimed.earlier:
            return
        progress.careful = True
        for execution in claimed.earlier:
            self._count_proven(execution)
        for execution in claimed.earlier:
            self._places.restore(execution, claimed.files)
            self._places.clear(execution)
        progress.collect()
        now, marked = progress.cursor(), claimed.cursor.marked
        if marked != NONE and (marked >= now.next or marked in now.owed):
            self._blame(marked, "its worker died while at it (killed, out of memory?)", "")

    def _count_proven(self, execution: str) -> None:
        cursor = self._progress.cursor()
        for index, device, inode in self._places.proven(execution):
            if not (cursor.next <= index < cursor.stop or index in cursor.owed):
                continue
            if self._table.outcomes[index - self._first] == Outcome.OPEN:
                there = self._places.proof(self._claimed.files[index], device, inode)
                if there is not None:
                    self._table.begin(index)
                    self._close_finished(index, there)
                    self._places.renew_proof(index, device, inode)

    def _finished(self, index: int) -> os.stat_result | None:
        """The output, if it can be proven that the horse has put it in its place."""
        for proven, device, inode in self._places.proven(self._lease.execution):
            if proven == index:
                there = self._places.proof(self._claimed.files[index], device, inode)
                if there is not None:
                    return there
        return None

    def _close_finished(self, index: int, there: os.stat_result) -> None:
        """Does what the horse was killed before: notes that the output is in its place."""
        bytes_in = self._places.input_size(self._claimed.files[index])
        bytes_out = 0 if stat.S_ISDIR(there.st_mode) else there.st_size
        self._table.end(index, Outcome.DONE, bytes_in, bytes_out)

    def _gallop(self) -> int | bytes:
        """One horse, from the job's being given to it to its being through with it.

        Returns:
            How it left the job, in a word; or if it has died, its exit code, negative for a signal.
        """
        claimed, first = self._claimed, self._first
        cursor = self._progress.cursor()
        files = claimed.files[first : cursor.stop]
        self._stable.give(
            Assignment(
                first=first,
                files=files,
                cursor=cursor,
                parameters=claimed.parameters,
                untouched=self._untouched,
                places=self._places,
                clock=self._clock,
            )
        )
        outcome = self._watch()
        self._progress.collect()
        if isinstance(outcome, int):
            self._progress.drop_half_a_line()
        return outcome

    def _watch(self) -> int | bytes:
        """Signs of life, checkpoints, marks, the time limit."""
        shop, table, stable = self._shop, self._table, self._stable
        table.overdue = NONE
        beat_due = time.monotonic() + shop.settings.heartbeat
        lines = [stable.line] if stable.line is not None else []
        while True:
            # A checkpoint that is due already waits for Redis to be asked again.
            record_due = max(self._checkpoint_due, shop.outage.ask_at)
            due = min(beat_due, record_due, self._deadline())
            if shop.wakeup.wait(due - time.monotonic(), *lines):
                word = stable.hear()
                if word == horse.MARK:
                    self._mark()
                elif word:
                    return word
                else:
                    lines = []  # its death is a signal of its own
            if shop.wakeup.stopping:
                table.ask_to_stop()
            if (code := stable.death()) is not None:
                return code
            if table.overdue == NONE and time.monotonic() >= self._deadline():
                self._stop_overdue()
            now = time.monotonic()
            if now >= min(beat_due, record_due):
                beat_due = now + shop.settings.heartbeat
                self._beat()
            if self._lost or shop.wakeup.at_once:
                stable.dismiss()
                return -signal.SIGKILL

    def _deadline(self) -> float:
        """When the file in hand will have taken too long, on the monotonic clock."""
        if self._table.current == NONE or self._table.overdue != NONE:
            return float("inf")
        return self._table.started + self._claimed.parameters.timeout

    def _stop_overdue(self) -> None:
        """Kills the horse, in Python and in C code alike; before that it says where it hangs."""
        self._table.overdue, began = self._table.current, self._table.began
        if self._table.overdue == NONE:
            return
        try:
            self._stable.signal(signal.SIGUSR2)
            size, end = -1, time.monotonic() + DUMP_PATIENCE
            while size != (size := self._stable.capture.size()) or size == 0:
                if time.monotonic() > end:
                    break
                time.sleep(0.02)
        except ProcessLookupError:
            pass
        if (self._table.current, self._table.began) == (self._table.overdue, began):
            self._stable.kill()
        else:
            self._table.overdue = NONE  # it has come to its end after all

    def _hold_to_account(self, code: int) -> bool:
        """Charges the horse's death to the file it had in hand. False if it had none."""
        index = self._table.current
        if index == NONE:
            log.event("process died without a file in hand", logging.WARNING, exit=code)
            return False
        there = self._finished(index)
        if there is None and index != self._table.overdue:
            self._progress.stalled = self._places.fault(None) or ""
        self._places.restore(self._lease.execution, self._claimed.files)
        if self._progress.last_failed == (index, self._table.began):
            self._table.end(index, Outcome.FAILED)  # it died after its last word on the file
            self._progress.collect()
            return True
        if there is not None:
            self._close_finished(index, there)
            self._progress.collect()
            return True
        self._table.drop_current()
        if self._progress.stalled or self._was_stopped(code):
            return True
        if index == self._table.overdue:
            limit = f"{self._claimed.parameters.timeout:g} s"
            how = f"took longer than its limit of {limit}, and was killed"
            reason = f"{self._stable.capture.text()}\n{how}".strip()
            self._blame(index, reason, "")
        else:
            self._blame(index, _cause_of_death(code), self._stable.capture.text())
        return True

    def _was_stopped(self, code: int) -> bool:
        """Whether the horse died because the worker is to stop, and not of its file."""
        wakeup = self._shop.wakeup
        if stops.is_death_by_stop(code):
            end = time.monotonic() + horse.STOP_PATIENCE
            while not wakeup.stopping and (left := end - time.monotonic()) > 0:
                wakeup.wait(left)
            return wakeup.stopping
        return wakeup.at_once

    def _blame(self, index: int, reason: str, output: str) -> None:
        tries = self._progress.blame(index, reason, output)
        log.event(
            "file killed its process",
            logging.WARNING,
            run=self._lease.reference.run,
            file=names.shown(self._claimed.files[index]),
            tries=tries,
            reason=reason.splitlines()[-1],
        )

    def _mark(self) -> None:
        """Records that the horse is about to start a file, and lets it."""
        self._progress.collect()
        self._progress.marked = self._table.wanted
        while not (self._lost or self._shop.wakeup.stopping):
            self._checkpoint_due = 0.0
            carries_mark = self._unanswered is None  # else an older batch goes first
            if not self._beat():
                self._wait_for_redis()
            elif carries_mark:
                break
        go = not (self._lost or self._table.stopping or self._shop.wakeup.stopping)
        self._stable.answer(horse.GO if go else horse.STOP)

    def _beat(self) -> bool:
        """A sign of life, with a checkpoint if one is due. False if Redis is away."""
        self._shop.alive()
        self._places.show_life()
        if self._shop.outage.left():
            return False
        if self._unanswered is None and time.monotonic() >= self._checkpoint_due:
            self._checkpoint_due = time.monotonic() + self._shop.settings.checkpoint
            self._progress.collect()
            self._unanswered = self._next_batch()
        return self._send("continue", self._unanswered)

    def _next_batch(self) -> Unanswered:
        self._number += 1
        return Unanswered(self._number, self._progress.cursor(), self._progress.take())

    def _send(self, action: Action, batch: Unanswered | None, reason: str = "") -> bool:
        """False if Redis is away: then the same batch must be sent again.

        Raises:
            RedisError: Redis refuses it, and would refuse it again.
        """
        try:
            if batch is not None:
                answer = self._lease.checkpoint(
                    action, batch.number, batch.cursor, batch.batch, reason
                )
            else:
                answer = self._lease.checkpoint(action)
        except RedisError as error:
            self._shop.tally.redis_errors += 1
            if not is_outage(error):
                self._stable.dismiss()
                raise
            self._shop.outage.noted(error)
            return False
        self._shop.outage.over()
        self._answered_at = time.monotonic()
        self._unanswered = None
        verdict, pending = answer
        if batch is not None and verdict in ("held", "stop"):
            self._shop.tally.recorded(batch.batch)
        self._table.others_wait = pending > 0
        if verdict == "stop":
            self._table.ask_to_stop()
        elif verdict != "held":
            self._lost = True
        return True

    def _end(self, action: Action, ending: Ending, reason: str = "") -> Ending:
        """Records the rest and gives the lease up, however long Redis is away."""
        self._progress.marked = NONE  # nothing is in hand
        silent = time.monotonic() - self._answered_at
        if silent > FENCE_AFTER * self._shop.settings.heartbeat and not self._shop.outage.left():
            # Others may have thought us dead: then they need what is removed below.
            self._send("continue", self._unanswered)
            if self._lost:
                return self._lose()
        # Whoever sees the end sees no temporary file.
        if not self._places.clear(self._lease.execution):
            self._stable.dismiss()  # with what the processor has left running
            self._places.clear(self._lease.execution)
        last: Unanswered | None = None
        sent_before = False
        while True:
            if self._unanswered is not None:
                through = self._send("continue", self._unanswered)
            else:
                last = last or self._next_batch()
                through = self._send(action, last, reason)
                if through:
                    # Lost at the second time of asking: the first has been recorded.
                    return "lost" if self._lost and not sent_before else ending
                sent_before = True
            if self._lost:
                return "lost"
            while self._shop.outage.left():
                self._shop.alive()
                self._wait_for_redis()
                patience = 0.0 if self._shop.wakeup.at_once else OUTAGE_PATIENCE
                if self._shop.wakeup.stopping and self._shop.outage.lasted() > patience:
                    return "abandoned"

    def _wait_for_redis(self) -> None:
        """Until it may be asked again; a signal, and the next sign of life, end the wait sooner."""
        settings = self._shop.settings
        self._shop.wakeup.wait(min(self._shop.outage.left(), settings.heartbeat))


def _cause_of_death(code: int) -> str:
    if code >= 0:
        return f"its process ended itself with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its process was killed by {name}{hint}"
