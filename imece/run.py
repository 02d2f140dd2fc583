"""A run in Redis: its keys, its parameters, and what may be done to it as a whole.

imece:run:<id>                    hash: state, generation, parameters, counters, times
imece:run:<id>:manifest:<part>    hash: bucket -> manifest; a part for each enqueuing
imece:run:<id>:jobs               hash: unfinished bucket job -> cursor
imece:run:<id>:holders            hash: bucket job -> executions that held it, last batch number
imece:run:<id>:failures, :outputs hashes: quarantined file -> record, what it printed
imece:run:<id>:durations          hash: exponent -> files that took [2^(e-1), 2^e) microseconds
imece:run:<id>:timeline           hash: seconds since start -> files ended in that slot
imece:run:<id>:slowest            sorted set: the ten slowest files seen at checkpoints
imece:run:<id>:staged:<token>     hash: cursors of an enqueuing that is not committed yet
imece:runs                        sorted set: run id by time of creation
"""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis

from imece import records, scripts
from imece.connection import raw, text
from imece.cursor import MOST_FILES
from imece.errors import RunError
from imece.failure import Failure
from imece.records import RecordError
from imece.settings import QUEUE

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

RUNS = "imece:runs"
SEED = 1
"""The mmh3 seed of new runs; each run records its own."""

LISTING_TTL = 10
"""Seconds after which the run of a producer that shows no sign of life is gone."""

ENDED = frozenset({"done", "failed", "cancelled"})


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
    """What was asked for when the run was made. The same run id with others is refused.

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


class Run:
    """One run, by its id. Holds no state of its own: every call asks Redis."""

    def __init__(self, redis: Redis, run_id: str) -> None:
        self.redis = redis
        self.id = run_id
        self.key = f"imece:run:{run_id}"

    def state(self) -> str | None:
        """listing, queued, running, done, failed or cancelled; None if there is no such run."""
        value = self.redis.hget(self.key, "state")
        return text(value) if value is not None else None

    def parameters(self) -> Parameters:
        """Raises RunError if there is no such run."""
        found = self.redis.hget(self.key, "parameters")
        if found is None:
            raise self.missing()
        return self.decode(raw(found))

    def state_and_parameters(self) -> tuple[str, Parameters] | None:
        """Both as they were at one moment; None if there is no such run."""
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

    def generation(self) -> str:
        return text(self.redis.hget(self.key, "generation") or b"0")

    def missing(self) -> RunError:
        return RunError(f"there is no run {self.id}: `imece runs` lists those there are")

    def manifest_key(self, part: str) -> str:
        return f"{self.key}:manifest:{part}"

    def staged_key(self, token: str) -> str:
        return f"{self.key}:staged:{token}"

    def claim(self, parameters: Parameters, token: str, ttl: int) -> bool:
        """Takes the id for a new run, in state listing. False if it is taken already."""
        arguments: list[str | bytes | int | float] = [
            self.id, token, LISTING_TTL, parameters.encode(), ttl,
        ]  # fmt: skip
        return bool(scripts.run("claim", self.redis, [self.key], arguments))

    def attach(self) -> str | None:
        """Says that somebody waits for the run, which moves it to its next generation.

        Returns:
            The generation: what a cancel by whoever waits must name. None if the run is not on.
        """
        return text(scripts.run("attach", self.redis, [self.key], [])) or None

    def cancel(self, result_ttl: int, generation: str = "", grace: float = 0.0) -> None:
        """No new files are started; what is done stays.

        Args:
            generation: the one that is meant; a later one goes on. "" for whichever it is.
            grace: seconds within which an attaching calls it off.

        Raises:
            RunError: there is no such run, or it has ended.
        """
        queue = self.parameters().queue
        keys = [self.key, pending_key(queue)]
        answer = text(scripts.run("cancel", self.redis, keys, [generation, result_ttl, grace]))
        if answer == "":
            raise self.missing()
        if answer != "cancelled":
            raise RunError(f"run {self.id} is {answer}: there is nothing to cancel")

    def delete(self) -> None:
        """Removes an ended run from Redis. Outputs stay.

        Raises:
            RunError: there is no such run, or it has not ended.
        """
        state = self.state()
        if state is None:
            raise self.missing()
        if state not in ENDED:
            raise RunError(f"run {self.id} is {state}: `imece cancel {self.id}` first")
        with self.redis.pipeline() as pipeline:
            for key in self.redis.scan_iter(match=f"{self.key}:*", count=1000):
                pipeline.unlink(key)
            pipeline.unlink(self.key)
            pipeline.zrem(RUNS, self.id)
            pipeline.execute()

    def failures(self) -> Iterator[tuple[bytes, Failure]]:
        """The quarantined files and why, in no order."""
        for name, record in self.redis.hscan_iter(f"{self.key}:failures", count=500):
            output = self.redis.hget(f"{self.key}:outputs", name)
            yield name, Failure.decode(record, raw(output) if output is not None else None)


async def attach_async(redis: "AsyncRedis", run_id: str) -> str | None:
    """As `Run.attach`, from an event loop."""
    return text(await scripts.run("attach", redis, [f"imece:run:{run_id}"], [])) or None


async def cancel_async(
    redis: "AsyncRedis", run_id: str, queue: str, result_ttl: int, generation: str, grace: float
) -> str:
    """As `Run.cancel`, from an event loop, and in one call.

    Returns:
        "cancelled", or the state that forbids it ("" if there is no such run).
    """
    keys = [f"imece:run:{run_id}", pending_key(queue)]
    return text(await scripts.run("cancel", redis, keys, [generation, result_ttl, grace]))


def recent(redis: Redis) -> list[str]:
    """The ids of all runs, newest first. Those that have expired are dropped from the list."""
    ids = [text(run_id) for run_id in redis.zrevrange(RUNS, 0, -1)]
    with redis.pipeline(transaction=False) as pipeline:
        for run_id in ids:
            pipeline.exists(f"imece:run:{run_id}")
        present = pipeline.execute()
    expired = [run_id for run_id, there in zip(ids, present, strict=True) if not there]
    if expired:
        redis.zrem(RUNS, *expired)
    return [run_id for run_id, there in zip(ids, present, strict=True) if there]


def pending_key(queue: str) -> str:
    """RQ's list of waiting jobs. What KEDA counts, with the two below."""
    return f"rq:queue:{queue}"


def moving_key(queue: str) -> str:
    """RQ's list of jobs between the queue and a lease."""
    return f"rq:queue:{queue}:intermediate"


def leases_key(queue: str) -> str:
    """RQ's sorted set of `job:execution` by expiry: the jobs in flight."""
    return f"rq:wip:{queue}"


def text_path(path: Path) -> str:
    """A path as text that `Parameters` can hold, whatever bytes are in it."""
    return os.fsdecode(path)
