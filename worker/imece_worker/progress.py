"""The parent's record of a bucket job: it makes batches for Redis of what runners have noted."""

import heapq
import json
import time
from collections.abc import Callable

from imece.run import durations
from imece.run.claim import Batch, Claimed
from imece.run.failure import Failure
from imece.run.job import Cursor, PendingRetry
from imece_worker.retry import ServerClock, next_try, taken_over
from imece_worker.shared_progress import NONE, Journal, Outcome, SharedProgress

SLOWEST = 3
"""How many of a batch's files are put forward as the run's slowest."""


class Progress:
    """How far the job is, and what has happened since the last batch was taken.

    Args:
        journal: the runners' failed tries, one JSON line each.
        clock: the clock of the retries.
    """

    def __init__(
        self,
        claimed: Claimed,
        shared: SharedProgress,
        journal: Journal,
        worker: str,
        clock: ServerClock,
    ) -> None:
        self._claimed = claimed
        self._clock = clock
        self._shared = shared
        self._journal = journal
        self._read = 0
        self._worker = worker
        self._next = claimed.cursor.next
        self._in_hand: list[bytes] = []
        self._failed: set[int] = set()
        """Rows from `_next` on whose failed try is in the batch."""
        self._retries = taken_over(claimed.cursor.retries, claimed.parameters, clock)
        self._batch = Batch()
        self._counted: list[int] = []
        """The files that are done or skipped in the batch."""
        self._taken: list[int] = []
        """Those of the batch that was taken last."""
        self.isolated = claimed.cursor.isolated
        self.marked = NONE
        self.last_failed = (NONE, 0)
        """The last failed try a runner has put on record: which file, and when it was begun."""
        self.stalled = ""
        """What is wrong with the run's directories, if a runner has found that."""

    def finished(self) -> bool:
        return self._next == self._claimed.cursor.stop and not self._retries

    def cursor(self) -> Cursor:
        stop = self._claimed.cursor.stop
        return Cursor(self._next, stop, dict(self._retries), self.isolated, self.marked)

    def note_untouched(self) -> None:
        """There was no output in the run's directory before its first job."""
        self._batch.untouched = True

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
        late, self._batch, self._counted = self._batch, Batch(), []
        for batch in (taken, late):
            self._batch.failed += batch.failed
            self._batch.retried += batch.retried
            self._batch.failures += batch.failures
        there = [index for index in ended if has_output(self._claimed.files[index])]
        self._count(there)
        for index in set(ended).difference(there):
            self._shared.reopen(index)
            self._retries[index] = PendingRetry(0, 0)
        return self.take()

    def collect(self) -> None:
        """Reads what the runner has written since the last call.

        It goes on meanwhile. So a failed try is counted together with its row: the cursor passes no
        row whose line was not read yet, and no line is taken while its try is in hand.
        """
        shared, first = self._shared, self._shared.first
        lines, self._in_hand = self._in_hand + self._new_lines(), []
        for line in lines:
            entry = json.loads(line)
            if "stalled" in entry:
                self.stalled = entry["stalled"]
                continue
            self.last_failed = index, _ = (entry["index"], entry["began"])
            if self.last_failed == (shared.current, shared.began):
                self._in_hand.append(line)
                continue
            retry = PendingRetry(entry["tries"], entry["due"]) if entry["due"] is not None else None
            self._fail(index, entry["tries"], retry, entry["reason"], entry["output"])
            if index >= self._next:
                self._failed.add(index)
        ended, not_yet = [], bytes([Outcome.OPEN, Outcome.FAILED])
        start = self._next
        for index, outcome in enumerate(bytes(shared.outcomes[start - first :]), start):
            if index not in self._failed:
                if outcome in not_yet:
                    break
                ended.append(index)
            self._next = index + 1
        self._failed = {index for index in self._failed if index >= self._next}
        # A retry that ended well: its row is no longer the failed one.
        for index in [index for index in self._retries if first <= index < self._next]:
            if shared.outcomes[index - first] in (Outcome.DONE, Outcome.SKIPPED):
                ended.append(index)
        if self._retries:
            ended = sorted(set(ended))
            for index in ended:
                self._retries.pop(index, None)
        self._count(ended)
        if self.marked != NONE and shared.outcomes[self.marked - first] != Outcome.OPEN:
            self.marked = NONE

    def charge(self, index: int, reason: str, output: str) -> int:
        """A try of this file killed its process; how often it has been tried now."""
        tries = self._retries[index].tries + 1 if index in self._retries else 1
        retry = next_try(tries, self._claimed.parameters, self._clock)
        self._fail(index, tries, retry, reason, output)
        if index == self._next:
            self._next += 1
        return tries

    def drop_half_a_line(self) -> None:
        """After `collect`, and once the runner is dead: it may have been killed while it wrote.
        What the next one writes must not be read as the line's other half."""
        self._journal.clear(self._read)

    def _new_lines(self) -> list[bytes]:
        whole, newline, _ = self._journal.read(self._read).rpartition(b"\n")
        self._read += len(whole) + len(newline)
        return whole.splitlines()

    def _fail(
        self, index: int, tries: int, retry: PendingRetry | None, reason: str, output: str
    ) -> None:
        if retry is not None:
            self._retries[index] = retry
            self._batch.retried += 1
            return
        self._retries.pop(index, None)
        self._batch.failed += 1
        failure = Failure(reason, tries, time.time(), self._worker, output)
        self._batch.failures.append((self._claimed.files[index], failure))

    def _count(self, ended: list[int]) -> None:
        self._counted += ended
        shared, batch, first = self._shared, self._batch, self._shared.first
        outcomes, done = bytes(shared.outcomes), int(Outcome.DONE)
        rows = [index - first for index in ended if outcomes[index - first] == done]
        took = shared.microseconds
        batch.done += len(rows)
        batch.skipped += len(ended) - len(rows)
        batch.bytes_in += sum(map(shared.bytes_in.__getitem__, rows))
        batch.bytes_out += sum(map(shared.bytes_out.__getitem__, rows))
        lengths = [took[row] for row in rows]
        for step, count in durations.steps(lengths).items():
            batch.durations[step] = batch.durations.get(step, 0) + count
        if lengths:
            known = [batch.shortest] if batch.shortest >= 0 else []
            batch.shortest = min(lengths + known)
        batch.microseconds += sum(lengths)
        for row in heapq.nlargest(SLOWEST, rows, key=took.__getitem__):
            batch.slowest.append((self._claimed.files[first + row], took[row]))
