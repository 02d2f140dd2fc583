"""From a request to a committed run: list, group, stage, commit."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from redis import Redis
from redis.exceptions import RedisError
from redis.typing import EncodableT, FieldT

from imece import listing, scripts
from imece.connection import connect, text
from imece.cursor import Cursor
from imece.errors import ListingError, RunError
from imece.job import BucketQueue, Reference
from imece.listing import Listing
from imece.run import LISTING_TTL, RUNS, Parameters, Run, leases_key, pending_key
from imece.settings import Settings
from producer import grouping
from producer.grouping import Bucket

STAGED_TTL = 3600
"""Seconds what a dead producer has staged stays in Redis."""

STAGE_BYTES = 2**20
"""About how much is sent to Redis in one go."""

Fields = dict[FieldT, EncodableT]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What would be enqueued."""

    listing: Listing
    shape: grouping.Shape
    buckets: list[Bucket] = field(repr=False)

    @property
    def files(self) -> int:
        return len(self.listing.files)

    @property
    def jobs(self) -> int:
        cap = self.shape.files_per_job
        return sum(1 for bucket in self.buckets for _ in grouping.slices(bucket.files, cap))


def plan(parameters: Parameters, found: Listing) -> Plan:
    """Groups what has been listed.

    Raises:
        ListingError: there are no files, or two would write one output.
    """
    if not found.files:
        left_out = "; ".join(found.omissions())
        raise ListingError(
            f"there are no files to process in {parameters.input}"
            + (f" ({left_out})" if left_out else "")
        )
    suffix = parameters.suffix.encode() if parameters.suffix is not None else None
    listing.check_outputs(found.files, suffix)
    shape = grouping.shape(len(found.files), parameters.buckets, parameters.files_per_job)
    return Plan(found, shape, grouping.group(found.files, shape.buckets, parameters.seed))


@dataclass(frozen=True)
class Enqueued:
    """How an enqueuing went: made anew, resumed after a cancel, or found there already."""

    run: Run
    how: str
    plan: Plan | None = None


