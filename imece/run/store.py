"""A run in Redis, and what may be done to it as a whole. Its keys are in imece/run/keys.py."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from imece.connection import is_outage, raw, text
from imece.errors import RunError
from imece.run import causes, keys, manifest, records, scripts
from imece.run.causes import Cause
from imece.run.failure import Failure
from imece.run.job import Cursor, Reference
from imece.run.parameters import FormatError, Parameters
from imece.run.records import RecordError

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

CLAIM_TTL = 10
"""Seconds after which the claim of a producer that shows no sign of life is gone."""

ON = frozenset({"queued", "running"})
ENDED = frozenset({"done", "failed", "cancelled"})

SOUND_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
"""What a run's id is made of; see `names.slug`."""

STEP = 1000
"""The most jobs or queue entries that one command touches: none takes 20 ms."""

LOST_NAMES = "names of its files are gone from Redis"


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, as a producer needs it that enqueues the next round.

    Attributes:
        state: None if there is no such run.
        generation: "" if there is no such run.
        failed: how many files have failed.
        held: bucket jobs that a worker has, or died with -> cursor.
    """

    state: str | None
    generation: str
    parts: tuple[str, ...]
    failed: int
    held: dict[bytes, bytes]


@dataclass(frozen=True)
class Damage:
    """What somebody has done to a run's records: what is wrong and how to fix it, and the command
    that helps. "enqueue" makes the records again, "delete" removes them, "resume" goes on with them
    elsewhere."""

    helps: str
    what: str


REMEDIES = {
    "enqueue": "`imece enqueue IN OUT --run-id {}` lists the files again",
    "resume": "give producer and workers the same version, then `imece resume {0}`; or "
    "`imece delete {0}`, which leaves its outputs, and enqueue it again",
    "delete": "`imece delete {}` removes the run and leaves its outputs; then enqueue it again",
}


class Run:
    """One run of a queue, by its id. Holds no state of its own: every call asks Redis."""

    def __init__(self, redis: Redis, queue: str, run_id: str) -> None:
        self.redis = redis
        self.queue = queue
        self.id = run_id
        self.key = keys.run(queue, run_id)

    def state(self) -> str | None:
        """listing, queued, running, held, done, failed or cancelled; None if there is no such run.
        While a producer lists for the next round of an ended run, that is its state."""
        value, claimed = self._ask("state")
        state = _word(value)
        return "listing" if claimed and state not in ON else state

    def parameters(self) -> Parameters:
        """Raises RunError if there is no such run."""
        found, claimed = self._ask("parameters")
        listed = self.redis.hget(keys.claim(self.key), "parameters") if claimed else None
        if found is not None or listed is not None:
            return self.decode(raw(listed if found is None else found))
        if self.redis.exists(self.key):
            raise self.unusable("its parameters are gone from Redis")
        raise self.missing()

    def readable_parameters(self) -> Parameters | None:
        """None if there are none: a run that nobody can read can be cancelled and deleted, too."""
        try:
            with self.explained():
                return self.parameters()
        except RunError:
            return None

    def _ask(self, field: str) -> tuple[bytes | None, bool]:
        """A field of the run's hash, and whether a producer lists for it."""
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.hget(self.key, field)
            pipeline.exists(keys.claim(self.key))
            value, claimed = pipeline.execute()
        return value, bool(claimed)

    def state_and_parameters(self) -> tuple[str, Parameters] | None:
        """Both as they were at one moment, listing apart; None if there is no such run."""
        state, parameters = self.redis.hmget(self.key, "state", "parameters")
        if state is None or parameters is None:
            return None
        return text(state), self.decode(raw(parameters))

    def decode(self, parameters: bytes) -> Parameters:
        """Raises RunError if they are not what this version of imece writes."""
        try:
            return Parameters.decode(parameters)
        except FormatError as error:
            raise self.unusable(str(error), "resume") from None
        except ValueError as error:
            why = f"it was not made by this version of imece: {error}"
            raise self.unusable(why, "delete") from None

    def missing(self) -> RunError:
        return RunError(f"there is no run {self.id}: `imece runs` lists those there are")

    def unusable(self, what: str, helps: str = "enqueue") -> RunError:
        """The error for records that somebody has removed or changed."""
        return RunError(f"run {self.id} cannot be used: {self.remedy(what, helps)}")

    def remedy(self, what: str, helps: str = "enqueue") -> str:
        """What is wrong with the run's records, and the command that helps; see `REMEDIES`."""
        return f"{what}: {REMEDIES[helps].format(self.id)}"

    def damage(self, hold: bool = False) -> Damage | None:
        """What somebody has done to the run's records, if it cannot continue like that.

        Args:
            hold: make the run wait for a person then, if it is on.
        """
        found = scripts.run("look", self.redis, [self.key], [])
        if found is not None:
            generation, helps, what = map(text, found)
        else:
            number, parameters = self.redis.hmget(self.key, "generation", "parameters")
            if parameters is None:
                return None  # there is no such run
            try:
                Parameters.decode(raw(parameters))
                return None
            except RecordError as error:
                helps = "resume" if isinstance(error, FormatError) else "delete"
                generation, what = text(number or b""), str(error)
        damage = Damage(helps, self.remedy(what, helps))
        if hold:
            self.hold(damage.what, generation)
        return damage

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns what is found inside of damaged records into a RunError that says what helps."""
        try:
            yield
        except RecordError as error:
            raise self.unusable(str(error)) from None
        except ResponseError as error:
            if is_outage(error) or isinstance(error, NoPermissionError):
                raise
            if (damage := self.damage()) is None:
                raise
            raise RunError(f"run {self.id} cannot be used: {damage.what}") from None

    def snapshot(self) -> Snapshot:
        with self.redis.pipeline() as pipeline:
            pipeline.hmget(self.key, "state", "generation", "parts")
            pipeline.hkeys(f"{self.key}:holders")
            pipeline.hlen(f"{self.key}:failures")
            (state, generation, parts), holders, failed = pipeline.execute()
        fields = [field for field in holders if b":" not in field]
        cursors = self.redis.hmget(f"{self.key}:jobs", fields) if fields else []
        held = {
            field: raw(cursor)
            for field, cursor in zip(fields, cursors, strict=True)
            if cursor is not None
        }
        named = tuple(part for part in text(parts or b"").split(",") if part)
        return Snapshot(_word(state), text(generation or b""), named, failed, held)

    def claim(self, parameters: Parameters, token: str, ttl: int) -> str:
        """Takes the id for a producer that is about to list.

        Returns:
            "claimed"; "listing" if another producer has it; or the state of a run that is on.
        """
        where = [self.key, keys.claim(self.key)]
        arguments: scripts.Arguments = [token, CLAIM_TTL, parameters.encode(), ttl]
        return text(scripts.run("claim", self.redis, where, arguments))

    def attach(self) -> str | None:
        """Says that somebody waits for the run, and moves it to its next generation.

        Returns:
            The generation. A cancel by the one that waits must name it. None if the run is not on.
        """
        return text(scripts.run("attach", self.redis, [self.key], [])) or None

    def cancel(self, result_ttl: int, generation: str = "") -> None:
        """No new files are started; what is done stays.

        Args:
            generation: cancel only this one; a later one continues. "" for any.

        Raises:
            RunError: there is no such run, or it has ended.
        """
        where = [self.key, keys.claim(self.key)]
        answer = text(scripts.run("cancel", self.redis, where, [generation, result_ttl]))
        if answer == "":
            raise self.missing()
        if answer != "cancelled":
            raise RunError(f"run {self.id} is {answer}: there is nothing to cancel")
        self.purge()

    def purge(self) -> None:
        """Takes the jobs of a run that is not on out of the queue, piece by piece."""
        where = [self.key, keys.pending(self.queue)]
        pieces = -(-self.redis.llen(keys.pending(self.queue)) // STEP)
        for _ in range(pieces):
            if not scripts.run("purge", self.redis, where, [STEP]):
                break

    def hold(self, reason: str, generation: str = "") -> bool:
        """Makes a run wait for a person, if it is on.

        Args:
            generation: hold only this one; "" for any.
        """
        return bool(scripts.run("hold", self.redis, [self.key], [reason, generation]))

    def delete(self) -> None:
        """Removes an ended run from Redis, and one whose records cannot be used, whatever its
        state. Outputs stay.

        Raises:
            RunError: there is no such run, or it has not ended.
        """
        unreadable = self.readable_parameters() is None
        where = [self.key, keys.claim(self.key)]
        answer = text(scripts.run("delete", self.redis, where, [int(unreadable)]))
        left: list[bytes] = []
        if unreadable and answer in ("", "deleted"):  # its parts may not be known
            left = list(self.redis.scan_iter(match=f"{self.key}:*", count=STEP))
        if left:
            self.redis.unlink(*left)
        elif answer == "":
            raise self.missing()
        if answer not in ("", "deleted"):
            raise RunError(f"run {self.id} is {answer}: `imece cancel {self.id}` first")

    def forget_names(self) -> None:
        """Removes the names of its files, which nobody needs once all are done."""
        parts = text(self.redis.hget(self.key, "parts") or b"").split(",")
        self.redis.unlink(*(keys.manifest(self.key, part) for part in parts))

    def failures(self) -> Iterator[tuple[bytes, Failure]]:
        """The quarantined files and why, in no order."""
        found = self.redis.hscan_iter(f"{self.key}:failures", count=STEP)
        while page := list(islice(found, STEP)):
            outputs = self.redis.hmget(f"{self.key}:outputs", [name for name, _ in page])
            for (name, record), output in zip(page, outputs, strict=True):
                yield name, Failure.read(record, raw(output) if output is not None else None)

    def causes(self) -> list[Cause]:
        """What the quarantined files of this round have in common, by number."""
        with self.redis.pipeline() as pipeline:
            pipeline.hlen(f"{self.key}:failures")
            pipeline.hgetall(f"{self.key}:causes")
            failed, found = pipeline.execute()
        return causes.of_hash(found, failed)

    def unfinished(self) -> dict[tuple[str, int], list[Cursor]]:
        """(part, bucket) -> the cursors of its unfinished bucket jobs."""
        found: dict[tuple[str, int], list[Cursor]] = {}
        for field, cursor in self.redis.hscan_iter(f"{self.key}:jobs", count=STEP):
            reference = Reference.of_field(self.id, field)
            found.setdefault((reference.part, reference.bucket), []).append(Cursor.decode(cursor))
        return found

    def open_files(self) -> int:
        """How many files of the last round are not done: failed, in a worker, or not started."""
        names = ("files", "done", "skipped")
        values = [raw(value or b"0") for value in self.redis.hmget(self.key, names)]
        found = dict(zip(names, values, strict=True))
        files, *through = (records.whole(found, name) for name in names)
        return files - sum(through)

    def names(self, part: str, bucket: int) -> list[bytes]:
        """The files of one bucket.

        Raises:
            RecordError: its manifest is gone, or is none.
        """
        blob = self.redis.hget(keys.manifest(self.key, part), str(bucket))
        if blob is None:
            raise RecordError(LOST_NAMES)
        return manifest.decode(raw(blob))

    def buckets(self, part: str) -> Iterator[tuple[int, list[bytes]]]:
        """The buckets of one part, each with its files."""
        for bucket, blob in self.redis.hscan_iter(keys.manifest(self.key, part), count=10):
            yield records.whole({"a bucket": bucket}, "a bucket"), manifest.decode(blob)


def _word(value: bytes | None) -> str | None:
    """A word in a run's hash, if it is there."""
    return None if value is None else text(value)


