"""The parent's record of a bucket job: it makes batches for Redis of the rows that runners have
written."""

import heapq
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest

from imece.files.rows import Outcome, Row
from imece.files.segment import Segment
from imece.run import durations
from imece.run.claim import Batch, Claimed, CurrentFile
from imece.run.failure import Failure
from imece.run.job import Cursor, PendingRetry
from imece_worker.control import NONE, Control
from imece_worker.directories import PathError
from imece_worker.retry import ServerClock, next_try, taken_over

SLOWEST = 3
"""How many of a batch's files are put forward as the run's slowest."""


class Progress:
    """How far the job is, and what has happened since the last batch was taken.

    Args:
        control: says which file is in hand.
        clock: the clock of the retries.

    Attributes:
        segment: where runners write.
        rows: how many the present runner has written for this job.
    """

    def __init__(
        self,
        claimed: Claimed,
        segment: Segment,
        control: Control,
        worker: str,
        clock: ServerClock,
    ) -> None:
        self._claimed = claimed
        self._clock = clock
        self.segment = segment
        self._control = control
        self._in_hand: Row | None = None
        """Of the file in hand: its output may not be in its place yet."""
        self._worker = worker
        self._next = claimed.cursor.next
        self._ahead: set[int] = set()
        """The files from `_next` on that have been tried: a worker that died was at them, too."""
        self._retries = taken_over(claimed.cursor.retries, claimed.parameters, clock)
        self._batch = Batch()
        self._counted: list[Row] = []
        """The files that are done in the batch."""
        self._taken: list[Row] = []
        """Those of the batch that was taken last."""
        self.rows = 0
        self.isolated = claimed.cursor.isolated
        self.marked = NONE

    def finished(self) -> bool:
        return self._next == self._claimed.cursor.stop and not self._retries

    def cursor(self) -> Cursor:
        stop = self._claimed.cursor.stop
        return Cursor(self._next, stop, dict(self._retries), self.isolated, self.marked)

    def ahead(self) -> list[int]:
        """The files behind the cursor's next that have been tried: none is to be begun anew."""
        return sorted(self._ahead)

    def current_file(self) -> CurrentFile | None:
        """The file in hand, and for how long it has been."""
        index, began = self._control.current, self._control.began
        if index == NONE or index != self._control.current:  # it has just ended
            return None
        return CurrentFile(self._claimed.files[index], time.monotonic() - began / 1e9)

    def take(self) -> Batch:
        """What has happened since the last call. From here on it is the caller's to record."""
        batch, self._batch = self._batch, Batch()
        self._taken, self._counted = self._counted, []
        return batch

    def look_again(self, taken: Batch, has_output: Callable[[bytes], bool]) -> Batch:
        """What has happened since the last recorded batch, if another round has begun since. Files
        whose output is gone are to be done again.

        Args:
            taken: the batch that was taken last. It was not recorded, and is in the returned one.
        """
        self.collect()
        ended = self._taken + self._counted
        gone = {row.file for row in ended if not has_output(self._claimed.files[row.file])}
        return self._without(taken, gone)

    def take_back(self, taken: Batch, remove: Callable[[bytes], None]) -> Batch:
        """What has happened since the last recorded batch, if nobody can say which outputs will be
        there after a loss of power. These files are to be done again. There is no runner any more.

        Args:
            taken: see `look_again`.
            remove: is told whose output is not to stay.
        """
        with suppress(PathError, OSError):  # the disk is not sound
            self.collect()
            self.segment.drop_half_a_row()
        ended = self._taken + self._counted
        made = {row.file for row in ended if row.outcome == Outcome.DONE}
        in_hand = {self._in_hand.file} if self._in_hand is not None else set()
        self._in_hand = None
        for file in made | in_hand:
            remove(self._claimed.files[file])
        return self._without(taken, made)

    def _without(self, taken: Batch, files: set[int]) -> Batch:
        """The batch that was taken last and what came later, without these files."""
        ended = self._taken + self._counted
        late, self._batch, self._counted = self._batch, Batch(), []
        for batch in (taken, late):
            self._batch.failed += batch.failed
            self._batch.retried += batch.retried
            self._batch.failures += batch.failures
        self._count([row for row in ended if row.file not in files])
        for file in files:
            with suppress(OSError):  # the next enqueuing sees that the output is gone
                self.segment.append(Row(file, Outcome.OPEN, ended=int(time.time())))
            self._retries[file] = PendingRetry(0, 0)
        return self.take()

    def collect(self) -> None:
        """Reads what the runner has written since the last call.

        Raises:
            PathError: it cannot be read.
        """
        with _readable():
            found = [row for row in self.segment.new() if row.outcome != Outcome.OPEN]
        self.rows += len(found)
        if self._in_hand is not None:
            found.insert(0, self._in_hand)
            self._in_hand = None
        # A later row of the same try: its output was not put in its place, or was put elsewhere.
        rows = [
            row
            for row, after in zip_longest(found, found[1:])
            if after is None or (row.file, row.tries) != (after.file, after.tries)
        ]
        if rows and rows[-1].outcome == Outcome.DONE:
            if rows[-1].file == self._control.current:
                self._in_hand = rows.pop()
            elif rows[-1].file == self._control.void:
                rows.pop()
        self._apply(rows)

    def settle(self, is_there: Callable[[bytes, Row], bool]) -> bool:
        """After `collect`, when the runner has died and has written a row for the file in hand.
        Whether this try has come to its end; it has not if its output is not in its place.

        Args:
            is_there: whether a file's output is the one of which a row tells.
        """
        row, self._in_hand = self._in_hand, None
        if row is None:
            return True
        if is_there(self._claimed.files[row.file], row):
            self._apply([row])
            return True
        return False

    def take_over(self, rows: Iterable[Row], is_there: Callable[[bytes, Row], bool]) -> None:
        """What an execution that died has done since its last checkpoint.

        Args:
            is_there: whether a file's output is the one of which a row tells.
        """
        cursor, files = self.cursor(), self._claimed.files
        last = {row.file: row for row in rows}
        for file, row in sorted(last.items()):
            if row.tries > _tries(cursor, file) and (
                row.outcome != Outcome.DONE or is_there(files[file], row)
            ):
                self.note(row)  # into this segment, too: this worker may die as well

    def note(self, row: Row) -> None:
        """A row of the worker's own, while there is no runner."""
        try:
            self.segment.append(row)
            self.segment.new()
        except OSError:
            pass  # Redis knows it, and the ledger does not
        self._apply([row])

    def note_done(self, file: int, source: os.stat_result | None) -> None:
        """The file in hand is done, and its runner could not write that.

        Args:
            source: the input, if it is there.
        """
        self.note(
            Row(
                file,
                Outcome.DONE,
                self._try_of(file),
                int(time.time()),
                microseconds=self._control.microseconds(),
                size=source.st_size if source else 0,
                mtime=source.st_mtime_ns if source else 0,
            )
        )

    def _try_of(self, file: int) -> int:
        """The number of its present try."""
        return self._retries[file].tries + 1 if file in self._retries else 1

    def _apply(self, rows: Iterable[Row]) -> None:
        done = []
        for row in rows:
            if row.outcome == Outcome.FAILED:
                self._note_failure(row)
            else:
                self._retries.pop(row.file, None)
                done.append(row)
            self._pass(row.file)
        self._count(done)

    def _pass(self, file: int) -> None:
        """Moves the cursor on."""
        if file == self.marked:
            self.marked = NONE
        if file > self._next:
            self._ahead.add(file)
        elif file == self._next:
            self._next += 1
            while self._next in self._ahead:
                self._ahead.remove(self._next)
                self._next += 1

    def charge(self, file: int, cause: str, reason: str, output: str) -> int:
        """A try of this file killed its process; how often it has been tried now."""
        before = self._retries.get(file)
        tries, retry = next_try(before, 0, self._claimed.parameters, self._clock)
        detail = {
            "due": retry.due if retry else None,
            "cause": cause,
            "error": 0,
            "reason": reason,
            "output": output,
        }
        ended = int(time.time())
        row = Row(file, Outcome.FAILED, tries, ended, detail=json.dumps(detail).encode())
        self.note(row)
        return tries

    def drop_half_a_row(self) -> None:
        """After `collect`, and once the runner is dead; raises as it."""
        with _readable():
            self.segment.drop_half_a_row()

    def _note_failure(self, row: Row) -> None:
        detail = json.loads(row.detail)
        if detail["due"] is not None:
            self._retries[row.file] = PendingRetry(row.tries, detail["due"], detail["error"])
            self._batch.retried += 1
            return
        self._retries.pop(row.file, None)
        self._batch.failed += 1
        why = [detail[name] for name in ("output", "cause")]
        failure = Failure(detail["reason"], row.tries, time.time(), self._worker, *why)
        self._batch.failures.append((self._claimed.files[row.file], failure))

    def _count(self, done: list[Row]) -> None:
        self._counted += done
        batch, files = self._batch, self._claimed.files
        batch.done += len(done)
        batch.bytes_in += sum(row.size for row in done)
        batch.bytes_out += sum(row.output_size for row in done)
        lengths = [row.microseconds for row in done]
        for step, count in durations.steps(lengths).items():
            batch.durations[step] = batch.durations.get(step, 0) + count
        if lengths:
            known = [batch.shortest] if batch.shortest >= 0 else []
            batch.shortest = min(lengths + known)
        batch.microseconds += sum(lengths)
        for row in heapq.nlargest(SLOWEST, done, key=lambda row: row.microseconds):
            batch.slowest.append((files[row.file], row.microseconds))


def _tries(cursor: Cursor, file: int) -> float:
    """How often a file has been tried by what Redis knows; infinite if it is through."""
    if file in cursor.retries:
        return cursor.retries[file].tries
    return 0 if cursor.next <= file < cursor.stop else float("inf")


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PathError(f"what was done cannot be read: {error.strerror}", error.errno) from None
