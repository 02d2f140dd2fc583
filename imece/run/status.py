"""How far a run is. Costs the same for a thousand files as for ten million."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis import Redis

from imece import names
from imece.connection import raw, text
from imece.run import causes, keys, records
from imece.run.causes import Cause
from imece.run.claim import CurrentFile
from imece.run.parameters import Parameters
from imece.run.records import RecordError
from imece.run.store import ENDED, ON, Run

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

COUNTERS = (
    "generation", "round", "files", "buckets", "done", "failed", "skipped", "retried",
    "bytes_in", "bytes_out", "links_refused",
)  # fmt: skip
"""The whole numbers in a run's hash, by the names they have in `Status`."""

STATES = ON | ENDED | {"listing", "held"}

CURRENT_FILES = 20
"""The most current files that a status names."""

WINDOW = 60.0
"""Seconds the rate looks back."""


@dataclass(frozen=True)
class Backlog:
    """The queue: jobs waiting (with those just being moved), jobs in flight, workers alive."""

    pending: int
    in_flight: int
    workers: int


@dataclass(frozen=True)
class Status:
    """A run at one moment. Times are epoch seconds of the server's clock.

    Attributes:
        rate: files a second over the last minute; for an ended run, over its whole time. Time in
            which no worker had a job of it does not count, nor do files that no worker had.
        time_left: seconds, None if nothing moves, or nobody is there to move it; see `_time_left`.
        durations: step of imece/run/durations.py -> files that took so long.
        shortest: seconds of the file that was quickest.
        timeline: seconds since the start -> files ended in that slot; those in which no worker had
            a job of the run are missing.
        slowest: (name, seconds), slowest first.
        causes: why files have failed, by number.
        current_files: those that workers have been at for longer than a second, the longest first.
        current_files_count: how many these are in all; `current_files` has CURRENT_FILES at most.
        state: one of STATES; "stopped" for a local run whose last call has not come to its end.
        round: how often the run was enqueued; the counters are those of the last time.
        blocking_reason: why the run is held, or why workers can do nothing for it at the moment.
    """

    id: str
    queue: str
    state: str
    parameters: Parameters
    generation: int
    round: int
    files: int
    buckets: int
    jobs_left: int
    done: int
    failed: int
    skipped: int
    retried: int
    bytes_in: int
    bytes_out: int
    links_refused: int
    created: float
    started: float | None
    ended: float | None
    now: float
    rate: float
    time_left: float | None
    durations: dict[int, int]
    shortest: float
    timeline: dict[int, int]
    slowest: list[tuple[bytes, float]]
    causes: list[Cause]
    current_files: list[CurrentFile]
    current_files_count: int
    blocking_reason: str | None
    backlog: Backlog

    @property
    def left(self) -> int:
        """Never below zero, though somebody may have changed `files` in Redis."""
        return max(0, self.files - self.done - self.failed - self.skipped)

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def exit_code(self) -> int:
        """How the run went: 0 done, 1 not so."""
        return 0 if self.state == "done" else 1

    @property
    def is_held(self) -> bool:
        """Whether the run waits for a person."""
        return self.state == "held"

    @property
    def has_stopped(self) -> bool:
        """Whether nothing will change without a person."""
        return self.has_ended or self.is_held or self.state == "stopped"

    @property
    def seconds(self) -> float:
        """Since the first bucket job was taken, to the end or to now."""
        return max(0.0, (self.ended or self.now) - self.started) if self.started else 0.0

    def summary(self) -> dict[str, Any]:
        """What a program would want, ready for JSON."""

        def named(*names: str) -> dict[str, Any]:
            return {name: getattr(self, name) for name in names}

        return {
            "run": self.id,
            "state": self.state,
            "input": self.parameters.input,
            "output": self.parameters.output,
            **named("files", "done", "failed", "skipped", "left"),
            **named("retried", "bytes_in", "bytes_out"),
            "seconds": round(self.seconds, 3),
            "rate": round(self.rate, 3),
            "time_left": round(self.time_left, 1) if self.time_left is not None else None,
            **named("created", "started", "ended"),
            **named("generation", "round", "buckets", "jobs_left", "links_refused"),
            "queue": self.queue,
            **vars(self.backlog),
            "blocking_reason": self.blocking_reason,
            "current_files": [
                {"file": name.decode("utf-8", "surrogateescape"), "seconds": round(seconds, 3)}
                for name, seconds in self.current_files
            ],
            **named("current_files_count"),
            "causes": [cause.entry() for cause in causes.commonest(self.causes, causes.SHOWN)],
        }


def backlog(redis: Redis, queue: str) -> Backlog:
    """The queue's numbers, the ones KEDA scales by."""
    with redis.pipeline(transaction=False) as pipeline:
        _ask_backlog(pipeline, queue)
        answers = pipeline.execute()
    alive = redis.exists(*answers[-1]) if answers[-1] else 0
    return _backlog(answers, alive)


def _ask_backlog(pipeline: Any, queue: str) -> None:
    pipeline.llen(keys.pending(queue))
    pipeline.llen(keys.moving(queue))
    pipeline.zcard(keys.leases(queue))
    pipeline.smembers(keys.workers(queue))


def _backlog(answers: list[Any], alive: int) -> Backlog:
    pending, moving, in_flight, _ = answers
    return Backlog(pending + moving, in_flight, alive)


def read(run: Run) -> Status:
    """Raises RunError if there is no such run."""
    with run.redis.pipeline(transaction=False) as pipeline:
        _ask_run(pipeline, run)
        fields = _fields(run, *pipeline.execute())
    with run.redis.pipeline(transaction=False) as pipeline:
        _ask(pipeline, run)
        answers = pipeline.execute()
    alive = run.redis.exists(*answers[-1]) if answers[-1] else 0
    return _status(run, fields, answers, alive)


