"""A worker's claim on a bucket job, and what it records under that claim."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from redis import Redis
from redis.exceptions import ResponseError

from imece import manifest, scripts
from imece.connection import raw
from imece.cursor import Cursor
from imece.failure import Failure
from imece.job import Reference
from imece.run import Parameters, Run, leases_key, moving_key, pending_key
from imece.settings import Settings

Action = Literal["continue", "finish", "return", "defer", "stall"]
Verdict = Literal["held", "lost", "gone", "cancelled"]


@dataclass
class Batch:
    """What has happened since the last checkpoint.

    Attributes:
        durations: exponent -> files that took [2^(e-1), 2^e) microseconds.
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
    untouched: bool = False
    """No output was there before the run's first job; see `Claimed`."""

    def deltas(self) -> str:
        counters = ("done", "failed", "skipped", "retried", "bytes_in", "bytes_out")
        deltas: dict[str, object] = {name: getattr(self, name) for name in counters}
        deltas["untouched"] = self.untouched
        deltas["durations"] = {str(exponent): n for exponent, n in self.durations.items()}
        return json.dumps(deltas)


@dataclass(frozen=True)
class Claimed:
    """What comes with a lease.

    Attributes:
        earlier: executions that held the job and did not give it back: they died with it.
        created: when the run was made, epoch seconds of the server's clock.
        files: the names in the whole bucket; the cursor's indexes point here.
        pending: how many jobs wait in the queue.
        untouched: whether the output directory was empty when the run's first job was taken, so
            that no file need be looked for. None: this is that job.
    """

    cursor: Cursor
    earlier: list[str]
    parameters: Parameters
    created: float
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
        self._job_key = f"rq:job:{reference.job_id}"

    def take(self, worker: str) -> Claimed | str:
        """Turns the popped job into a held one.

        Returns:
            What is claimed; or why not, and then the job is out of the way: lost (another worker
            has it), gone (its run is no more), or the state of its run.

        Raises:
            ValueError: what the run holds for this job was not made by imece.
        """
        queue, reference = self.settings.queue, self.reference
        keys = [
            self.run.key,
            moving_key(queue),
            leases_key(queue),
            self._job_key,
            pending_key(queue),
        ]
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        arguments: list[str | bytes | int | float] = [
            reference.job_id,
            self.execution,
            self.settings.lease,
            worker,
            reference.field,
            reference.part,
            reference.bucket,
            at,
        ]
        try:
            answer = scripts.run("take", self.redis, keys, arguments)
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            raise ValueError(f"a key of the run holds something else: {error}") from None
        if answer[0] != b"held":
            refusal: str = answer[0].decode()
            return refusal
        _, cursor, earlier, parameters, created, blob, pending, untouched = answer
        claimed = Claimed(
            Cursor.decode(cursor),
            [execution for execution in earlier.decode().split(",") if execution],
            Parameters.decode(parameters),
            float(created),
            manifest.decode(blob),
            pending,
            None if untouched == b"?" else untouched == b"1",
        )
        if claimed.cursor.stop > len(claimed.files):
            raise ValueError(f"the cursor {cursor!r} points outside its bucket")
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

        Returns:
            Whether the lease holds, and how many jobs wait in the queue.
        """
        queue, settings = self.settings.queue, self.settings
        arguments: list[str | bytes | int | float] = [
            self.reference.job_id,
            self.execution,
            settings.lease,
            self.reference.field,
            action,
            number,
            cursor.encode() if cursor else "",
            batch.deltas() if batch else "",
            settings.run_ttl,
            settings.result_ttl,
        ]
        if batch:
            arguments.append(len(batch.failures))
            for name, failure in batch.failures:
                arguments += [name, failure.encode(), failure.output.encode("utf-8", "replace")]
            for name, microseconds in batch.slowest:
                arguments += [name, microseconds]
        keys = [self.run.key, leases_key(queue), pending_key(queue), self._job_key]
        verdict, pending = scripts.run("checkpoint", self.redis, keys, arguments)
        return verdict.decode(), pending

    def note_trouble(self, text: str) -> None:
        """Leaves word in the run why a worker can do nothing for it; `imece status` shows it."""
        if self.run.state() is not None:
            self.redis.hset(self.run.key, mapping={"trouble": text, "trouble_at": time.time()})


def requeue_dead(
    redis: Redis, settings: Settings, moving: dict[bytes, float], now: float, uptime: float
) -> Iterator[str]:
    """Puts the jobs of dead workers back into the queue; one line for each.

    Dead is a worker whose lease has run out; sooner, one that has missed three signs of life and
    whose channel has no subscriber. RQ's own clean-up takes up to 808 s for that, and runs jobs
    twice (rq/registry.py, `StartedJobRegistry.cleanup`).

    Args:
        moving: this caller's memory, kept by it: when an id was first seen between queue and lease.
        now: a clock of the caller's that does not jump.
        uptime: whole seconds since the server was started. Whoever was last heard before that may
            still be alive: it has a lease's time to be heard again.
    """
    queue = settings.queue
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.zrange(leases_key(queue), 0, -1, withscores=True)
        pipeline.lrange(moving_key(queue), 0, -1)
        (seconds, microseconds), leases, between = pipeline.execute()
    here = seconds + microseconds / 1e6
    patience = 3 * settings.heartbeat
    started = int(here) - uptime + 1  # at the latest: both count whole seconds

    for member, expiry in leases:
        job_id = member.rpartition(b":")[0].decode("utf-8", "replace")
        heard = expiry - settings.lease
        silent = here - heard
        if silent < patience or (heard < started and uptime < settings.lease):
            continue
        if expiry > here and _listens(redis, job_id):
            continue
        if _requeue(redis, queue, job_id, leases_key(queue), ["lease", member, repr(expiry)]):
            yield f"job {job_id} is back in the queue: its worker is silent for {silent:.1f} s"

    for job in set(moving) - set(between):
        del moving[job]
    for job in between:
        if now - moving.setdefault(job, now) > patience:
            job_id = job.decode("utf-8", "replace")
            if _requeue(redis, queue, job_id, moving_key(queue), ["moving", "", ""]):
                yield f"job {job_id} is back in the queue: nobody took it after it was popped"


def _listens(redis: Redis, job_id: str) -> bool:
    """Whether the worker that holds the job is still connected."""
    worker = raw(redis.hget(f"rq:job:{job_id}", "worker_name") or b"").decode("utf-8", "replace")
    return bool(redis.pubsub_numsub(f"rq:pubsub:{worker}")[0][1])


def _requeue(
    redis: Redis, queue: str, job_id: str, place: str, arguments: list[str | bytes]
) -> bool:
    keys = [pending_key(queue), place, f"rq:job:{job_id}"]
    return bool(scripts.run("requeue", redis, keys, [job_id, *arguments]) == b"requeued")
