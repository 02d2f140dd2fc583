"""From a request to a committed round of a run: list, group, stage, commit."""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from redis import Redis
from redis.exceptions import RedisError
from redis.typing import EncodableT, FieldT

from imece.connection import connect, text
from imece.errors import RunError
from imece.files.listing import Listing
from imece.run import keys, rescue, scripts
from imece.run.cursor import Cursor
from imece.run.job import Reference
from imece.run.parameters import IDENTITY, Parameters
from imece.run.records import RecordError
from imece.run.store import CLAIM_TTL, LOST_NAMES, ON, STEP, Run, Snapshot
from imece.settings import Settings
from imece_producer import grouping
from imece_producer.grouping import Bucket
from imece_producer.outcomes import done, not_done, open_files
from imece_producer.overlap import Overlap
from imece_producer.plan import Plan, group, plan

STAGED_TTL = 3600
"""Seconds what a dead producer has staged stays in Redis."""

STAGE_BYTES = 2**20
"""About how much is sent to Redis in one go."""

TURN = 0.2
"""Seconds between two looks at a run that somebody else is busy with."""

MOST_LOOKS = 150
"""How often a commit is tried anew because a job in hand has moved meanwhile."""

Fields = dict[FieldT, EncodableT]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Enqueued:
    """How an enqueuing went: "enqueued" as a new run or the next round of an ended one, "resumed"
    as the next round of a cancelled or held one, or "attached" to a run that is on.

    Attributes:
        again: the files that were in hand, or are known to be done: not part of the plan.
    """

    run: Run
    how: str
    plan: Plan | None = None
    again: int = 0


@dataclass
class _Round:
    """The files of a next round, sorted by what is to be done with them.

    Attributes:
        kept: the jobs in hand that go on; the records of the others are damaged.
    """

    files: list[bytes]
    finished: list[bytes]
    in_hand: int
    kept: set[bytes]