async def attach_async(redis: "AsyncRedis", queue: str, run_id: str) -> str | None:
    """As `Run.attach`, from an event loop."""
    return text(await scripts.run("attach", redis, [keys.run(queue, run_id)], [])) or None


async def cancel_async(
    redis: "AsyncRedis", queue: str, run_id: str, result_ttl: int, generation: str
) -> str:
    """As `Run.cancel`, from an event loop.

    Returns:
        "cancelled", or the state that forbids it ("" if there is no such run).
    """
    run, pending = keys.run(queue, run_id), keys.pending(queue)
    where = [run, keys.claim(run)]
    answer = text(await scripts.run("cancel", redis, where, [generation, result_ttl]))
    if answer == "cancelled":
        pieces = -(-await redis.llen(pending) // STEP)
        for _ in range(pieces):
            if not await scripts.run("purge", redis, [run, pending], [STEP]):
                break
    return answer


def recent(redis: Redis, queue: str) -> list[str]:
    """The ids of a queue's runs, newest first. Expired ones are dropped from the list."""
    listed = keys.runs(queue)
    found = (raw(run_id) for run_id in redis.zrevrange(listed, 0, -1))
    ids = [run_id.decode() for run_id in found if SOUND_ID.fullmatch(run_id)]
    with redis.pipeline(transaction=False) as pipeline:
        for run_id in ids:
            run = keys.run(queue, run_id)
            pipeline.exists(run, keys.claim(run))
        there = dict(zip(ids, pipeline.execute(), strict=True))
    if expired := [run_id for run_id in ids if not there[run_id]]:
        redis.zrem(listed, *expired)
    return [run_id for run_id in ids if there[run_id]]