class Producer:
    """Makes runs in one Redis."""

    def __init__(self, redis: Redis, settings: Settings, say: Say = lambda text: None) -> None:
        self.redis = redis
        self.settings = settings
        self._say = say
        self._queue = BucketQueue(settings.queue, redis)

    def enqueue(
        self, run_id: str, parameters: Parameters, list_files: Callable[[], Listing]
    ) -> Enqueued:
        """Makes the run; attaches to it if it is there; resumes it if it was cancelled.

        Raises:
            RunError: the id is in use with other parameters, or the run went away meanwhile.
            ListingError: the files cannot be listed or grouped, or there are none.
        """
        run = Run(self.redis, run_id)
        token = secrets.token_hex(4)
        try:
            found = self._find_or_claim(run, parameters, token)
            if found is not None:
                return found
            with self._sign_of_life(run):
                made = plan(parameters, list_files())
                self._stage_and_commit(run, token, parameters, made)
        except BaseException:
            self._withdraw(run, token)
            raise
        return Enqueued(run, "enqueued", made)

    def _find_or_claim(self, run: Run, parameters: Parameters, token: str) -> Enqueued | None:
        """The run that is there already; None once the id is ours."""
        waiting = False
        while not run.claim(parameters, token, self.settings.run_ttl):
            there = run.state_and_parameters()
            if there is None:
                continue  # it has just expired
            state, others = there
            self._check_same(run, others, parameters)
            if state == "cancelled":
                return self.resume(run)
            if state != "listing":
                return Enqueued(run, "attached")
            if not waiting:
                self._say(f"run {run.id} is being listed by another producer: waiting for it")
                waiting = True
            time.sleep(0.5)
        return None

    def _check_same(self, run: Run, there: Parameters, parameters: Parameters) -> None:
        different = there.differences(parameters)
        if different:
            raise RunError(
                f"the run id {run.id} is in use with another {', another '.join(different)}: "
                "take another --run-id, or call with what it was made with"
            )

    @contextmanager
    def _sign_of_life(self, run: Run) -> Iterator[None]:
        """Keeps a listing run from expiring while this process is busy with it."""
        over = threading.Event()
        redis = connect(self.settings, retries=0)

        def renew() -> None:
            while not over.wait(LISTING_TTL / 5):
                try:
                    redis.expire(run.key, LISTING_TTL)
                except RedisError:
                    pass  # the commit finds out

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            redis.close()

    def _withdraw(self, run: Run, token: str) -> None:
        """Takes back what was staged, if Redis can be asked."""
        try:
            state, owner, parts = self.redis.hmget(run.key, "state", "token", "parts")
            if token in text(parts or b"").split(","):
                return  # it was committed after all; only the answer was lost
            if state == b"listing" and owner == token.encode():
                self.redis.delete(run.key)
                self.redis.zrem(RUNS, run.id)
            self.redis.delete(run.staged_key(token), run.manifest_key(token))
        except RedisError:
            pass  # all of it has a TTL

    def _stage_and_commit(self, run: Run, token: str, parameters: Parameters, made: Plan) -> None:
        shape = made.shape
        self._stage(run, token, made.buckets, shape.files_per_job)
        fields: dict[str, str | int] = {
            "files": made.files,
            "buckets": shape.buckets,
            "links_refused": made.listing.links_refused,
        }
        answer = self._commit(run, token, "new", "", fields)
        if answer != "committed":
            raise RunError(f"run {run.id} was cancelled, or taken over, while it was being listed")

    def _stage(self, run: Run, token: str, buckets: list[Bucket], cap: int) -> None:
        """Writes manifests, cursors and RQ's job hashes where no worker looks."""
        manifests: Fields = {}
        references: list[Reference] = []
        cursors: Fields = {}
        size = 0
        for bucket in buckets:
            manifests[str(bucket.number)] = bucket.manifest
            size += len(bucket.manifest)
            for start, stop in grouping.slices(bucket.files, cap):
                reference = Reference(run.id, token, bucket.number, start)
                references.append(reference)
                cursors[reference.field] = Cursor(start, stop).encode()
                size += 1000
            if size > STAGE_BYTES or bucket is buckets[-1]:
                self._send(run, token, manifests, references, cursors)
                manifests, references, cursors, size = {}, [], {}, 0

    def _send(
        self,
        run: Run,
        token: str,
        manifests: Fields,
        references: list[Reference],
        cursors: Fields,
    ) -> None:
        """In a transaction: nothing is ever there without its TTL, whenever this process dies."""
        with self.redis.pipeline() as pipeline:
            pipeline.hset(run.manifest_key(token), mapping=manifests)
            pipeline.hset(run.staged_key(token), mapping=cursors)
            pipeline.expire(run.manifest_key(token), STAGED_TTL)
            pipeline.expire(run.staged_key(token), STAGED_TTL)
            self._queue.stage(references, STAGED_TTL, pipeline)
            pipeline.execute()

    def _commit(
        self, run: Run, token: str, kind: str, generation: str, fields: dict[str, str | int]
    ) -> str:
        queue = self.settings.queue
        keys = [run.key, pending_key(queue), leases_key(queue), "rq:queues", run.staged_key(token)]
        arguments: list[str | bytes | int | float] = [
            token,
            kind,
            generation,
            self.settings.run_ttl,
        ]
        for name, value in fields.items():
            arguments += [name, value]
        answer: bytes = scripts.run("commit", self.redis, keys, arguments)
        return answer.decode()

    def resume(self, run: Run) -> Enqueued:
        """Goes on with a cancelled run where it was."""
        generation = run.generation()
        with self.redis.pipeline() as pipeline:
            self._queue.stage(_unfinished(run), STAGED_TTL, pipeline)
            pipeline.execute()
        answer = self._commit(run, secrets.token_hex(4), "resume", generation, {})
        return Enqueued(run, "resumed" if answer == "committed" else "attached")

    def retry(self, run: Run) -> int:
        """Enqueues the failed files of an ended run again; how many they are.

        Raises:
            RunError: the run has not ended, or no file has failed.
        """
        parameters, state, generation = run.parameters(), run.state(), run.generation()
        if state != "failed":
            mend = {
                "done": "no file has failed",
                "cancelled": f"enqueue it again to resume it, then retry what fails: "
                f"imece enqueue … --run-id {run.id}",
            }.get(state or "", "retry when it has ended")
            raise RunError(f"run {run.id} is {state}: {mend}")
        if parameters.queue != self.settings.queue:
            settings = self.settings.model_copy(update={"queue": parameters.queue})
            return Producer(self.redis, settings, self._say).retry(run)
        token = secrets.token_hex(4)
        failed = [name for name, _ in run.failures()]
        shape = grouping.shape(len(failed), None, parameters.files_per_job)
        self._stage(
            run, token, grouping.group(failed, shape.buckets, parameters.seed), shape.files_per_job
        )
        answer = self._commit(run, token, "retry", generation, {})
        if answer != "committed":
            self._withdraw(run, token)
            raise RunError(f"run {run.id} is {answer} meanwhile: somebody else retries it")
        return len(failed)


def _unfinished(run: Run) -> list[Reference]:
    found = []
    for field_ in run.redis.hkeys(f"{run.key}:jobs"):
        part, bucket, start = text(field_).split("-")
        found.append(Reference(run.id, part, int(bucket), int(start)))
    return found
