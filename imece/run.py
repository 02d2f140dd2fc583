"""A run in Redis: its parameters, and what may be done to it as a whole; keys: imece/keys.py."""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis

from imece import keys, manifest, records, scripts
from imece.connection import raw, text
from imece.cursor import MOST_FILES, Cursor
from imece.errors import RunError
from imece.failure import Failure
from imece.job import Reference
from imece.records import RecordError
from imece.settings import QUEUE

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

SEED = 1
"""The mmh3 seed of new runs; each run records its own."""

CLAIM_TTL = 10
"""Seconds after which the claim of a producer that shows no sign of life is gone."""

ON = frozenset({"queued", "running"})
ENDED = frozenset({"done", "failed", "cancelled"})

SOUND_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
"""What a run's id is made of; see `names.slug`."""

STEP = 1000
"""How many jobs or queue entries one command touches at the most: none takes 20 ms."""

IDENTITY = ("input", "output", "suffix", "queue", "seed")
"""The parameters in which all rounds of a run agree."""


LARGEST_PARAMETERS = 2**20
"""Bytes a run's parameters may have in Redis."""

RANGES: dict[str, tuple[float, float]] = {
    "buckets": (1, 2**32),
    "files_per_job": (1, MOST_FILES),
    "retries": (0, 100),
    "retry_pause": (0, 3600),
    "timeout": (1e-6, 10 * 365 * 86400),
    "seed": (0, 2**32 - 1),
}
"""What numbers the parameters take; as the settings of the same names."""