async def read_async(redis: "AsyncRedis", queue: str, run_id: str) -> Status:
    """As `read`, from an event loop."""
    run = Run(redis, queue, run_id)  # type: ignore[arg-type]  # for its keys and words only
    async with redis.pipeline(transaction=False) as pipeline:
        _ask_run(pipeline, run)
        fields = _fields(run, *await pipeline.execute())
    async with redis.pipeline(transaction=False) as pipeline:
        _ask(pipeline, run)
        answers = await pipeline.execute()
    alive = await redis.exists(*answers[-1]) if answers[-1] else 0
    return _status(run, fields, answers, alive)


def _ask_run(pipeline: Any, run: Run) -> None:
    pipeline.hgetall(run.key)
    pipeline.hgetall(keys.claim(run.key))


def _fields(run: Run, found: dict[Any, Any], claim: dict[Any, Any]) -> dict[str, bytes]:
    """What is known of a run; while a producer lists for its next round, what its claim says."""
    fields = {text(key): raw(value) for key, value in found.items()}
    if claim and text(fields.get("state", b"")) not in ON:
        listing = {text(key): raw(value) for key, value in claim.items()}
        for key in ("generation", "round"):
            listing[key] = fields.get(key, b"0")
        fields = {**listing, "state": b"listing"}
    if "parameters" not in fields or "state" not in fields:
        raise run.missing()
    return fields


def _ask(pipeline: Any, run: Run) -> None:
    pipeline.time()
    pipeline.hlen(f"{run.key}:jobs")
    pipeline.hgetall(f"{run.key}:durations")
    pipeline.hgetall(f"{run.key}:timeline")
    pipeline.zrevrange(f"{run.key}:slowest", 0, -1, withscores=True)
    pipeline.hlen(f"{run.key}:failures")
    pipeline.hgetall(f"{run.key}:causes")
    pipeline.zrange(f"{run.key}:current", 0, CURRENT_FILES - 1, withscores=True)
    pipeline.zcard(f"{run.key}:current")
    _ask_backlog(pipeline, run.queue)


def _status(run: Run, fields: dict[str, bytes], answers: list[Any], alive: int) -> Status:
    """Raises RunError if what is there was not made by imece."""
    try:
        return _checked(run, fields, answers, alive)
    except RecordError as error:
        raise run.unusable(str(error), "delete") from None


def _checked(run: Run, fields: dict[str, bytes], answers: list[Any], alive: int) -> Status:
    time, jobs_left, durations, timeline, slowest, failed, found, current, at_work, *queue = answers
    numbers = {name: records.whole(fields, name) for name in COUNTERS}
    state = records.text(fields, "state") or ""
    if state not in STATES:
        known = names.printable(state[:50])
        raise RecordError(f"its state in Redis is none that a run can have: {known}")
    started, ended = records.moment(fields, "started"), records.moment(fields, "ended")
    now = time[0] + time[1] / 1e6
    slots = records.histogram("its timeline", timeline)
    left = max(0, numbers["files"] - numbers["done"] - numbers["failed"] - numbers["skipped"])
    rate = _rate(slots, started, ended, now)
    ranked = records.ranking("its slowest files", slowest)
    longest = ranked[0][1] / 1e6 if ranked else 0.0
    current_files = [
        CurrentFile(member.partition(b":")[2], max(0.0, now - began))
        for member, began in records.ranking("its current files", current)
    ]
    parameters = run.decode(fields["parameters"])
    return Status(
        id=run.id,
        queue=run.queue,
        state=state,
        parameters=parameters,
        **numbers,
        jobs_left=jobs_left,
        created=records.moment(fields, "created") or 0.0,
        started=started,
        ended=ended,
        now=now,
        rate=rate,
        time_left=(
            _time_left(left - at_work, rate, longest, parameters.timeout, current_files)
            if state in ON and alive > 0
            else None
        ),
        durations=records.histogram("its durations", durations),
        shortest=records.whole(fields, "shortest") / 1e6,
        timeline=slots,
        slowest=[(name, microseconds / 1e6) for name, microseconds in ranked],
        causes=causes.of_hash(found, failed),
        current_files=current_files,
        current_files_count=at_work,
        blocking_reason=records.text(fields, "blocking_reason"),
        backlog=_backlog(queue, alive),
    )


def _rate(slots: dict[int, int], started: float | None, ended: float | None, now: float) -> float:
    """Files a second, while workers had jobs of the run: of the last minute's slots while it runs,
    of all once it has ended."""
    if started is None or not slots:
        return 0.0
    age = max((ended or now) - started, 0.0)
    recent = {
        slot: count for slot, count in slots.items() if ended or slot + width(slot) > age - WINDOW
    }
    busy = sum(min(width(slot), max(age - slot, 0.0)) for slot in recent)
    return sum(recent.values()) / max(busy, 1e-3 if ended else 1.0)


def _time_left(
    others: int, rate: float, longest: float, limit: float, current: list[CurrentFile]
) -> float | None:
    """Seconds until all files are through. None if nobody can say.

    A current file is taken to need as long as the slowest one needed; or, if it is past that, to go
    on for as long as it is past it; but not beyond the time limit of a file.
    """
    if rate == 0 and (others > 0 or not current):
        return None
    of_others = max(0, others) / rate if rate else 0.0
    of_current = (min(abs(longest - now), max(0.0, limit - now)) for _, now in current)
    return max([of_others, *of_current])


def width(slot: int) -> int:
    """Seconds of a slot of the timeline; as lua/checkpoint.lua has it."""
    return 5 if slot < 3600 else 60 if slot < 86400 else 600
