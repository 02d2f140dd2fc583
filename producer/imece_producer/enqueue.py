"""From a request to a committed round of a run: list, compare, group, stage, commit."""

import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from redis import Redis
from redis.exceptions import RedisError
from redis.typing import EncodableT, FieldT

from imece.connection import connect, raw, text
from imece.errors import RunError
from imece.files.current import BY_TIME, Rules
from imece.files.listing import Listing, check_outputs
from imece.run import causes, dead_workers, keys, scripts
from imece.run.causes import NOT_KNOWN, numbers
from imece.run.failure import Failure
from imece.run.job import Cursor, Reference
from imece.run.parameters import IDENTITY, Parameters
from imece.run.store import CLAIM_TTL, LOST_NAMES, ON, STEP, Run, Snapshot
from imece.settings import Settings
from imece_producer import grouping, plan, versions
from imece_producer.grouping import Bucket
from imece_producer.overlap import Overlap
from imece_producer.plan import Plan
from imece_producer.rounds import Selection, not_done

STAGED_TTL = 3600
"""Seconds what a dead producer has staged stays in Redis."""

STAGE_BYTES = 2**20
"""About how much is sent to Redis at a time."""

TURN = 0.2
"""Seconds between two looks at a run that somebody else is busy with."""

MOST_LOOKS = 150
"""How often a commit is tried again because a job that a worker has has moved."""

Fields = dict[FieldT, EncodableT]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Enqueued:
    """How an enqueuing went: "enqueued" as a new run or the next round of an ended one, "resumed"
    as the next round of a cancelled or held one, or "attached" to a run that is on."""

    run: Run
    how: str
    plan: Plan | None = None