@dataclass(frozen=True)
class Parameters:
    """What was asked for when the round was enqueued. While it is on, the same run id with others
    is refused; a later round may have others, but for those of `IDENTITY`.

    Attributes:
        input, output: absolute paths, as the producer saw them. No output: the processor keeps
            what it makes elsewhere, and no file is ever skipped.
        suffix: the output names' ending in place of the inputs', or None to keep it.
        source: how the files were found: "directory" or "list".
        buckets, files_per_job: as asked for; None where imece chose.
        retries, retry_pause, timeout: see the settings of the same names.
    """

    input: str
    output: str | None
    suffix: str | None
    overwrite: bool
    source: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    hidden: bool
    buckets: int | None
    files_per_job: int | None
    retries: int
    retry_pause: float
    timeout: float
    queue: str
    seed: int = SEED

    @property
    def input_path(self) -> Path:
        return Path(self.input)

    @property
    def output_path(self) -> Path | None:
        return Path(self.output) if self.output is not None else None

    def encode(self) -> str:
        """JSON, in ASCII: paths that are not UTF-8 survive as lone surrogates."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: bytes | str) -> "Parameters":
        """The parameters in a run's hash.

        Raises:
            RecordError: it is not what `encode` makes.
        """
        try:
            given = records.unpacked(text, LARGEST_PARAMETERS, parts=LARGEST_PARAMETERS // 4)
            for name in ("include", "exclude"):
                if not isinstance(given[name], list):
                    raise ValueError(f"{name} is no list")
                given[name] = tuple(given[name])
            parameters = cls(**given)
        except (ValueError, TypeError, KeyError) as error:
            raise RecordError(f"the run's parameters cannot be read: {error}") from None
        for field in fields(cls):
            if not _fits(getattr(parameters, field.name), field.type):
                raise RecordError(f"the run's parameter {field.name} is not what it should be")
        if flaw := parameters.flaw():
            raise RecordError(f"the run's parameter {flaw}")
        return parameters

    def flaw(self) -> str | None:
        """What no worker would take, by the name of the parameter; None if there is nothing."""
        for name, path in (("input", self.input), ("output", self.output)):
            if path is not None and (flaw := records.path_flaw(path)):
                return f"{name} {flaw}"
        if self.suffix is not None:
            flaw = records.text_flaw(self.suffix)
            if flaw or not self.suffix or "/" in self.suffix:
                return f"suffix {flaw or 'is empty or holds a /'}"
        if len(self.encode()) > LARGEST_PARAMETERS:
            return f"include and exclude are longer than {LARGEST_PARAMETERS} bytes"
        if any(records.text_flaw(glob) for glob in (*self.include, *self.exclude)):
            return "include or exclude holds what no file is named"
        if self.source not in ("directory", "list"):
            return "source is neither directory nor list"
        if not re.fullmatch(QUEUE, self.queue):
            return "queue takes letters, digits, dash and underscore, 64 at most"
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                return f"{name} {value} is not from {least} to {most}"
        return None

    def differences(self, other: "Parameters") -> list[str]:
        """The names of the parameters in which two differ."""
        return [name for name, value in asdict(self).items() if asdict(other)[name] != value]


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON is of the type a field of `Parameters` has."""
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind == tuple[str, ...]:
        return all(isinstance(item, str) for item in value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, as whoever enqueues its next round has to know it.

    Attributes:
        state: None if there is no such run.
        generation: "" if there is no such run.
        held: bucket jobs that a worker has in hand, or died with -> cursor.
    """

    state: str | None
    generation: str
    parts: tuple[str, ...]
    held: dict[bytes, bytes]


class Run:
    """One run, by its id. Holds no state of its own: every call asks Redis."""

    def __init__(self, redis: Redis, run_id: str) -> None:
        self.redis = redis
        self.id = run_id
        self.key = keys.run(run_id)

    def state(self) -> str | None:
        """listing, queued, running, held, done, failed or cancelled; None if there is no such run.
        While a producer lists for the next round of an ended run, that is its state."""
        value, claimed = self._ask("state")
        state = _word(value)
        return "listing" if claimed and state not in ON else state

    def parameters(self) -> Parameters:
        """Raises RunError if there is no such run."""
        found, claimed = self._ask("parameters")
        if found is not None:
            return self.decode(found)
        listed = self.redis.hget(keys.claim(self.id), "parameters") if claimed else None
        if listed is None:
            raise self.missing()
        return self.decode(raw(listed))

    def _ask(self, field: str) -> tuple[bytes | None, bool]:
        """A field of the run's hash, and whether a producer lists for it."""
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.hget(self.key, field)
            pipeline.exists(keys.claim(self.id))
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
        except ValueError as error:
            raise RunError(
                f"run {self.id} was not made by this version of imece: {error}"
            ) from None

    def missing(self) -> RunError:
        return RunError(f"there is no run {self.id}: `imece runs` lists those there are")

    def snapshot(self) -> Snapshot:
        with self.redis.pipeline() as pipeline:
            pipeline.hmget(self.key, "state", "generation", "parts")
            pipeline.hkeys(f"{self.key}:holders")
            (state, generation, parts), holders = pipeline.execute()
        fields = [field for field in holders if b":" not in field]
        cursors = self.redis.hmget(f"{self.key}:jobs", fields) if fields else []
        return Snapshot(
            _word(state),
            _word(generation) or "",
            tuple(part for part in (_word(parts) or "").split(",") if part),
            {
                field: raw(cursor)
                for field, cursor in zip(fields, cursors, strict=True)
                if cursor is not None
            },
        )

    def claim(self, parameters: Parameters, token: str, ttl: int) -> str:
        """Takes the id for a producer that is about to list.

        Returns:
            "claimed"; "listing" if another producer has it; or the state of a run that is on.
        """
        arguments: list[str | bytes | int | float] = [
            self.id, token, CLAIM_TTL, parameters.encode(), ttl,
        ]  # fmt: skip
        return text(scripts.run("claim", self.redis, [self.key, keys.claim(self.id)], arguments))

    def attach(self) -> str | None:
        """Says that somebody waits for the run, which moves it to its next generation.

        Returns:
            The generation: what a cancel by whoever waits must name. None if the run is not on.
        """
        return text(scripts.run("attach", self.redis, [self.key], [])) or None

    def cancel(self, result_ttl: int, generation: str = "") -> None:
        """No new files are started; what is done stays.

        Args:
            generation: the one that is meant; a later one goes on. "" for whichever it is.

        Raises:
            RunError: there is no such run, or it has ended.
        """
        try:
            queue = self.parameters().queue
        except RunError:  # workers drop its jobs where they meet them
            queue = None
        where = [self.key, keys.claim(self.id)]
        answer = text(scripts.run("cancel", self.redis, where, [generation, result_ttl]))
        if answer == "":
            raise self.missing()
        if answer != "cancelled":
            raise RunError(f"run {self.id} is {answer}: there is nothing to cancel")
        if queue is not None:
            self.purge(queue)

    def purge(self, queue: str) -> None:
        """Takes the jobs of a run that is not on out of the queue, piece by piece."""
        where = [self.key, keys.pending(queue)]
        pieces = -(-self.redis.llen(keys.pending(queue)) // STEP)
        for _ in range(pieces):
            if not scripts.run("purge", self.redis, where, [STEP]):
                break

    def hold(self, reason: str) -> bool:
        """Lets a run wait for a person, if it is on."""
        return bool(scripts.run("hold", self.redis, [self.key], [reason]))

    def delete(self) -> None:
        """Removes an ended run from Redis. Outputs stay.

        Raises:
            RunError: there is no such run, or it has not ended.
        """
        answer = text(scripts.run("delete", self.redis, [self.key, keys.claim(self.id)], []))
        if answer == "":
            raise self.missing()
        if answer != "deleted":
            raise RunError(f"run {self.id} is {answer}: `imece cancel {self.id}` first")

    def failures(self) -> Iterator[tuple[bytes, Failure]]:
        """The quarantined files and why, in no order."""
        for name, record in self.redis.hscan_iter(f"{self.key}:failures", count=500):
            output = self.redis.hget(f"{self.key}:outputs", name)
            yield name, Failure.read(record, raw(output) if output is not None else None)

    def unfinished(self) -> dict[tuple[str, int], list[Cursor]]:
        """(part, bucket) -> the cursors of its unfinished bucket jobs."""
        found: dict[tuple[str, int], list[Cursor]] = {}
        for field, cursor in self.redis.hscan_iter(f"{self.key}:jobs", count=STEP):
            reference = Reference.of_field(self.id, field)
            found.setdefault((reference.part, reference.bucket), []).append(Cursor.decode(cursor))
        return found

    def names(self, part: str, bucket: int) -> list[bytes]:
        """The files of one bucket; none if its manifest is gone."""
        blob = self.redis.hget(keys.manifest(self.id, part), str(bucket))
        return manifest.decode(raw(blob)) if blob is not None else []

    def buckets(self, part: str) -> Iterator[tuple[int, list[bytes]]]:
        """The buckets of one part, each with its files."""
        for bucket, blob in self.redis.hscan_iter(keys.manifest(self.id, part), count=10):
            yield int(bucket), manifest.decode(blob)


def _word(value: bytes | None) -> str | None:
    """A word in a run's hash, if it is there."""
    return None if value is None else text(value)


async def attach_async(redis: "AsyncRedis", run_id: str) -> str | None:
    """As `Run.attach`, from an event loop."""
    return text(await scripts.run("attach", redis, [keys.run(run_id)], [])) or None


async def cancel_async(
    redis: "AsyncRedis", run_id: str, queue: str, result_ttl: int, generation: str
) -> str:
    """As `Run.cancel`, from an event loop.

    Returns:
        "cancelled", or the state that forbids it ("" if there is no such run).
    """
    where = [keys.run(run_id), keys.claim(run_id)]
    answer = text(await scripts.run("cancel", redis, where, [generation, result_ttl]))
    if answer == "cancelled":
        pieces = -(-await redis.llen(keys.pending(queue)) // STEP)
        for _ in range(pieces):
            where = [keys.run(run_id), keys.pending(queue)]
            if not await scripts.run("purge", redis, where, [STEP]):
                break
    return answer


def recent(redis: Redis) -> list[str]:
    """The ids of all runs, newest first. Those that have expired are dropped from the list."""
    found = (raw(run_id) for run_id in redis.zrevrange(keys.RUNS, 0, -1))
    ids = [run_id.decode() for run_id in found if SOUND_ID.fullmatch(run_id)]
    with redis.pipeline(transaction=False) as pipeline:
        for run_id in ids:
            pipeline.exists(keys.run(run_id), keys.claim(run_id))
        present = pipeline.execute()
    expired = [run_id for run_id, there in zip(ids, present, strict=True) if not there]
    if expired:
        redis.zrem(keys.RUNS, *expired)
    return [run_id for run_id, there in zip(ids, present, strict=True) if there]


def text_path(path: Path) -> str:
    """A path as text that `Parameters` can hold, whatever bytes are in it."""
    return os.fsdecode(path)
