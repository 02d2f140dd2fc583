"""What one worker has done since it started, for its metrics (imece_worker/metrics.py).

Only the main thread writes these numbers. They are about this process and end with it. What a run
has done, exactly, stands in Redis.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from imece import names
from imece.run.claim import Batch, CurrentFile

ENDINGS = ("finished", "returned", "deferred", "lost", "abandoned", "stalled", "refused")
"""How a job that was taken can end: as in imece_worker/execution.py; `refused` if it is
malformed."""


class WorkerStatistics:
    """Counters, all from 0.

    Attributes:
        durations: step of imece/run/durations.py -> files that took so long.
        jobs: ending -> jobs.
        current: the name of the current file, if it takes long, and when it was begun, on the
            monotonic clock.
    """

    def __init__(self) -> None:
        self.done = self.failed = self.retried = 0
        self.bytes_in = self.bytes_out = 0
        self.microseconds = 0
        self.durations: Counter[int] = Counter()
        self.jobs = dict.fromkeys(ENDINGS, 0)
        self.redis_errors = 0
        self.current: tuple[str, float] | None = None
        self._recorded_at: float | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While the worker has a job."""
        self._recorded_at = time.monotonic()
        try:
            yield
        finally:
            self._recorded_at = self.current = None

    def at(self, current: CurrentFile | None) -> None:
        """The current file, if it takes long."""
        self.current = current and (names.shown(current.name), time.monotonic() - current.seconds)

    def recorded(self, batch: Batch) -> None:
        """Redis has taken this batch."""
        self._recorded_at = time.monotonic()
        self.done += batch.done
        self.failed += batch.failed
        self.retried += batch.retried
        self.bytes_in += batch.bytes_in
        self.bytes_out += batch.bytes_out
        self.microseconds += batch.microseconds
        self.durations.update(batch.durations)

    def ended(self, ending: str) -> None:
        self.jobs[ending] += 1

    def lag(self) -> float | None:
        """Seconds since the last recorded checkpoint of the worker's job; None: it has no job."""
        recorded_at = self._recorded_at
        return None if recorded_at is None else time.monotonic() - recorded_at