class Producer:
    """Makes runs in one Redis."""

    def __init__(self, redis: Redis, settings: Settings, say: Say = lambda text: None) -> None:
        self.redis = redis
        self.settings = settings
        self._say = say

    def enqueue(
        self,
        run_id: str,
        parameters: Parameters,
        list_files: Callable[[], Listing],
        rules: Rules = BY_TIME,
    ) -> Enqueued:
        """Makes the run, or the next round of an ended one; attaches to it if it is on.

        A next round lists again, and what is current is left out (imece/files/current.py). Where
        there are no outputs, what an unfinished round has done is not done again.

        Raises:
            RunError: the id is in use with other parameters, the run went away in between, or
                another run makes one of the outputs from another input.
            ListingError: the files cannot be listed or grouped.
        """
        run = Run(self.redis, self.settings.queue, run_id)
        with run.explained(), self._claimed(run) as token:
            damage = run.damage(hold=True)
            if damage is not None and damage.helps != "enqueue":
                raise RunError(f"run {run.id} cannot be used: {damage.what}")
            if not self._claim(run, parameters, token):
                return Enqueued(run, "attached")
            listed = list_files()
            check_outputs(listed.files, parameters.ending)
            version = versions.known(self.redis, self.settings, parameters.processor)
            comparer = plan.comparer(parameters, version, rules)
            selection = Selection(run, listed.files, comparer, parameters.output is None)
            state, made = self._next_round(run, token, parameters, listed, selection)
        dead_workers.clear_output(run, parameters)
        how = "resumed" if state in ("cancelled", "held") else "enqueued"
        return Enqueued(run, how, made)

    def again(self, run: Run, cause: int | None = None) -> int:
        """Enqueues the unfinished and the failed files of a run that is not on; how many they are.

        The names are those in Redis: nothing is listed, so this works where the files are not seen.

        Args:
            cause: the number of a cause. Files that failed with another one stay failed.

        Raises:
            RunError: the run is on, or there is no such file, or no such cause.
        """
        with run.explained():
            if (damage := run.damage(hold=True)) is not None:
                raise RunError(f"run {run.id} cannot be used: {damage.what}")
            parameters, state = run.parameters(), run.state()
            if state in ON or state == "listing":
                raise RunError(f"run {run.id} is {state}: call this again when it has ended")
            with self._claimed(run) as token:
                if not self._claim(run, parameters, token):
                    raise RunError(f"run {run.id} is on: somebody else has enqueued it again")
                if cause is not None:
                    causes.check(run.id, run.causes(), cause)
                meant, others = not_done(run, cause)
                files = list(meant)
                # Looked at after them: it only becomes less.
                if len(files) + len(others) < run.open_files():
                    raise run.unusable(LOST_NAMES)
                if not files:
                    raise RunError(f"run {run.id} is {state}: no file has failed, and none is left")
                stay_failed = None if cause is None else others
                selection = Selection(run, files)
                self._next_round(
                    run, token, parameters, Listing(files), selection, True, stay_failed
                )
        return len(files)

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
            if answer == "listing" and not waiting:
                self._say(f"run {run.id} is being listed by another producer: waiting for it")
                waiting = True
            elif answer != "listing" and there is not None:
                self._put_back_lost(run.queue)
                return False
            elif answer != "listing":  # it has just come up; or it is broken
                unreadable += 1
                if unreadable == MOST_LOOKS:
                    raise RunError(f"run {run.id} is {answer}, and has no parameters in Redis")
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

    def _put_back_lost(self, queue: str) -> None:
        """The workers do so, too; but there may be none, because the queue looks empty."""
        missing, _ = dead_workers.put_back_lost(self.redis, queue, set())
        if missing:
            time.sleep(TURN)
            dead_workers.put_back_lost(self.redis, queue, missing)

    @contextmanager
    def _claimed(self, run: Run) -> Iterator[str]:
        """A token to claim the run with. Keeps the claim alive while this process is busy; takes
        everything back if that fails, the claim too, which may be there without an answer."""
        token = secrets.token_hex(4)
        over = threading.Event()
        redis = connect(self.settings, retries=0)

        def renew() -> None:
            while not over.wait(CLAIM_TTL / 5):
                try:
                    scripts.run("renew", redis, [keys.claim(run.key)], [token, CLAIM_TTL])
                except RedisError:
                    pass  # the commit finds out

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield token
        except BaseException:
            self._withdraw(run, token, with_claim=True)
            raise
        finally:
            over.set()
            thread.join()
            redis.close()

    def _withdraw(self, run: Run, token: str, with_claim: bool = False) -> None:
        """Takes back what was staged, if Redis can be asked."""
        staged = [keys.staged(run.key, token), keys.order(run.key, token)]
        staged += keys.kept(run.key, token)
        parts = [keys.manifest(run.key, part) for part in (token, _finished_part(token))]
        where = [run.key, keys.claim(run.key), *staged, *parts]
        try:
            scripts.run("withdraw", self.redis, where, [token, int(with_claim)])
        except RedisError:
            pass  # all of it has a TTL

    def _next_round(
        self,
        run: Run,
        token: str,
        parameters: Parameters,
        listed: Listing,
        selection: Selection,
        only_these: bool = False,
        stay_failed: set[bytes] | None = None,
    ) -> tuple[str | None, Plan]:
        """Stages and commits; what the run's state was, and what is enqueued.

        Args:
            only_these: the listing does not have all files of the run.
            stay_failed: failed files that are not in it. The causes keep their numbers then.
        """
        overlap = Overlap(run, parameters, listed.files, self.settings)
        looks = not (only_these or parameters.overwrite)
        for _ in range(MOST_LOOKS):
            before = run.snapshot()
            found = selection.sort_out(before)
            shape, buckets = grouping.divide(parameters, found.to_do)
            self._stage(run, token, buckets, shape.files_per_job)
            parts = [token]
            if found.through and parameters.output is None:  # only Redis knows that they are done
                parts.append(_finished_part(token))
                self._stage(run, parts[-1], grouping.divide(parameters, found.through)[1], None)
            kept = {text(field).partition("-")[0] for field in found.kept}
            # A retry keeps all parts: what became of the other files is still known.
            parts += [part for part in before.parts if only_these or part in kept]
            failed = 0
            if stay_failed is not None:
                failed = self._stage_failures(run, token, stay_failed)
            files = len(found.to_do) + len(found.through) + found.in_hand + failed
            fields: dict[str, str | int] = {
                "parameters": parameters.encode(),
                "parts": ",".join(parts),
                "files": files,
                "failed": failed,
                "skipped": len(found.through),
                "buckets": shape.buckets,
                "links_refused": listed.links_refused,
                **({"unseen": 1} if looks and is_unseen(parameters) else {}),
                **limits(parameters, before, files, failed),
            }
            jobs = grouping.jobs(buckets, shape.files_per_job)
            answer = "overtaken"
            while answer == "overtaken":
                overlap.compare()
                answer = self._commit(run, token, before, found.kept, jobs, fields, overlap.seen)
            if answer == "committed":
                counts = len(found.to_do), len(found.through), found.in_hand
                return before.state, Plan(
                    parameters, listed, selection.comparison, *counts, shape, buckets
                )
            if answer != "changed":
                break
            self._withdraw(run, token)
            time.sleep(TURN)
        raise RunError(f"run {run.id} was cancelled, or taken over, while it was being enqueued")

    def _stage_failures(self, run: Run, token: str, names: set[bytes]) -> int:
        """Writes the failures of these files, which stay as they are, and their causes where no
        worker looks; how many they are."""
        found = run.causes()
        number_of, counts = numbers(found), Counter[int]()
        staged_failures, staged_outputs, staged_causes = keys.kept(run.key, token)
        listed = sorted(names)
        for start in range(0, len(listed), STEP):
            page = listed[start : start + STEP]
            kept: list[Fields] = []
            for key in (f"{run.key}:failures", f"{run.key}:outputs"):
                values = zip(page, self.redis.hmget(key, page), strict=True)
                kept.append({name: value for name, value in values if value is not None})
            counts.update(number_of(Failure.read(raw(record))) for record in kept[0].values())
            self._send_hashes(zip((staged_failures, staged_outputs), kept, strict=True))
        there = self.redis.hgetall(f"{run.key}:causes")
        fields: Fields = {raw(name): raw(value) for name, value in there.items()}
        for one in found:
            if one.number != NOT_KNOWN:
                fields[f"{one.number}:count".encode()] = counts[one.number]
        self._send_hashes([(staged_causes, fields)])
        return counts.total()

    def _send_hashes(self, hashes: Iterable[tuple[str, Fields]]) -> None:
        """In a transaction: nothing is ever there without its TTL, whenever this process dies."""
        with self.redis.pipeline() as pipeline:
            for key, fields in hashes:
                if fields:
                    pipeline.hset(key, mapping=fields)
                    pipeline.expire(key, STAGED_TTL)
            pipeline.execute()

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
        self._send(run, part, manifests, cursors)

    def _send(self, run: Run, part: str, manifests: Fields, cursors: Fields) -> None:
        """In a transaction: nothing is ever there without its TTL, whenever this process dies."""
        with self.redis.pipeline() as pipeline:
            if manifests:
                pipeline.hset(keys.manifest(run.key, part), mapping=manifests)
                pipeline.expire(keys.manifest(run.key, part), STAGED_TTL)
            if cursors:
                pipeline.hset(keys.staged(run.key, part), mapping=cursors)
                pipeline.expire(keys.staged(run.key, part), STAGED_TTL)
                pipeline.rpush(keys.order(run.key, part), *cursors)
                pipeline.expire(keys.order(run.key, part), STAGED_TTL)
            pipeline.execute()

    def _commit(
        self,
        run: Run,
        token: str,
        before: Snapshot,
        kept: Iterable[bytes],
        jobs: int,
        fields: dict[str, str | int],
        seen: float,
    ) -> str:
        """See lua/commit.lua."""
        where = [
            *(run.key, keys.claim(run.key)),
            *(keys.pending(run.queue), keys.leases(run.queue), keys.QUEUES),
            *(keys.staged(run.key, token), keys.order(run.key, token)),
            *keys.kept(run.key, token),
        ]
        arguments: scripts.Arguments = [
            *(token, before.generation, self.settings.run_ttl, self.settings.result_ttl, jobs),
            repr(seen),
            *(fields["failed"], len(before.held)),
        ]
        for field, cursor in before.held.items():
            arguments += [field, cursor, int(field in kept)]
        arguments += chain.from_iterable(fields.items())
        return text(scripts.run("commit", self.redis, where, arguments))


def limits(parameters: Parameters, before: Snapshot, files: int, failed: int) -> dict[str, int]:
    """After how many failures a round of so many files is held, as fields of the run.

    Args:
        failed: files that have failed already. They do not count again; nor do those of a run that
            was held. Their causes have been seen.
    """
    if (limit := parameters.most_failed(files)) is None:
        return {}
    most, fewest_ended = limit
    seen = max(failed, before.failed if before.state == "held" else 0)
    return {"most_failed": most + seen, "fewest_ended": fewest_ended}


def is_unseen(parameters: Parameters) -> bool:
    """Whether the output directory is not there, as far as this process sees."""
    return parameters.output is not None and not os.path.isdir(parameters.output)


def _finished_part(token: str) -> str:
    """The part of a manifest that holds, without jobs, the files that are done already."""
    return f"{int(token, 16) ^ 1:08x}"
