"""The worker: RQ's, but it takes and runs jobs, stops, and finds dead workers in its own way.

From RQ (rq/worker/base.py) it has the registration that `rq info` shows, the state, and the channel
that shows others whether a worker is connected.
"""

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any

import rq
from redis.exceptions import RedisError, ResponseError
from rq.serializers import JSONSerializer
from rq.utils import now as utc_now
from rq.worker import WorkerStatus
from rq.worker_registration import clean_worker_registry, register

from imece import names, version
from imece.connection import connect, is_wrong_type, raw, said
from imece.errors import RunError
from imece.run import dead_workers, keys, scripts
from imece.run.claim import Claimed, Trouble
from imece.run.job import MalformedJobError, Reference
from imece.run.lease import Lease, trouble
from imece.run.store import ON
from imece.settings import Settings
from imece_worker import log
from imece_worker.context import LONGEST, Backoff, WorkerContext, touch_heartbeat_file
from imece_worker.deletioncost import DeletionCost
from imece_worker.execution import Execution
from imece_worker.interpreter import Interpreter
from imece_worker.paths import Paths
from imece_worker.statistics import WorkerStatistics

POP_TIMEOUT = 0.25
"""Seconds of one wait for a job. A stop of an idle worker takes no longer."""

REFUSED_TTL = 7 * 86400
REFUSED_KEPT = 100

LATER_PAUSE = 1.0
"""Seconds a worker waits when all jobs in the queue are of runs that pause."""

LONGEST_STALL = 60.0
"""The most seconds for which a worker leaves a run to others; first one, then two, then four."""

MOST_STALLED = 1000

LOST_LOOK = 5.0
"""Seconds between two looks for jobs that are in no list."""


