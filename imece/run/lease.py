"""A worker's claim on a bucket job, as it stands in Redis."""

from collections.abc import Mapping

from redis import Redis
from redis.exceptions import RedisError

from imece.connection import is_outage, is_wrong_type, raw, said, text
from imece.run import keys, manifest, scripts
from imece.run.claim import Action, Batch, Claimed, CurrentFile, Trouble, Verdict
from imece.run.job import Cursor, Reference
from imece.run.store import Run
from imece.settings import Settings


class Lease:
    """One execution of one bucket job, for as long as it is ours."""

    def __init__(self, redis: Redis, settings: Settings, reference: Reference, execution: str):
        self.redis = redis
        self.settings = settings
        self.reference = reference
        self.execution = execution
        self.run = Run(redis, settings.queue, reference.run)
        self._round = b""
        """The run's round, as far as this worker knows, and as it stands in Redis."""

    def take(self, worker: str, to_others: bool = False) -> Claimed | str:
        """Turns the popped job into a held one.

        Args:
            to_others: this worker leaves the run to others for now; the job goes to the back.

        Returns:
            What is claimed; or why not, and then the job is no longer this worker's: lost (another
            worker has it), gone (its run or the job is gone), later (the run pauses), or the state
            of its run.

        Raises:
            RunError: what the run holds for this job was not made by imece; says what helps.
        """
        with self.run.explained():
            return self._take(worker, to_others)

    def _take(self, worker: str, to_others: bool) -> Claimed | str:
        queue, job = self.settings.queue, self.reference
        where = [self.run.key, keys.moving(queue), keys.leases(queue), keys.pending(queue)]
        arguments: scripts.Arguments = [
            *(job.job_id, self.execution, self.settings.lease, worker),
            *(job.field, job.part, job.bucket, int(to_others)),
        ]
        answer = scripts.run("take", self.redis, where, arguments)
        if answer[0] == b"damaged":
            _, helps, what = map(text, answer)
            raise self.run.unusable(what, helps)
        if answer[0] != b"taken":
            return text(answer[0])
        _, cursor, earlier, parameters, blob, pending, unseen, now, self._round = answer
        claimed = Claimed(
            Cursor.decode(cursor),
            [execution for execution in text(earlier).split(",") if execution],
            self.run.decode(parameters),
            float(now),
            manifest.decode(blob),
            pending,
            float(unseen) if unseen else None,
        )
        claimed.cursor.check_within(len(claimed.files))
        return claimed

    def checkpoint(
        self,
        action: Action,
        number: int = 0,
        cursor: Cursor | None = None,
        batch: Batch | None = None,
        reason: str = "",
        current: CurrentFile | None = None,
    ) -> tuple[Verdict, int]:
        """Shows a sign of life and records a batch, if there is one. May be sent again as it is.

        Args:
            number: of the batch, from 1 on; 0 for none.
            reason: with "stall", "hold" and "leave", why no file of the job can be processed.
            current: the current file, if it takes long.

        Returns:
            Whether the lease holds, and how many jobs wait in the queue.
        """
        queue, settings = self.settings.queue, self.settings
        arguments: scripts.Arguments = [
            *(self.reference.job_id, self.execution, settings.lease, self.reference.field),
            *(action, number, cursor.encode() if cursor else "", batch.deltas() if batch else ""),
            *(settings.run_ttl, settings.result_ttl, reason, self._round),
            *((current.name, f"{current.seconds:.3f}") if current else ("", 0)),
        ]
        if batch:
            arguments.append(len(batch.failures))
            for name, failure in batch.failures:
                arguments += [name, failure.encode(), failure.output.encode("utf-8", "replace")]
            causes = batch.causes()
            arguments.append(len(causes))
            for text_of_cause, count, name, message in causes:
                arguments += [text_of_cause, count, name, message.encode("utf-8", "replace")]
            for name, microseconds in batch.slowest:
                arguments += [name, microseconds]
        where = [self.run.key, keys.leases(queue), keys.pending(queue)]
        verdict, told, *has_held = scripts.run("checkpoint", self.redis, where, arguments)
        if has_held:
            self.run.purge()
        if verdict == b"round":
            self._round = told
            return "round", 0
        return verdict.decode(), told

    def trouble(self, error: Exception) -> Trouble | None:
        try:
            if is_wrong_type(error) and self.run.damage() is not None:
                return None  # the key is the run's own
        except RedisError as another:
            error = another
        return trouble(error, self.redis, keys.shared(self.settings.queue))

    def is_remembered(self) -> bool:
        """After the lease was lost: whether the next holder of the job learns of this one. True if
        Redis does not say."""
        try:
            holders = self.redis.hget(f"{self.run.key}:holders", self.reference.field)
        except RedisError:
            return True
        return self.execution.encode() in raw(holders or b"").split(b",")


def trouble(error: Exception, redis: Redis, kinds: Mapping[str, str]) -> Trouble | None:
    """Why a command has failed, if the same one may succeed later: Redis is away, or somebody has
    spoilt a key that no run can do without. That key may have been repaired since.

    Args:
        kinds: such keys -> the type of value that each has to hold; see `keys.shared`.
    """
    if is_wrong_type(error):
        try:
            spoilt = misfits(redis, kinds) or [said(error)]
            return Trouble("key in redis has the wrong type", "; ".join(spoilt))
        except RedisError as another:
            error = another
    return Trouble("redis out of reach", str(error)) if is_outage(error) else None


def misfits(redis: Redis, kinds: Mapping[str, str]) -> list[str]:
    """A sentence for each of these keys that holds another type of value, with the command that
    helps."""
    with redis.pipeline(transaction=False) as pipeline:
        for key in kinds:
            pipeline.type(key)
        found = [text(kind) for kind in pipeline.execute()]
    return [
        f"the key {key} is a {kind} and has to be a {wanted}: `redis-cli DEL {key}` helps"
        for (key, wanted), kind in zip(kinds.items(), found, strict=True)
        if kind not in (wanted, "none")
    ]
