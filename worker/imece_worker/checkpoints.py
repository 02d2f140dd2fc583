"""The checkpoints of one execution: batches of progress. Redis records each once, however often it
is sent."""

import time
from dataclasses import dataclass

from imece.run.claim import Action, Batch, Claim
from imece.run.job import Cursor
from imece_worker.context import WorkerContext
from imece_worker.control import Control
from imece_worker.directories import PathError
from imece_worker.long_files import LongFiles
from imece_worker.paths import Paths
from imece_worker.progress import Progress

FENCE_AFTER = 2
"""Heartbeats without an answer after which a worker that has finished a job first asks whether the
job is still its own. After three, others may take it for dead (imece/run/dead_workers.py)."""


@dataclass
class Unanswered:
    """A batch that is sent again, unchanged, until Redis answers.

    Attributes:
        is_stored: what it tells of is on stable storage, as far as the settings want that.
    """

    number: int
    cursor: Cursor
    batch: Batch
    is_stored: bool = False


class Checkpoints:
    """Those of an execution.

    Attributes:
        due: when the next one is due, on the monotonic clock.
        unanswered: the batch that Redis has not answered yet.
        lost: another worker has the job, or will have it.
    """

    def __init__(
        self,
        context: WorkerContext,
        lease: Claim,
        paths: Paths,
        progress: Progress,
        control: Control,
        long_files: LongFiles,
    ) -> None:
        self._context = context
        self._lease = lease
        self._paths = paths
        self._progress = progress
        self._control = control
        self._number = 0
        self._answered_at = time.monotonic()
        self.due = self._answered_at + context.settings.checkpoint
        self.unanswered: Unanswered | None = None
        self.lost = False
        self._long_files = long_files

    @property
    def may_be_lost(self) -> bool:
        """Whether Redis has been silent for so long that others may take this worker for dead. A
        known outage does not count: Redis is away for them, too."""
        silent = time.monotonic() - self._answered_at
        too_long = FENCE_AFTER * self._context.settings.heartbeat
        return silent > too_long and not self._context.outage.left()

    def beat(self) -> bool:
        """A sign of life, with a checkpoint if one is due. False if Redis is away."""
        self._show_life()
        if self._context.outage.left():
            return False
        if self.unanswered is None and time.monotonic() >= self.due:
            self.due = time.monotonic() + self._context.settings.checkpoint
            self._progress.collect()
            self.unanswered = self.next_batch()
        return self.send("continue", self.unanswered)

    def _show_life(self) -> None:
        self._context.alive()
        self._paths.show_life()
        self._long_files.look()

    def _wait_for_storage(self) -> None:
        """A sign of life, while a batch waits for the disk."""
        self._show_life()
        if not self._context.outage.left():
            self.send("continue", None)

    def _store(self, sent: Unanswered) -> None:
        """Puts what a batch tells of on stable storage, before Redis is told.

        Raises:
            PathError: that failed. The files of the batch are to be done again.
        """
        storage = self._paths.storage
        if storage is None or not sent.batch.has_rows:
            sent.is_stored = True
            return
        self._paths.note_copy_targets()
        try:
            storage.sync(self._context.settings.heartbeat, self._wait_for_storage)
        except OSError as error:
            # The runner, too, has written files that may never be on the disk.
            self._context.supervisor.dismiss()
            self._control.end()
            sent.batch = self._progress.take_back(sent.batch, self._paths.remove_output)
            sent.cursor, sent.is_stored = self._progress.cursor(), True
            self.unanswered = sent
            raise PathError(
                f"outputs cannot be put on stable storage: {error.strerror}. They were removed and "
                "do not count: look at the disk",
                error.errno,
            ) from None
        sent.is_stored = True

    def next_batch(self) -> Unanswered:
        self._number += 1
        return Unanswered(self._number, self._progress.cursor(), self._progress.take())

    def send(self, action: Action, batch: Unanswered | None, reason: str = "") -> bool:
        """False if Redis is away; then the same batch must be sent again.

        A job whose outputs were removed before a new round goes back, and not to its end.

        Raises:
            RedisError: Redis refuses it, and would refuse it again.
            PathError: see `_store`.
        """
        if batch is not None and not batch.is_stored:
            self._store(batch)
        if action == "finish" and not self._progress.finished():
            action = "return"
        current = self._long_files.current()
        try:
            if batch is not None:
                answer = self._lease.checkpoint(
                    action, batch.number, batch.cursor, batch.batch, reason, current
                )
            else:
                answer = self._lease.checkpoint(action, reason=reason, current=current)
        except Exception as error:
            self._context.statistics.redis_errors += 1
            if (trouble := self._lease.trouble(error)) is None:
                raise
            self._context.outage.noted(trouble)
            return False
        self._context.outage.over()
        self._answered_at = time.monotonic()
        verdict, pending = answer
        if verdict == "round" and batch is not None:
            batch.batch = self._progress.look_again(batch.batch, self._paths.has_output)
            batch.cursor, batch.is_stored = self._progress.cursor(), False
            if action == "hold":
                action = "return"  # that round may have other parameters
            return self.send(action, batch, reason)
        if batch is not None:
            self.unanswered = None
        if batch is not None and verdict in ("held", "stop"):
            self._context.statistics.recorded(batch.batch)
        self._control.others_wait = pending > 0
        if verdict == "stop":
            self._control.stopping = True
        elif verdict != "held":
            self.lost = True
        return True

    def wait_for_redis(self) -> None:
        """Until it may be asked again. A signal or the next sign of life ends the wait sooner."""
        settings = self._context.settings
        self._context.wakeup.wait(min(self._context.outage.left(), settings.heartbeat))
