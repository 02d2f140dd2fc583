"""A worker's claim on a bucket job, and what it records under that claim."""

import json
from dataclasses import dataclass, field
from typing import Literal

from redis import Redis

from imece.connection import raw, text
from imece.run import keys, manifest, scripts
from imece.run.failure import Failure
from imece.run.job import Cursor, Reference
from imece.run.parameters import Parameters
from imece.run.store import Run
from imece.settings import Settings

Action = Literal["continue", "finish", "return", "defer", "stall"]
Verdict = Literal["held", "stop", "lost", "gone"]
"""`stop`: the run is not on any more. The worker finishes its current file and starts no other."""


@dataclass
class Batch:
    """What has happened since the last checkpoint.

    Attributes:
        durations: step of imece/run/durations.py -> files that took so long.
        shortest: microseconds of the file that was quickest; -1 if none is done.
        microseconds: what the files took that were done, all together; not recorded in Redis.
    """

    done: int = 0
    failed: int = 0
    skipped: int = 0
    retried: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    durations: dict[int, int] = field(default_factory=dict)
    failures: list[tuple[bytes, Failure]] = field(default_factory=list)
    slowest: list[tuple[bytes, int]] = field(default_factory=list)
    microseconds: int = 0
    shortest: int = -1
    untouched: bool = False
    """No output was there before the run's first job; see `Claimed`."""

    def deltas(self) -> str:
        """For lua/checkpoint.lua."""
        names = ("done", "failed", "skipped", "retried", "bytes_in", "bytes_out")
        deltas = {
            name: getattr(self, name) for name in (*names, "shortest", "untouched", "durations")
        }
        return json.dumps(deltas)


@dataclass(frozen=True)
class Claimed:
    """What comes with a lease.

    Attributes:
        earlier: executions that held the job and did not give it back: they died with it.
        now: when the job was taken, epoch seconds of the server's clock.
        files: the names in the whole bucket; the cursor's indexes point here.
        pending: how many jobs wait in the queue.
        untouched: whether the output directory was empty when the run's first job was taken, so
            that no file need be looked for. None: this is that job.
    """

    cursor: Cursor
    earlier: list[str]
    parameters: Parameters
    now: float
    files: list[bytes]
    pending: int
    untouched: bool | None


class Lease:
    """One execution of one bucket job, for as long as it is ours."""

    def __init__(self, redis: Redis, settings: Settings, reference: Reference, execution: str):
        self.redis = redis
        self.settings = settings
        self.reference = reference
        self.execution = execution
        self.run = Run(redis, reference.run)

    def take(self, worker: str, to_others: bool = False) -> Claimed | str:
        """Turns the popped job into a held one.

        Args:
            to_others: this worker leaves the run to others for now; the job goes to the back.

        Returns:
            What is claimed; or why not, and then the job is no longer this worker's: lost (another
            worker has it), gone (its run or the job is gone), later (the run pauses), or the state
            of its run.

        Raises:
            RunError: what the run holds for this job was not made by imece; says what helps.
        """
        with self.run.explained():
            return self._take(worker, to_others)

    def _take(self, worker: str, to_others: bool) -> Claimed | str:
        queue, job = self.settings.queue, self.reference
        where = [self.run.key, keys.moving(queue), keys.leases(queue), keys.pending(queue)]
        arguments: scripts.Arguments = [
            *(job.job_id, self.execution, self.settings.lease, worker),
            *(job.field, job.part, job.bucket, int(to_others)),
        ]
        answer = scripts.run("take", self.redis, where, arguments)
        if answer[0] == b"damaged":
            _, helps, what = map(text, answer)
            raise self.run.unusable(what, helps)
        if answer[0] != b"taken":
            return text(answer[0])
        _, cursor, earlier, parameters, blob, pending, untouched, now = answer
        claimed = Claimed(
            Cursor.decode(cursor),
            [execution for execution in text(earlier).split(",") if execution],
            self.run.decode(parameters),
            float(now),
            manifest.decode(blob),
            pending,
            None if untouched == b"?" else untouched == b"1",
        )
        claimed.cursor.check_within(len(claimed.files))
        return claimed

    def checkpoint(
        self,
        action: Action,
        number: int = 0,
        cursor: Cursor | None = None,
        batch: Batch | None = None,
        reason: str = "",
    ) -> tuple[Verdict, int]:
        """Shows a sign of life and records a batch, if there is one. May be sent again as it is.

        Args:
            number: of the batch, from 1 on; 0 for none.
            reason: with "stall", why no file of the job can be processed.

        Returns:
            Whether the lease holds, and how many jobs wait in the queue.
        """
        queue, settings = self.settings.queue, self.settings
        arguments: scripts.Arguments = [
            *(self.reference.job_id, self.execution, settings.lease, self.reference.field),
            *(action, number, cursor.encode() if cursor else "", batch.deltas() if batch else ""),
            *(settings.run_ttl, settings.result_ttl, reason),
        ]
        if batch:
            arguments.append(len(batch.failures))
            for name, failure in batch.failures:
                arguments += [name, failure.encode(), failure.output.encode("utf-8", "replace")]
            for name, microseconds in batch.slowest:
                arguments += [name, microseconds]
        where = [self.run.key, keys.leases(queue), keys.pending(queue)]
        verdict, pending = scripts.run("checkpoint", self.redis, where, arguments)
        return verdict.decode(), pending

    def is_remembered(self) -> bool:
        """After the lease was lost: whether the next holder of the job learns of this one."""
        holders = self.redis.hget(f"{self.run.key}:holders", self.reference.field)
        return self.execution.encode() in raw(holders or b"").split(b",")
