"""What happens when a worker dies: its jobs go back into the queue, and so do jobs that are in no
list any more.

One worker of a queue looks at a time (`elect`). RQ's own clean-up takes up to 808 s to notice a
dead worker, and runs jobs twice (rq/registry.py, `StartedJobRegistry.cleanup`).
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from redis import Redis
from redis.exceptions import ResponseError

from imece.connection import is_outage, raw, text
from imece.files import staging
from imece.run import keys, scripts
from imece.run.job import MalformedJobError, Reference
from imece.run.parameters import Parameters
from imece.run.store import ON, STEP, Run, recent
from imece.settings import Settings

SWEEP_PATIENCE = 1.0
"""Seconds to look for what dead workers have left: a directory may have millions of entries."""


def elect(redis: Redis, queue: str, worker: str, seconds: float) -> bool:
    """Whether this worker is the one that looks, for so many seconds."""
    return bool(scripts.run("elect", redis, [keys.sweeper(queue)], [worker, int(seconds * 1000)]))


def requeue_dead(
    redis: Redis, settings: Settings, moving: dict[bytes, float], now: float, uptime: float
) -> Iterator[str]:
    """Puts the jobs of dead workers back into the queue; one line for each.

    A worker is dead if its lease has run out. It is dead sooner if it has missed three signs of
    life and its channel has no subscriber.

    Args:
        moving: this caller's memory, kept by it: when an id was first seen between queue and lease.
        now: a clock of the caller's that does not jump.
        uptime: whole seconds since the server was started. A worker that was last heard before
            that may still be alive: it has the time of one lease to be heard again.
    """
    queue = settings.queue
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.zrange(keys.leases(queue), 0, -1, withscores=True)
        pipeline.lrange(keys.moving(queue), 0, -1)
        (seconds, microseconds), leases, between = pipeline.execute()
    here = seconds + microseconds / 1e6
    patience = 3 * settings.heartbeat
    started = int(here) - uptime + 1  # at the latest: both count whole seconds

    for member, expiry in leases:
        job_id = member.rpartition(b":")[0]
        if expiry > here + 2 * settings.lease:  # no worker of ours has written that
            why = "its lease had no sound end"
        else:
            heard = expiry - settings.lease
            silent = here - heard
            if silent < patience or (heard < started and uptime < settings.lease):
                continue
            if expiry > here and _listens(redis, queue, job_id):
                continue
            why = f"its worker is silent for {silent:.1f} s"
        entry = ["lease", member, repr(expiry)]
        outcome = _requeue(redis, queue, job_id, keys.leases(queue), entry)
        if outcome == "requeued":
            yield f"job {text(job_id)} is back in the queue: {why}"
        elif outcome == "dropped":
            _clear_after(redis, settings, job_id)

    for job in set(moving) - set(between):
        del moving[job]
    for job in between:
        silent = now - moving.setdefault(job, now)
        if silent <= patience:
            continue
        if _requeue(redis, queue, job, keys.moving(queue), ["moving", job, ""]) == "requeued":
            yield f"job {text(job)} is back in the queue: nobody took it after it was popped"


def _reference(job_id: bytes) -> Reference | None:
    try:
        return Reference.parse(job_id)
    except MalformedJobError:
        return None


def _listens(redis: Redis, queue: str, job_id: bytes) -> bool:
    """Whether the worker that holds the job is still connected."""
    reference = _reference(job_id)
    if reference is None:
        return False
    holders = f"{keys.run(queue, reference.run)}:holders"
    try:
        worker = raw(redis.hget(holders, f"{reference.field}:worker") or b"")
    except ResponseError as error:
        if is_outage(error):
            raise
        return False  # of another type: nobody can say who holds it
    channel = keys.channel(worker.decode("utf-8", "replace"))
    return bool(redis.pubsub_numsub(channel)[0][1])


def _requeue(redis: Redis, queue: str, job_id: bytes, place: str, entry: list[str | bytes]) -> str:
    """What became of an entry in the leases, or between queue and lease: see lua/requeue.lua."""
    reference = _reference(job_id)
    run_id, field = (reference.run, reference.field) if reference else ("", "")
    where = [keys.run(queue, run_id), keys.pending(queue), place]
    return text(scripts.run("requeue", redis, where, [*entry, field]))


def _clear_after(redis: Redis, settings: Settings, job_id: bytes) -> None:
    """Removes what a dead worker has left of a job that nobody will take over; its lease protected
    it until now. Its run may have another round by now, or be another one with the same id."""
    if (reference := _reference(job_id)) is not None:
        run = Run(redis, settings.queue, reference.run)
        clear_output(run, run.readable_parameters(), settings.output)


def put_back_lost(redis: Redis, queue: str, suspects: set[str]) -> tuple[set[str], list[str]]:
    """Puts jobs back that have a cursor and are in no list: somebody has emptied the queue, or a
    worker of RQ's own has popped them.

    The lists are read one after the other while jobs move between them. So a run is only suspected
    when jobs are missed for the first time, and dealt with when they are missed again.

    Args:
        suspects: what the last call returned.

    Returns:
        The runs that miss jobs, and a line for each run that was dealt with.
    """
    queued, places = _places(redis, queue)
    missing, lines = set(), []
    for run in _runs_on(redis, queue):
        if (damage := run.damage(hold=True)) is not None:
            run.purge()
            lines.append(f"run {run.id} is held: {damage.what}")
            continue
        with redis.pipeline() as pipeline:
            pipeline.hlen(f"{run.key}:jobs")
            pipeline.llen(f"{run.key}:waiting")
            jobs, waiting = pipeline.execute()
        if jobs <= waiting + places[run.id]:
            continue
        missing.add(run.id)
        if run.id in suspects and (count := _restore(run, queued)):
            missing.discard(run.id)
            lines.append(f"{count} jobs of run {run.id} are back: they were in no list")
    return missing, lines


def _places(redis: Redis, queue: str) -> tuple[set[bytes], Counter[str]]:
    """The ids in the queue, and how many of each run are there or in the other two lists."""
    queued: set[bytes] = set()
    start = 0
    while ids := redis.lrange(keys.pending(queue), start, start + STEP - 1):
        queued.update(map(raw, ids))
        start += STEP
    moving = map(raw, redis.lrange(keys.moving(queue), 0, -1))
    leased = (raw(one).rpartition(b":")[0] for one in redis.zrange(keys.leases(queue), 0, -1))
    found = map(_reference, (*queued, *moving, *leased))
    return queued, Counter(reference.run for reference in found if reference is not None)


def _runs_on(redis: Redis, queue: str) -> Iterator[Run]:
    """The runs of a queue that are on."""
    runs = [Run(redis, queue, run_id) for run_id in recent(redis, queue)]
    with redis.pipeline(transaction=False) as pipeline:
        for run in runs:
            pipeline.hget(run.key, "state")
        states = pipeline.execute(raise_on_error=False)
    for run, state in zip(runs, states, strict=True):
        if isinstance(state, bytes) and text(state) in ON:
            yield run


def _restore(run: Run, queued: set[bytes]) -> int:
    """Makes the list of waiting jobs again from the cursors; what is there twice does no harm
    (lua/take.lua)."""
    redis = run.redis
    redis.unlink(f"{run.key}:waiting")
    prefix = run.id.encode() + b"-"
    window = sum(1 for job_id in queued if job_id.startswith(prefix))
    where = [run.key, keys.pending(run.queue), keys.leases(run.queue)]
    restored = 0
    position = 0
    while True:
        position, found = redis.hscan(f"{run.key}:jobs", position, count=STEP)
        fields = [raw(field) for field in found if prefix + raw(field) not in queued]
        if any(_reference(prefix + field) is None for field in fields):
            run.hold(run.remedy("a bucket job in Redis is none that imece makes"))
            return 0
        if fields:
            restored += scripts.run("restore", redis, where, [window, *fields])
            window = min(window + len(fields), 1000)
        if position == 0:
            return restored


def clear_output(run: Run, parameters: Parameters | None, seen_as: Path | None = None) -> None:
    """Removes what dead workers have left of a run in its output directory, if that is seen from
    here. It keeps what is in use, and what the next worker of a job needs.

    Args:
        parameters: the run's; None if nobody can read them.
        seen_as: where the output directory is seen from here, if not where the parameters say.
    """
    if parameters is None or parameters.output_path is None:
        return
    output = seen_as or parameters.output_path
    if not os.path.isdir(output):
        return
    members = run.redis.zrange(keys.leases(run.queue), 0, -1)
    keep = [raw(member).rpartition(b":")[2] for member in members]
    if run.state() in ON:
        for field, executions in run.redis.hgetall(f"{run.key}:holders").items():
            if b":" not in field:
                keep += raw(executions).split(b",")
    staging.sweep(
        os.fsencode(output),
        [execution.decode("utf-8", "replace") for execution in keep if execution],
        patience=SWEEP_PATIENCE,
    )