class Producer:
    """Makes runs in one Redis."""

    def __init__(self, redis: Redis, settings: Settings, say: Say = lambda text: None) -> None:
        self.redis = redis
        self.settings = settings
        self._say = say

    def enqueue(
        self, run_id: str, parameters: Parameters, list_files: Callable[[], Listing]
    ) -> Enqueued:
        """Makes the run, or the next round of an ended one; attaches to it if it is on.

        A next round lists again. Workers skip what is current, by looking at the outputs. Where
        there are none to see (no output directory), what an unfinished round has done is not done
        again.

        Raises:
            RunError: the id is in use with other parameters, the run went away meanwhile, or
                another run makes one of the outputs of another input.
            ListingError: the files cannot be listed or grouped, or there are none.
        """
        run = Run(self.redis, run_id)
        token = secrets.token_hex(4)
        with run.explained(), self._claimed(run, token):
            self._make_way(run)
            if not self._claim(run, parameters, token):
                return Enqueued(run, "attached")
            made = plan(parameters, list_files())
            state, again = self._next_round(run, token, parameters, made)
        rescue.clear_output(run, parameters)
        how = "resumed" if state in ("cancelled", "held") else "enqueued"
        return Enqueued(run, how, made, again)

    def again(self, run: Run) -> int:
        """Enqueues the unfinished and the failed files of a run that is not on; how many they are.

        The names are those in Redis: nothing is listed, so this works where the files are not seen.

        Raises:
            RunError: the run is on, or there is no such file.
        """
        with run.explained():
            return self._again(run)

    def _again(self, run: Run) -> int:
        if (damage := run.damage()) is not None:
            run.hold(damage.what, damage.generation)
            raise RunError(f"run {run.id} cannot be used: {damage.what}")
        parameters, state = run.parameters(), run.state()
        if state in ON or state == "listing":
            raise RunError(f"run {run.id} is {state}: call this again when it has ended")
        if parameters.queue != self.settings.queue:
            settings = self.settings.model_copy(update={"queue": parameters.queue})
            return Producer(self.redis, settings, self._say)._again(run)
        token = secrets.token_hex(4)
        with self._claimed(run, token):
            if not self._claim(run, parameters, token):
                raise RunError(f"run {run.id} is on: somebody else has enqueued it again")
            files = list(not_done(run))
            if len(files) < run.open_files():  # looked at after them: it only becomes less
                raise run.unusable(LOST_NAMES)
            if not files:
                raise RunError(f"run {run.id} is {state}: no file has failed, and none is left")
            made = Plan(Listing(files), *group(parameters, files))
            self._next_round(run, token, parameters, made, only_these=True)
        return len(files)

    def _make_way(self, run: Run) -> None:
        """Holds a run that is on and cannot go on, for what somebody has done to its records: this
        enqueuing makes them anew, if it can."""
        damage = run.damage()
        if damage is not None:
            if damage.helps != "enqueue":
                raise RunError(f"run {run.id} cannot be used: {damage.what}")
            run.hold(damage.what, damage.generation)

    def _claim(self, run: Run, parameters: Parameters, token: str) -> bool:
        """Takes the run's id. False if the run is on: then there is nothing to enqueue."""
        waiting, unreadable = False, 0
        while True:
            there = run.state_and_parameters()
            if there is not None:
                self._check_same(run, *there, parameters)
            answer = run.claim(parameters, token, self.settings.run_ttl)
            if answer == "claimed":
                return True
            if answer != "listing":
                if there is not None:
                    self._put_back_lost()
                    return False
                unreadable += 1  # it has just come up; or it is broken
                if unreadable == MOST_LOOKS:
                    raise RunError(f"run {run.id} is {answer}, and has no parameters in Redis")
                time.sleep(TURN)
                continue
            if not waiting:
                self._say(f"run {run.id} is being listed by another producer: waiting for it")
                waiting = True
            time.sleep(TURN)

    def _check_same(self, run: Run, state: str, there: Parameters, wanted: Parameters) -> None:
        different = there.differences(wanted)
        if state not in ON:
            different = [name for name in different if name in IDENTITY]
        if different:
            raise RunError(
                f"the run id {run.id} is in use with another {', another '.join(different)}: "
                "take another --run-id, or call with what it was made with"
            )

    def _put_back_lost(self) -> None:
        """The workers do so, too; but there may be none, because the queue looks empty."""
        queue = self.settings.queue
        missing, _ = rescue.put_back_lost(self.redis, queue, set())
        if missing:
            time.sleep(TURN)
            rescue.put_back_lost(self.redis, queue, missing)

    @contextmanager
    def _claimed(self, run: Run, token: str) -> Iterator[None]:
        """Keeps the claim alive while this process is busy; takes everything back if that fails,
        the claim too, which may be there though its answer never came."""
        over = threading.Event()
        redis = connect(self.settings, retries=0)

        def renew() -> None:
            while not over.wait(CLAIM_TTL / 5):
                try:
                    scripts.run("renew", redis, [keys.claim(run.id)], [token, CLAIM_TTL])
                except RedisError:
                    pass  # the commit finds out

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._withdraw(run, token, with_claim=True)
            raise
        finally:
            over.set()
            thread.join()
            redis.close()

    def _withdraw(self, run: Run, token: str, with_claim: bool = False) -> None:
        """Takes back what was staged, if Redis can be asked."""
        staged = [keys.staged(run.id, token), keys.order(run.id, token)]
        parts = [keys.manifest(run.id, part) for part in (token, _finished_part(token))]
        where = [run.key, keys.claim(run.id), *staged, *parts]
        try:
            scripts.run("withdraw", self.redis, where, [token, run.id, int(with_claim)])
        except RedisError:
            pass  # all of it has a TTL

    def _next_round(
        self, run: Run, token: str, parameters: Parameters, made: Plan, only_these: bool = False
    ) -> tuple[str | None, int]:
        """Stages and commits; what the run's state was, and how many files are not in the plan's
        jobs because they are in hand, or known to be done."""
        overlap = Overlap(run, parameters, made.listing.files)
        for _ in range(MOST_LOOKS):
            before = run.snapshot()
            sorted_out = self._sort_out(run, before, parameters, made, only_these)
            if len(sorted_out.files) == made.files:
                shape, buckets = made.shape, made.buckets
            else:
                shape, buckets = group(parameters, sorted_out.files)
            self._stage(run, token, buckets, shape.files_per_job)
            parts = [token]
            if sorted_out.finished:
                parts.append(_finished_part(token))
                finished = group(parameters, sorted_out.finished)[1]
                self._stage(run, parts[-1], finished, None)
            parts += [part for part in before.parts if part in _parts_of(sorted_out.kept)]
            if only_these:  # what the rest of the files came to is still known
                parts += [part for part in before.parts if part not in parts]
            fields: dict[str, str | int] = {
                "parameters": parameters.encode(),
                "parts": ",".join(parts),
                "files": len(sorted_out.files) + len(sorted_out.finished) + sorted_out.in_hand,
                "skipped": len(sorted_out.finished),
                "buckets": shape.buckets,
                "links_refused": made.listing.links_refused,
            }
            jobs = grouping.jobs(buckets, shape.files_per_job)
            answer = "overtaken"
            while answer == "overtaken":
                overlap.compare()
                answer = self._commit(
                    run, token, before, sorted_out.kept, jobs, fields, overlap.seen
                )
            if answer == "committed":
                return before.state, len(sorted_out.finished) + sorted_out.in_hand
            if answer != "changed":
                break
            self._withdraw(run, token)
            time.sleep(TURN)
        raise RunError(f"run {run.id} was cancelled, or taken over, while it was being enqueued")

    def _sort_out(
        self, run: Run, before: Snapshot, parameters: Parameters, made: Plan, only_these: bool
    ) -> _Round:
        """Leaves out the files of jobs that a worker has in hand, so that none is begun a second
        time, and those that are done though no worker could see it."""
        files = made.listing.files
        in_hand: set[bytes] = set()
        kept: set[bytes] = set()
        count = 0
        for field_, text_ in before.held.items():
            try:
                reference, cursor = Reference.of_field(run.id, field_), Cursor.decode(text_)
                names = run.names(reference.part, reference.bucket)
                of_job = open_files(names, [cursor])
            except RecordError:
                continue
            kept.add(field_)
            count += len(of_job)
            in_hand.update(of_job)
        finished: set[bytes] = set()
        interrupted = before.state in ("cancelled", "held", "failed")
        if parameters.output is None and interrupted and not only_these:
            finished = done(run, before.parts).intersection(files) - in_hand
        if not in_hand and not finished:
            return _Round(files, [], 0, kept)
        left = [name for name in files if name not in in_hand and name not in finished]
        return _Round(left, list(finished), count, kept)

    def _stage(self, run: Run, part: str, buckets: list[Bucket], cap: int | None) -> None:
        """Writes manifests, cursors and their order where no worker looks. No `cap`: no cursors."""
        manifests: Fields = {}
        cursors: Fields = {}
        size = 0
        for bucket in buckets:
            manifests[str(bucket.number)] = bucket.manifest
            size += len(bucket.manifest)
            for start, stop in grouping.slices(bucket.files, cap) if cap is not None else ():
                reference = Reference(run.id, part, bucket.number, start)
                cursors[reference.field] = Cursor(start, stop).encode()
                if len(cursors) == STEP:
                    self._send(run, part, manifests, cursors)
                    manifests, cursors, size = {}, {}, 0
            if size > STAGE_BYTES:
                self._send(run, part, manifests, cursors)
                manifests, cursors, size = {}, {}, 0
        if manifests or cursors:
            self._send(run, part, manifests, cursors)

    def _send(self, run: Run, part: str, manifests: Fields, cursors: Fields) -> None:
        """In a transaction: nothing is ever there without its TTL, whenever this process dies."""
        with self.redis.pipeline() as pipeline:
            if manifests:
                pipeline.hset(keys.manifest(run.id, part), mapping=manifests)
                pipeline.expire(keys.manifest(run.id, part), STAGED_TTL)
            if cursors:
                pipeline.hset(keys.staged(run.id, part), mapping=cursors)
                pipeline.expire(keys.staged(run.id, part), STAGED_TTL)
                pipeline.rpush(keys.order(run.id, part), *cursors)
                pipeline.expire(keys.order(run.id, part), STAGED_TTL)
            pipeline.execute()

    def _commit(
        self,
        run: Run,
        token: str,
        before: Snapshot,
        kept: set[bytes],
        jobs: int,
        fields: dict[str, str | int],
        seen: float,
    ) -> str:
        queue = self.settings.queue
        where = [
            run.key,
            keys.claim(run.id),
            keys.pending(queue),
            keys.leases(queue),
            keys.QUEUES,
            keys.staged(run.id, token),
            keys.order(run.id, token),
        ]
        held: list[str | bytes | int | float] = []
        for field_, cursor in before.held.items():
            held += [field_, cursor, int(field_ in kept)]
        arguments: list[str | bytes | int | float] = [
            token,
            before.generation,
            self.settings.run_ttl,
            self.settings.result_ttl,
            jobs,
            repr(seen),
            len(before.held),
            *held,
            *chain.from_iterable(fields.items()),
        ]
        return text(scripts.run("commit", self.redis, where, arguments))


def _finished_part(token: str) -> str:
    """The part of a manifest that holds, without jobs, the files that are done already."""
    return f"{int(token, 16) ^ 1:08x}"


def _parts_of(fields: Iterable[bytes]) -> set[str]:
    return {text(field_).split("-")[0] for field_ in fields}
