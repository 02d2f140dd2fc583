"""The worker: RQ's, with another way to take a job, to run it, to be stopped and to find the dead.

From RQ (rq/worker/base.py) come the registration that `rq info` shows, the state and the channel
by which others see whether a worker is connected.
"""

import json
import logging
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import rq
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from rq.worker import WorkerStatus
from rq.worker_registration import clean_worker_registry, register

from imece import lease, names, scripts
from imece.connection import connect, raw
from imece.job import BucketJob, BucketQueue, MalformedJobError, Reference
from imece.lease import Claimed, Lease
from imece.run import leases_key, moving_key
from imece.settings import Settings
from worker import log
from worker.deletioncost import DeletionCost
from worker.execution import Execution, Workshop
from worker.place import Places
from worker.processor import Processor
from worker.stable import Stable
from worker.tally import Tally
from worker.wakeup import Wakeup

POP_TIMEOUT = 0.25
"""Seconds one wait for a job takes; an idle worker that is to stop leaves within them."""

REFUSED_TTL = 7 * 86400
REFUSED_KEPT = 100
TROUBLE_PAUSE = 5.0


class Worker(rq.Worker):
    """Takes bucket jobs from one queue, until it is asked to stop."""

    def __init__(
        self, settings: Settings, processor: Processor, cost: DeletionCost, tally: Tally
    ) -> None:
        self.settings = settings
        self._cost = cost
        self._tally = tally
        # No patience in the client: this class waits itself, so that no outage delays a signal.
        redis = connect(settings, retries=0, timeout=5.0)
        self.queue = BucketQueue(settings.queue, redis)
        super().__init__(
            [self.queue],
            name=f"{names.slug(socket.gethostname())}-{os.getpid()}-{uuid.uuid4().hex[:6]}",
            connection=redis,
            queue_class=BucketQueue,
            job_class=BucketJob,
            serializer="json",
            prepare_for_work=False,  # it would ask Redis, which may be away
        )
        self.hostname, self.pid, self.ip_address = socket.gethostname(), os.getpid(), "unknown"
        self.wakeup = Wakeup()
        self.stable = Stable(processor, settings.memory_limit)
        self._shop = Workshop(
            name=self.name,
            settings=settings,
            stable=self.stable,
            wakeup=self.wakeup,
            alive=self._show_life,
            tally=tally,
        )
        self._moving: dict[bytes, float] = {}
        self._beat_at = float("-inf")
        self._gap_until = float("-inf")
        self._swept_at = time.monotonic()
        self._outage_since: float | None = None

    def _set_connection(self, connection: Any) -> Any:
        return connection  # ours has its time-outs already

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """The loop. Whatever happens to Redis, it goes on; whatever a job is, it lives on."""
        log.event("worker started", worker=self.name, queue=self.settings.queue)
        registered = False
        while not self.wakeup.stopping:
            try:
                if not registered:
                    self.connection.delete(self.key)  # from a try whose answer was lost
                    self.register_birth()  # type: ignore[no-untyped-call]
                    self.subscribe()
                    registered = True
                self._turn()
                self._outage_over()
            except (AuthenticationError, NoPermissionError):
                raise  # no waiting mends these
            except RedisError as error:
                self._outage(error)
        self.stable.dismiss()
        try:
            self.teardown()  # type: ignore[no-untyped-call]
        except RedisError:
            pass  # the registration runs out by itself
        log.event("worker stopped", worker=self.name)
        return True

    def _turn(self) -> None:
        """One look at the queue, and what comes of it."""
        now = time.monotonic()
        if now - self._beat_at >= self.settings.heartbeat:
            self._beat_at = now
            self.heartbeat()
            self.clean_registries()
        reference = self.pop()
        if reference is None:
            self.stable.dismiss()
            self.set_state(WorkerStatus.IDLE)
            self._cost.idle()
        else:
            self.perform(reference)

    def _outage(self, error: RedisError) -> None:
        """Waits a moment for Redis to come back."""
        self._touch()
        self.stable.dismiss()
        self._tally.redis_errors += 1
        if self._outage_since is None:
            self._outage_since = time.monotonic()
            log.event("redis out of reach", logging.WARNING, error=str(error))
        # What was not renewed during the outage looks dead and is not: wait until it has been.
        self._gap_until = time.monotonic() + self.settings.lease
        self.wakeup.wait(0.5)

    def _outage_over(self) -> None:
        if self._outage_since is not None:
            log.event("redis is back", seconds=time.monotonic() - self._outage_since)
            self._outage_since = None

    # Signs of life

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Renews the registration, whole: it heals after Redis has lost it."""
        self._touch()
        ttl = int(self.settings.lease) + 1
        with self.connection.pipeline() as pipe:
            super().heartbeat(ttl, pipeline=pipe)
            pipe.hset(self.key, mapping=self.serialize())
            pipe.hset(self.key, "state", self.get_state())
            register(self, pipe)
            for key in (self.redis_workers_keys, f"{self.redis_workers_keys}:{self.queue.name}"):
                pipe.expire(key, ttl)
            pipe.execute()
        if self.pubsub is not None:
            self.pubsub.get_message(timeout=0)

    def set_state(self, state: str, pipeline: Any = None) -> None:
        """Tells it when it changes, which it does not between a job and the next."""
        if state != self.get_state():
            super().set_state(state, pipeline)

    def _show_life(self) -> None:
        """As `heartbeat`, from within an execution: never in the way of it."""
        now = time.monotonic()
        if now - self._beat_at < self.settings.heartbeat:
            return
        self._beat_at = now
        try:
            self.heartbeat()
        except RedisError:
            self._tally.redis_errors += 1
            self._gap_until = now + self.settings.lease
            self._touch()

    def _touch(self) -> None:
        touch(self.settings.heartbeat_file)

    def subscribe(self) -> None:
        """Listens on the worker's channel without a thread: that somebody listens is the message.

        Commands that come by it (rq/command.py) are not obeyed: whoever can send them could as
        well stop the worker, and a killed horse would be charged to an innocent file.
        """
        self.pubsub = self.connection.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        )
        self.pubsub.subscribe(self.pubsub_channel_name)

    def unsubscribe(self) -> None:
        if self.pubsub is not None:
            self.pubsub.close()

    def clean_registries(self) -> None:
        """Puts the jobs of dead workers back, unless it may be us, or Redis, who was away."""
        now = time.monotonic()
        if now < self._gap_until:
            return
        if self._moving or self.connection.exists(*self._claims()):
            uptime = self.connection.info("server")["uptime_in_seconds"]
            for line in lease.requeue_dead(
                self.connection, self.settings, self._moving, now, uptime
            ):
                log.event(line, logging.WARNING)
        if now - self._swept_at >= self.settings.lease:
            self._swept_at = now
            self._sweep()

    def _sweep(self) -> None:
        """Takes workers that were killed out of the list of workers; one of us, once a lease."""
        done = f"imece:swept:{self.settings.queue}"
        if self.connection.set(done, self.name, nx=True, ex=int(self.settings.lease)):
            clean_worker_registry(self.queue)

    def _claims(self) -> tuple[str, str]:
        return leases_key(self.settings.queue), moving_key(self.settings.queue)

    # Jobs

    def pop(self) -> Reference | None:
        """The next bucket job, moved to the intermediate list; None if none came in time.

        A malformed one is taken out of the way, with a record of what is wrong with it.
        """
        queue = self.settings.queue
        found = self.connection.blmove(self.queue.key, moving_key(queue), POP_TIMEOUT)  # type: ignore[arg-type]
        if found is None:
            return None
        popped = raw(found)
        try:
            reference = Reference.read(self.connection, popped.decode("utf-8", "replace"))
        except MalformedJobError as error:
            self._refuse(popped, str(error))
            return None
        if reference is None:
            self.connection.lrem(moving_key(queue), 1, popped)  # type: ignore[arg-type]
        return reference

    def _refuse(self, job_id: bytes, why: str, member: str = "") -> None:
        shown = names.shown(job_id)
        log.event("job refused", logging.ERROR, job=shown, reason=why)
        self._tally.ended("refused")
        record = json.dumps({"job": shown, "reason": why, "at": time.time()})
        queue = self.settings.queue
        keys: list[str | bytes] = [moving_key(queue), f"imece:refused:{queue}"]
        keys += [b"rq:job:" + job_id, leases_key(queue)]
        scripts.run(
            "refuse", self.connection, keys, [job_id, record, REFUSED_TTL, REFUSED_KEPT, member]
        )

    def perform(self, reference: Reference) -> None:
        """Takes a lease on a popped job and works under it."""
        self._cost.busy()
        held = Lease(self.connection, self.settings, reference, uuid.uuid4().hex)
        try:
            claimed = held.take(self.name)
        except (ValueError, TypeError) as error:
            why = f"its run cannot be read: {error}"
            self._refuse(reference.job_id.encode(), why, f"{reference.job_id}:{held.execution}")
            held.note_trouble(f"job {reference.field} was refused: {error}")
            return
        if isinstance(claimed, str):
            log.event("job dropped", run=reference.run, job=reference.field, reason=claimed)
            return
        self.set_state(WorkerStatus.BUSY)
        self._execute(held, claimed)

    def _execute(self, held: Lease, claimed: Claimed) -> None:
        reference = held.reference
        places = Places.of(self.settings, claimed.parameters, held.execution)
        about: dict[str, Any] = {"run": reference.run, "job": reference.field}
        if trouble := places.trouble():
            held.note_trouble(f"worker {self.name}: {trouble}")
            held.checkpoint("return")
            log.event("job given back", logging.ERROR, **about, reason=trouble)
            self._tally.ended("trouble")
            self.wakeup.wait(TROUBLE_PAUSE)
            return
        began = time.monotonic()
        files = claimed.cursor.stop - claimed.cursor.next
        log.event("job taken", **about, files=files, retries=len(claimed.cursor.owed))
        with self._tally.at_work():
            ending = Execution(self._shop, held, claimed, places).run()
        self._tally.ended(ending)
        level = logging.INFO if ending in ("finished", "returned", "deferred") else logging.WARNING
        log.event(f"job {ending}", level, **about, seconds=time.monotonic() - began)


def touch(heartbeat_file: Path | None) -> None:
    """Shows a liveness probe that the loop turns."""
    if heartbeat_file is not None:
        try:
            heartbeat_file.touch()
        except OSError as error:  # the probe will tell, if it lasts
            log.event("heartbeat file not touched", logging.WARNING, error=str(error))


def touchable(path: Path) -> str | None:
    """Why the heartbeat file cannot be touched, or None. It is not left there: it appears with the
    first look at the queue, by which a startup probe knows that the processor has been imported."""
    try:
        path.touch()
        path.unlink()
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None