class Worker(rq.Worker):
    """Takes bucket jobs from one queue, until it is asked to stop."""

    def __init__(
        self,
        settings: Settings,
        interpreter: Interpreter,
        cost: DeletionCost,
        statistics: WorkerStatistics,
    ) -> None:
        self.settings = settings
        self._cost = cost
        self._statistics = statistics
        # The client does not try again: this class waits itself, so that no outage delays a signal.
        redis = connect(settings, retries=0, timeout=5.0)
        # One queue: RQ pops several without an intermediate list, and a kill then loses the job
        # (rq/queue.py, `dequeue_any`).
        self.queue = rq.Queue(settings.queue, connection=redis, serializer=JSONSerializer)
        super().__init__(
            [self.queue],
            # The queue first: the rights of an ACL go by the beginnings of keys and channels.
            name=f"{settings.queue}.{names.plain(socket.gethostname())}-{os.getpid()}-"
            f"{uuid.uuid4().hex[:6]}",
            connection=redis,
            serializer=JSONSerializer,
            prepare_for_work=False,  # it would ask Redis, which may be away
        )
        self.hostname, self.pid, self.ip_address = socket.gethostname(), os.getpid(), "unknown"
        self.birth_date = utc_now()
        self._context = WorkerContext(settings, interpreter, statistics, self.name, self._show_life)
        self.wakeup, self.supervisor = self._context.wakeup, self._context.supervisor
        self._versions: Mapping[Any, Any] = version.records(settings)
        self._moving: dict[bytes, float] = {}
        self._suspects: set[str] = set()
        self._looked_for_lost = time.monotonic()
        self._put_off: set[str] = set()
        self._stalled: dict[str, tuple[int, float]] = {}
        self._beat_at = float("-inf")
        self._gap_until = float("-inf")
        self._looked_at = float("inf")
        self._swept_at = time.monotonic()
        self._upkeep_at = float("-inf")
        self._upkeep_pauses = Backoff(min(LONGEST, settings.lease / 3))

    def _set_connection(self, connection: Any) -> Any:
        return connection  # ours has its time-outs already

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """The loop. It goes on whatever happens to Redis, and whatever a job is."""
        log.event("worker started", worker=self.name, queue=self.settings.queue)
        while not self.wakeup.stopping:
            try:
                if self.pubsub is None:
                    self.subscribe()
                self._try_next()
                self._context.outage.over()
            except RedisError as error:
                if (why := self._trouble(error)) is None:
                    raise  # no waiting fixes these
                self._wait_out(why)
        self.supervisor.end()
        try:
            self.teardown()  # type: ignore[no-untyped-call]
        except RedisError:
            pass  # the registration runs out by itself
        log.event("worker stopped", worker=self.name)
        return True

    def _try_next(self) -> None:
        """One look at the queue, and one job if there is one."""
        now = time.monotonic()
        if now - self._beat_at >= self.settings.heartbeat:
            self._keep_up()  # no job is taken by a worker that is not registered
            self._beat_at = now
        reference = self.pop()
        if reference is None:
            self.supervisor.rest()
            self.set_state(WorkerStatus.IDLE)
            self._cost.idle()
        else:
            self.perform(reference)

    def _trouble(self, error: RedisError) -> Trouble | None:
        """Why a command has failed, if waiting helps."""
        kinds = keys.shared(self.settings.queue) | {self.key: "hash"}
        return trouble(error, self.connection, kinds)

    def _wait_out(self, why: Trouble) -> None:
        """Waits a moment for Redis to come back."""
        self._touch()
        self.supervisor.rest()
        self._statistics.redis_errors += 1
        self._context.outage.noted(why)
        # Leases that were not renewed during the outage look dead. Their workers need time for it.
        self._gap_until = time.monotonic() + self.settings.lease
        while self._context.outage.left() and not self.wakeup.stopping:
            self.wakeup.wait(min(self._context.outage.left(), self.settings.heartbeat))
            self._touch()

    # Signs of life

    def _keep_up(self) -> None:
        """Does what no file waits for. If somebody has spoilt a key that it needs, the files go on,
        and it is tried again after a pause that grows."""
        if time.monotonic() < self._upkeep_at:
            return
        outage, is_spoilt = self._context.outage, False
        for duty in (self.heartbeat, self.clean_registries):
            try:
                duty()
            except ResponseError as error:
                if not is_wrong_type(error) or (why := self._trouble(error)) is None:
                    raise
                outage.tell(why)
                is_spoilt = True
        if is_spoilt:
            self._upkeep_at = time.monotonic() + self._upkeep_pauses.pause()
        else:
            outage.told = ""
            self._upkeep_pauses.reset()

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Renews the registration, whole: it heals after Redis has lost it. It runs out with the
        lease: by RQ's time a worker that is killed would count as alive for eight minutes."""
        self._touch()
        ttl = int(self.settings.lease) + 1
        with self.connection.pipeline() as pipe:
            super().heartbeat(ttl, pipeline=pipe)
            pipe.hset(self.key, mapping=self.serialize())
            pipe.hset(self.key, "state", self.get_state())
            pipe.hset(keys.versions(self.queue.name), mapping=self._versions)
            pipe.expire(keys.versions(self.queue.name), self.settings.run_ttl)
            register(self, pipe)
            for key in (self.redis_workers_keys, keys.workers(self.queue.name)):
                pipe.expire(key, ttl)
            pipe.execute()
        if self.pubsub is not None:
            self.pubsub.get_message(timeout=0)

    def set_state(self, state: str, pipeline: Any = None) -> None:
        """Tells Redis when it changes. From one job to the next it does not."""
        if state != self.get_state():
            super().set_state(state, pipeline)

    def _show_life(self) -> None:
        """As `_keep_up`, within an execution, which goes on whatever happens to Redis. At the limit
        of workers nobody is without one: so this looks for the dead, too."""
        now = time.monotonic()
        if now - self._beat_at < self.settings.heartbeat:
            return
        self._beat_at = now
        self._touch()
        outage = self._context.outage
        if not outage.left():
            try:
                self._keep_up()
                return
            except RedisError as error:
                if (why := self._trouble(error)) is None:
                    raise
                self._statistics.redis_errors += 1
                outage.noted(why)
        self._gap_until = now + self.settings.lease

    def _touch(self) -> None:
        touch_heartbeat_file(self.settings)

    def subscribe(self) -> None:
        """Listens on the worker's channel, without a thread: others see that somebody listens.

        Commands that come by it (rq/command.py) are not obeyed: a runner that they kill would be
        charged to its current file.
        """
        pubsub = self.connection.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        )
        pubsub.subscribe(self.pubsub_channel_name)
        self.pubsub = pubsub

    def unsubscribe(self) -> None:
        if self.pubsub is not None:
            self.pubsub.close()

    def clean_registries(self) -> None:
        """Puts the jobs of dead workers back, and lost ones. One worker of the queue does so, and
        not when others may look dead only because this one, or Redis, was away."""
        now, settings = time.monotonic(), self.settings
        office = 3 * settings.heartbeat
        if now - self._looked_at > settings.lease / 2:
            self._gap_until = now + settings.lease  # even our own lease may have run out
        self._looked_at = now
        if now < self._gap_until or not dead_workers.elect(
            self.connection, settings.queue, self.name, office
        ):
            self._moving.clear()
            return
        if self._moving or self.connection.exists(
            keys.leases(settings.queue), keys.moving(settings.queue)
        ):
            uptime = self.connection.info("server")["uptime_in_seconds"]
            for line in dead_workers.requeue_dead(
                self.connection, settings, self._moving, now, uptime
            ):
                log.event(line, logging.WARNING)
        if now - self._looked_for_lost >= LOST_LOOK:
            self._looked_for_lost = now
            self._suspects, lines = dead_workers.put_back_lost(
                self.connection, settings.queue, self._suspects
            )
            for line in lines:
                log.event(line, logging.WARNING)
        if now - self._swept_at >= settings.lease:
            self._swept_at = now
            self._sweep()

    def _sweep(self) -> None:
        """Takes workers that were killed out of the list of workers."""
        clean_worker_registry(self.queue)

    # Jobs

    def pop(self) -> Reference | None:
        """The next bucket job, moved to the intermediate list; None if none came in time.

        A malformed one is taken out of the way, with a record of what is wrong with it.
        """
        queue = self.settings.queue
        found = self.connection.blmove(self.queue.key, keys.moving(queue), POP_TIMEOUT)  # type: ignore[arg-type]
        if found is None:
            self._put_off.clear()
            return None
        popped = raw(found)
        try:
            return Reference.parse(popped)
        except MalformedJobError as error:
            self._refuse(popped, str(error))
            return None

    def _refuse(self, job_id: bytes, why: str, member: str = "") -> None:
        shown = names.shown(job_id[:200])
        log.event("job refused", logging.ERROR, job=shown, reason=why)
        self._statistics.ended("refused")
        record = json.dumps({"job": shown, "reason": why, "at": time.time()})
        queue = self.settings.queue
        where = [keys.moving(queue), keys.refused(queue), keys.leases(queue)]
        scripts.run(
            "refuse", self.connection, where, [job_id, record, REFUSED_TTL, REFUSED_KEPT, member]
        )

    def perform(self, reference: Reference) -> None:
        """Takes a lease on a popped job and works under it."""
        self._cost.busy()
        held = Lease(self.connection, self.settings, reference, uuid.uuid4().hex)
        try:
            claimed = held.take(self.name, to_others=self._leaves_to_others(reference.run))
        except RunError as error:
            self._give_up(held, str(error))
            return
        if claimed == "later":
            self._put_off_job(reference)
            return
        if isinstance(claimed, str):
            log.event("job dropped", run=reference.run, job=reference.field, reason=claimed)
            return
        self._put_off.clear()
        self.set_state(WorkerStatus.BUSY)
        try:
            with held.run.explained():
                self._execute(held, claimed)
        except RunError as error:
            self.supervisor.rest()
            self._give_up(held, str(error))
        except RedisError as error:
            if self._trouble(error) is not None:
                raise
            self.supervisor.rest()
            self._give_up(held, f"Redis refuses to record its progress: {said(error)}")

    def _put_off_job(self, reference: Reference) -> None:
        """Its run pauses. A worker that meets the same job again has seen the whole queue."""
        if reference.job_id in self._put_off:
            self._put_off.clear()
            self._cost.idle()
            self.wakeup.wait(LATER_PAUSE)
        self._put_off.add(reference.job_id)

    def _leaves_to_others(self, run: str) -> bool:
        """Whether this worker could do nothing for a run a short time ago. Others may be able to:
        the volume may be missing here only. So they come first after the run's own pause."""
        _, until = self._stalled.get(run, (0, 0.0))
        return time.monotonic() < until

    def _note_stall(self, held: Lease) -> None:
        run = held.reference.run
        if len(self._stalled) > MOST_STALLED:
            self._stalled.clear()
        times, _ = self._stalled.get(run, (0, 0.0))
        pause = min(2.0**times, LONGEST_STALL) + LATER_PAUSE
        self._stalled[run] = (times + 1, time.monotonic() + pause)
        if held.run.state() == "held":
            log.event("run held", logging.ERROR, run=run)
            held.run.purge()

    def _give_up(self, held: Lease, why: str) -> None:
        """Takes a job that no worker can do out of the way, and lets its run wait for a person."""
        reference = held.reference
        self._refuse(reference.job_id.encode(), why, f"{reference.job_id}:{held.execution}")
        if held.run.hold(why):
            log.event("run held", logging.ERROR, run=reference.run, reason=why)
            held.run.purge()

    def _execute(self, held: Lease, claimed: Claimed) -> None:
        reference = held.reference
        paths = Paths.of(self.settings, claimed.parameters, held.execution)
        about: dict[str, Any] = {"run": reference.run, "job": reference.field}
        wanted = self.settings.processing_by(claimed.parameters.processor)
        blocking_reason: str | None
        if wanted is None:
            blocking_reason = self._context.lacks(claimed.parameters.processor)
            held.checkpoint("leave", reason=blocking_reason)
        elif blocking_reason := paths.blocking_reason():
            held.checkpoint("stall", reason=f"worker {self.name}: {blocking_reason}")
        if blocking_reason:
            log.event("job stalled", logging.ERROR, **about, reason=blocking_reason)
            self._statistics.ended("stalled")
            self._note_stall(held)
            return
        if claimed.unseen is not None and (why := paths.unseen_by_producer(claimed.unseen)):
            raise RunError(why)
        self.supervisor.use(wanted or {})
        began = time.monotonic()
        files = claimed.cursor.stop - claimed.cursor.next
        log.event("job taken", **about, files=files, retries=len(claimed.cursor.retries))
        with self._statistics.at_work():
            ending = Execution(self._context, held, claimed, paths).run()
        self._statistics.ended(ending)
        level = logging.INFO if ending in ("finished", "returned", "deferred") else logging.WARNING
        log.event(f"job {ending}", level, **about, seconds=time.monotonic() - began)
        if ending == "stalled":
            self._note_stall(held)
        else:
            self._stalled.pop(reference.run, None)
        if ending == "finished" and held.run.state() not in ON:
            # Nobody else clears up after workers that were killed and that Redis has forgotten.
            dead_workers.clear_output(held.run, claimed.parameters, self.settings.output)
            paths.compact()
