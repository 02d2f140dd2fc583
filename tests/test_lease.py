"""Only who holds the lease records progress, and each batch counts once."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from imece.connection import is_outage, raw
from imece.errors import RunError
from imece.run import keys
from imece.run.claim import Action, Batch, Claimed
from imece.run.dead_workers import elect, put_back_lost, requeue_dead
from imece.run.failure import Failure
from imece.run.job import Cursor, PendingRetry, Reference
from imece.run.lease import Lease
from imece.run.store import Run
from tests.conftest import Workbench, until

QUEUE = "imece"
LONG = 10**6
"""Seconds a server has been up, when that does not matter."""


class Hand:
    """A worker's hand: pops a job, takes a lease, sends checkpoints. No process behind it."""

    def __init__(self, workbench: Workbench, name: str) -> None:
        self.redis = workbench.redis
        self.settings = workbench.load()
        self.name = name
        self.number = 0

    def pop(self) -> None:
        popped = self.redis.lmove(keys.pending(QUEUE), keys.moving(QUEUE), "LEFT", "RIGHT")
        assert isinstance(popped, bytes)
        reference = Reference.parse(popped)
        self.lease = Lease(self.redis, self.settings, reference, f"execution-of-{self.name}")

    def take(self) -> Claimed | str:
        return self.lease.take(self.name)

    def hold(self) -> Claimed:
        """Pops and takes; it must work out."""
        self.pop()
        self.number = 0
        claimed = self.take()
        assert isinstance(claimed, Claimed), claimed
        return claimed

    def record(
        self, action: Action = "continue", at: int = 0, stop: int = 10, done: int = 0
    ) -> tuple[str, int]:
        """Sends the next batch: so many files done, with the cursor at `at`."""
        self.number += 1
        return self.send(action, self.number, Cursor(at, stop), Batch(done=done))

    def send(
        self,
        action: Action,
        number: int = 0,
        cursor: Cursor | None = None,
        batch: Batch | None = None,
        reason: str = "",
    ) -> tuple[str, int]:
        return self.lease.checkpoint(action, number, cursor, batch, reason)

    @property
    def member(self) -> str:
        return f"{self.lease.reference.job_id}:{self.lease.execution}"

    def lapse(self) -> None:
        """Its lease runs out now."""
        self.redis.zadd(keys.leases(QUEUE), {self.member: 1.0}, xx=True)


@pytest.fixture
def hand(workbench: Workbench) -> Hand:
    """A hand, and a run of ten files in one bucket job."""
    workbench.files(10)
    workbench.enqueue(buckets=1, files_per_job=10)
    return Hand(workbench, "one")


def pending(redis: Redis) -> list[bytes]:
    return [raw(job) for job in redis.lrange(keys.pending(QUEUE), 0, -1)]


def reap(
    workbench: Workbench,
    moving: dict[bytes, float] | None = None,
    now: float = 0,
    uptime: float = LONG,
) -> list[str]:
    """What `requeue_dead` has done."""
    memory = moving if moving is not None else {}
    return list(requeue_dead(workbench.redis, workbench.load(), memory, now, uptime))


# Taking


def test_a_lease_comes_with_all_a_worker_has_to_know(workbench: Workbench, hand: Hand) -> None:
    claimed = hand.hold()
    assert claimed.files == [f"f-{number:04d}.txt".encode() for number in range(10)]
    assert claimed.cursor == Cursor(0, 10)
    assert claimed.earlier == []
    assert claimed.parameters == Run(workbench.redis, "imece", "run").parameters()
    assert claimed.now == pytest.approx(workbench.status().now, abs=30)
    assert claimed.pending == 0


def test_a_taken_job_is_in_flight_and_its_run_running(workbench: Workbench, hand: Hand) -> None:
    before = workbench.status()
    assert (before.state, before.started) == ("queued", None)
    hand.hold()
    now = workbench.status()
    assert (now.state, now.backlog.pending, now.backlog.in_flight) == ("running", 0, 1)
    assert now.started is not None


def test_a_job_in_the_queue_twice_is_held_once(workbench: Workbench, hand: Hand) -> None:
    """Whoever puts it there: two executions must never do the same files at once."""
    [job] = pending(workbench.redis)
    workbench.redis.rpush(keys.pending(QUEUE), job)
    other = Hand(workbench, "other")
    hand.hold()
    other.pop()
    assert other.take() == "lost"
    assert hand.record("finish", at=10, done=10)[0] == "held"
    assert workbench.status().state == "done"
    assert workbench.redis.llen(keys.moving(QUEUE)) == 0


def test_a_job_that_was_taken_out_of_our_hands_is_lost(workbench: Workbench, hand: Hand) -> None:
    """Between pop and take another worker has thought us dead."""
    hand.pop()
    workbench.redis.lmove(keys.moving(QUEUE), keys.pending(QUEUE), "RIGHT", "LEFT")
    assert hand.take() == "lost"
    assert workbench.status().backlog.in_flight == 0


def test_a_job_whose_run_is_gone_leaves_nothing(workbench: Workbench, hand: Hand) -> None:
    hand.pop()
    workbench.redis.delete("imece:imece:run:run")
    assert hand.take() == "gone"
    assert not workbench.redis.exists(keys.moving(QUEUE))


def test_a_job_of_a_held_run_is_not_taken(workbench: Workbench, hand: Hand) -> None:
    """The state of the run is no word for what the lease is."""
    hand.pop()
    assert Run(workbench.redis, "imece", "run").hold("for a reason")
    assert hand.take() == "held"


def test_a_job_of_a_cancelled_run_is_not_taken(workbench: Workbench, hand: Hand) -> None:
    hand.pop()
    Run(workbench.redis, "imece", "run").cancel(600)
    assert hand.take() == "cancelled"
    assert not workbench.redis.exists(keys.moving(QUEUE))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("jobs", b"[0,11,{},0,-1]"),
        ("jobs", b"[5,4,{},0,-1]"),
        ("jobs", b"[-1,4,{},0,-1]"),
        ("jobs", b"nonsense"),
        ("manifest", b"nonsense"),
    ],
)
def test_what_imece_did_not_write_is_refused(
    workbench: Workbench, hand: Hand, key: str, value: bytes
) -> None:
    hand.pop()
    reference = hand.lease.reference
    if key == "jobs":
        workbench.redis.hset("imece:imece:run:run:jobs", reference.field, value)
    else:
        workbench.redis.hset(f"imece:imece:run:run:manifest:{reference.part}", "0", value)
    with pytest.raises(RunError, match=r"cursor|manifest"):
        hand.take()


# Recording


def test_a_batch_is_added_to_the_run(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    failure = Failure("Traceback\nValueError: no", 3, 5.0, "one", "printed")
    cursor = Cursor(6, 10, {2: PendingRetry(1, 7.5)})
    batch = Batch(
        done=3,
        failed=1,
        retried=2,
        bytes_in=10**15,
        bytes_out=7,
        durations={0: 1, 11: 2},
        failures=[(b"f-0001.txt", failure)],
        slowest=[(b"f-0000.txt", 1_500_000), (b"f-0003.txt", 2)],
    )
    assert hand.send("continue", 1, cursor, batch) == ("held", 0)
    now = workbench.status()
    assert (now.done, now.failed, now.skipped, now.retried, now.left) == (3, 1, 0, 2, 6)
    assert (now.bytes_in, now.bytes_out) == (10**15, 7)
    assert now.durations == {0: 1, 11: 2}
    assert now.slowest == [(b"f-0000.txt", 1.5), (b"f-0003.txt", 2e-6)]
    assert sum(now.timeline.values()) == 4
    assert dict(Run(workbench.redis, "imece", "run").failures()) == {b"f-0001.txt": failure}
    hand.send("return", 2, cursor, Batch())
    assert Hand(workbench, "other").hold().cursor == cursor


def test_a_batch_that_is_sent_twice_counts_once(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    for _ in range(3):
        assert hand.send("continue", 1, Cursor(4, 10), Batch(done=4))[0] == "held"
    assert workbench.status().done == 4
    assert hand.send("continue", 2, Cursor(5, 10), Batch(done=1))[0] == "held"
    assert workbench.status().done == 5


def test_a_batch_that_comes_late_does_not_move_the_cursor_back(
    workbench: Workbench, hand: Hand
) -> None:
    hand.hold()
    hand.send("continue", 1, Cursor(4, 10), Batch(done=4))
    hand.send("continue", 2, Cursor(6, 10), Batch(done=2))
    hand.send("continue", 1, Cursor(4, 10), Batch(done=4))
    assert workbench.status().done == 6
    hand.send("return")
    assert Hand(workbench, "other").hold().cursor == Cursor(6, 10)


def test_a_sign_of_life_renews_the_lease_and_records_nothing(
    workbench: Workbench, hand: Hand
) -> None:
    hand.hold()
    before = workbench.redis.zscore(keys.leases(QUEUE), hand.member)
    assert before is not None
    workbench.redis.zadd(keys.leases(QUEUE), {hand.member: before - 3})
    assert hand.send("continue") == ("held", 0)
    after = workbench.redis.zscore(keys.leases(QUEUE), hand.member)
    assert after is not None
    assert after >= before
    assert workbench.status().left == 10


@pytest.mark.parametrize("action", ["continue", "finish", "return", "defer", "stall"])
def test_a_lost_lease_records_nothing(workbench: Workbench, hand: Hand, action: Action) -> None:
    hand.hold()
    hand.lapse()
    assert len(reap(workbench)) == 1
    other = Hand(workbench, "other")
    other.hold()
    other.record(at=2, done=2)
    failure = Failure("no", 1, 5.0, "one")
    batch = Batch(done=9, failures=[(b"f-0000.txt", failure)], slowest=[(b"x", 9)])
    before = everything(workbench.redis)
    assert hand.send(action, 99, Cursor(10, 10), batch) == ("lost", 0)
    assert everything(workbench.redis) == before
    assert other.record("finish", at=10, done=8)[0] == "held"
    assert (workbench.status().state, workbench.status().done) == ("done", 10)


def everything(redis: Redis) -> dict[bytes, bytes | None]:
    """All keys with what is in them."""
    return {key: redis.dump(key) for key in redis.scan_iter()}


def test_a_new_holder_counts_its_batches_from_one_again(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    for done in range(1, 4):
        hand.record(at=done, done=1)
    hand.lapse()
    reap(workbench)
    other = Hand(workbench, "other")
    assert other.hold().cursor == Cursor(3, 10)
    other.record(at=5, done=2)
    assert workbench.status().done == 5


# Giving a job up


def test_the_last_job_that_is_finished_ends_the_run(workbench: Workbench) -> None:
    workbench.files(2)
    workbench.enqueue(buckets=2, files_per_job=1)
    one, other = Hand(workbench, "one"), Hand(workbench, "other")
    one.hold()
    other.hold()
    one.record("finish", at=1, stop=1, done=1)
    assert workbench.status().state == "running"
    other.record("finish", at=1, stop=1, done=1)
    now = workbench.status()
    assert (now.state, now.jobs_left, now.backlog.in_flight) == ("done", 0, 0)
    assert now.ended is not None
    assert list(workbench.redis.scan_iter("rq:*")) == [b"rq:queues"]


def test_a_run_with_a_failed_file_ends_as_failed(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    failures = [(b"f-0000.txt", Failure("no", 1, 5.0, "one"))]
    hand.send("finish", 1, Cursor(10, 10), Batch(done=9, failed=1, failures=failures))
    assert workbench.status().state == "failed"


def test_the_end_of_a_job_that_is_sent_twice_is_lost_the_second_time_and_counted_once(
    workbench: Workbench, hand: Hand
) -> None:
    hand.hold()
    assert hand.send("finish", 1, Cursor(10, 10), Batch(done=10))[0] == "held"
    assert hand.send("finish", 1, Cursor(10, 10), Batch(done=10))[0] == "lost"
    assert workbench.status().done == 10


@pytest.mark.parametrize(("action", "place"), [("return", 0), ("defer", 2)])
def test_a_job_is_given_back_to_the_front_or_the_back(
    workbench: Workbench, action: Action, place: int
) -> None:
    workbench.files(3)
    workbench.enqueue(buckets=1, files_per_job=1)
    hand = Hand(workbench, "one")
    hand.hold()
    assert hand.record(action, at=0, stop=1) == ("held", 3)
    assert pending(workbench.redis)[place].decode() == hand.lease.reference.job_id
    assert workbench.status().backlog.in_flight == 0


def test_only_holders_that_died_with_a_job_are_named_to_the_next(
    workbench: Workbench, hand: Hand
) -> None:
    hand.hold()
    hand.record("return")
    died_first, died_next = Hand(workbench, "two"), Hand(workbench, "three")
    assert died_first.hold().earlier == []
    died_first.lapse()
    reap(workbench)
    assert died_next.hold().earlier == ["execution-of-two"]
    died_next.lapse()
    reap(workbench)
    last = Hand(workbench, "four")
    assert last.hold().earlier == ["execution-of-two", "execution-of-three"]


def test_a_holder_learns_that_the_run_was_cancelled(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    Run(workbench.redis, "imece", "run").cancel(600)
    assert hand.record(at=3, done=3)[0] == "stop"
    assert hand.record("return", at=3)[0] == "stop"
    now = workbench.status()
    assert (now.state, now.done, now.left) == ("cancelled", 3, 7)
    assert (now.backlog.pending, now.backlog.in_flight) == (0, 0)


def test_attaching_makes_a_cancel_void_that_was_meant_for_an_earlier_generation(
    workbench: Workbench, hand: Hand
) -> None:
    run = Run(workbench.redis, "imece", "run")
    hand.hold()
    earlier = run.attach()
    assert earlier is not None
    later = run.attach()
    assert later not in (None, earlier)
    with pytest.raises(RunError, match="nothing to cancel"):
        run.cancel(600, earlier)
    assert hand.record(at=1, done=1)[0] == "held"
    assert later is not None
    run.cancel(600, later)
    assert hand.record(at=2, done=1)[0] == "stop"


def test_nobody_attaches_to_a_run_that_is_not_on(workbench: Workbench, hand: Hand) -> None:
    run = Run(workbench.redis, "imece", "run")
    run.cancel(600)
    assert run.attach() is None
    assert Run(workbench.redis, "imece", "another").attach() is None


def test_a_run_cancelled_when_all_was_done_counts_as_done(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    Run(workbench.redis, "imece", "run").cancel(600)
    hand.record("finish", at=10, done=10)
    assert workbench.status().state == "done"


def test_a_holder_goes_on_when_its_run_is_resumed_meanwhile(
    workbench: Workbench, hand: Hand
) -> None:
    hand.hold()
    Run(workbench.redis, "imece", "run").cancel(600)
    assert workbench.enqueue(buckets=1, files_per_job=10).how == "resumed"
    assert pending(workbench.redis) == []
    assert hand.record(at=3, done=3) == ("round", 0)  # it is to look whether the outputs are there
    assert workbench.status().done == 0
    assert hand.send("continue", hand.number, Cursor(3, 10), Batch(done=3))[0] == "held"
    assert workbench.status().done == 3
    hand.record("return", at=3)
    assert Hand(workbench, "other").hold().cursor == Cursor(3, 10)


def test_a_batch_that_the_round_before_has_recorded_is_not_asked_for_again(
    workbench: Workbench, hand: Hand
) -> None:
    """Its answer was lost; since then the run was cancelled and enqueued again."""
    hand.hold()
    hand.record(at=3, done=3)
    Run(workbench.redis, "imece", "run").cancel(600)
    workbench.enqueue(buckets=1, files_per_job=10)
    assert hand.send("continue", 1, Cursor(3, 10), Batch(done=3))[0] == "held"
    assert hand.send("continue")[0] == "held"  # only a sign of life
    assert hand.record(at=4, done=1)[0] == "round"
    assert workbench.status().done == 0


@pytest.mark.parametrize("spoilt", [None, "1.5", "many", b"\xff"])
def test_a_round_that_is_no_number_is_taken_as_it_is(
    workbench: Workbench, hand: Hand, spoilt: str | bytes | None
) -> None:
    """A worker that never knew the round would look at its outputs for ever."""
    hand.hold()
    if spoilt is None:
        workbench.redis.hdel("imece:imece:run:run", "round")
    else:
        workbench.redis.hset("imece:imece:run:run", "round", spoilt)
    assert hand.record(at=1, done=1)[0] == "round"
    assert hand.send("continue", 1, Cursor(1, 10), Batch(done=1))[0] == "held"


def test_a_job_just_popped_is_not_held_twice_when_its_run_is_resumed_meanwhile(
    workbench: Workbench, hand: Hand
) -> None:
    hand.pop()
    Run(workbench.redis, "imece", "run").cancel(600)
    workbench.enqueue(buckets=1, files_per_job=10)
    taken = [isinstance(hand.take(), Claimed)]
    while pending(workbench.redis):
        other = Hand(workbench, "other")
        other.pop()
        taken.append(isinstance(other.take(), Claimed))
    assert taken.count(True) == 1


def test_a_holder_of_a_deleted_run_is_told_and_leaves_nothing(
    workbench: Workbench, hand: Hand
) -> None:
    hand.hold()
    workbench.redis.delete(*workbench.redis.scan_iter("imece:imece:run:run*"))
    assert hand.record("continue", at=3, done=3)[0] == "gone"
    assert list(workbench.redis.scan_iter("imece:imece:run:run*")) == []
    assert not workbench.redis.exists(keys.leases(QUEUE))


# What Redis has forgotten


def test_a_gap_in_the_batches_loses_the_lease_and_puts_the_job_back(
    workbench: Workbench, hand: Hand
) -> None:
    """The server came back as it was before the last batch: what it has lost is done again."""
    hand.hold()
    hand.record(at=3, done=3)
    assert hand.send("continue", 3, Cursor(9, 10), Batch(done=4)) == ("lost", 0)
    assert workbench.status().done == 3
    assert Hand(workbench, "other").hold().cursor == Cursor(3, 10)


def test_a_job_that_ends_after_a_gap_does_not_end_the_run(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    assert hand.send("finish", 2, Cursor(10, 10), Batch(done=5))[0] == "lost"
    now = workbench.status()
    assert (now.state, now.done, now.left, now.backlog.pending) == ("running", 0, 10, 1)


def test_no_run_is_done_while_files_are_left(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    hand.record("finish", at=10, done=9)
    now = workbench.status()
    assert (now.state, now.left) == ("failed", 1)
    assert now.blocking_reason is not None
    assert "1 files are neither done nor failed" in now.blocking_reason


# A job that cannot start


def stall(hand: Hand, done: int = 0) -> None:
    hand.hold()
    hand.number += 1
    hand.send("stall", hand.number, Cursor(done, 10), Batch(done=done), "no place")


def skip_pause(redis: Redis) -> None:
    redis.hset("imece:imece:run:run", "not_before", "1")


def test_a_job_that_stalls_goes_to_the_back_and_its_run_pauses(
    workbench: Workbench, hand: Hand
) -> None:
    workbench.enqueue_apart("other", buckets=1, files_per_job=10)
    stall(hand)
    now = workbench.status()
    assert (now.state, now.blocking_reason, now.backlog.in_flight) == ("running", "no place", 0)
    other = Hand(workbench, "other")
    assert isinstance(other.hold(), Claimed)
    assert other.lease.reference.run == "other"
    hand.pop()
    assert hand.take() == "later"
    assert len(pending(workbench.redis)) == 1, "an autoscaler has to see that work waits"


def test_the_pauses_grow_and_then_the_run_is_held(workbench: Workbench, hand: Hand) -> None:
    pauses = []
    for _ in range(10):
        stall(hand)
        assert workbench.status().state == "running"
        not_before = workbench.redis.hget("imece:imece:run:run", "not_before")
        assert not_before is not None
        pauses.append(round(float(not_before) - workbench.status().now))
        skip_pause(workbench.redis)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    stall(hand)
    now = workbench.status()
    assert (now.state, now.blocking_reason) == ("held", "no place")
    assert pending(workbench.redis) == []
    assert workbench.redis.lrange("imece:imece:run:run:waiting", 0, -1) == [
        hand.lease.reference.field.encode()
    ]


def test_many_workers_that_meet_the_same_blocking_reason_count_as_one(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.enqueue(buckets=1, files_per_job=1)
    hands = [Hand(workbench, str(number)) for number in range(3)]
    for hand in hands:
        hand.hold()
    for hand in hands:
        hand.send("stall", 1, Cursor(0, 1), Batch(), "no place")
    assert workbench.redis.hget("imece:imece:run:run", "pauses") == b"1"


def test_progress_ends_the_blocking_reason(workbench: Workbench, hand: Hand) -> None:
    stall(hand)
    skip_pause(workbench.redis)
    hand.hold()
    hand.record(at=1, done=1)
    assert workbench.status().blocking_reason is None
    assert not workbench.redis.hexists("imece:imece:run:run", "pauses")


def test_a_worker_with_a_job_of_a_held_run_stops_and_the_job_waits(workbench: Workbench) -> None:
    workbench.files(2)
    workbench.enqueue(buckets=1, files_per_job=1)
    one, other = Hand(workbench, "one"), Hand(workbench, "other")
    one.hold()
    other.hold()
    assert Run(workbench.redis, "imece", "run").hold("for a reason")
    assert one.record(at=0, stop=1)[0] == "stop"
    one.record("return", at=0, stop=1)
    other.record("finish", at=1, stop=1, done=1)
    now = workbench.status()
    assert (now.state, now.blocking_reason, now.done, now.jobs_left) == (
        "held",
        "for a reason",
        1,
        1,
    )
    assert pending(workbench.redis) == []


# What is not what it should be


@pytest.mark.parametrize(
    "spoil",
    [
        lambda redis: redis.set("imece:imece:run:run:failures", "x"),
        lambda redis: redis.set("imece:imece:run:run:slowest", "x"),
        lambda redis: redis.hset("imece:imece:run:run", "done", "many"),
    ],
)
def test_a_script_that_cannot_go_through_writes_nothing(
    workbench: Workbench, hand: Hand, spoil: Callable[[Redis], None]
) -> None:
    """Else its first half would be repeated for as long as it is sent again."""
    hand.hold()
    hand.record(at=1, done=1)
    spoil(workbench.redis)
    before = everything(workbench.redis)
    with pytest.raises(ResponseError) as raised:
        hand.send("continue", 2, Cursor(4, 10), a_full_batch())
    assert not is_outage(raised.value)
    assert everything(workbench.redis) == before


# Lifetimes


def lasting(workbench: Workbench) -> list[str]:
    """The keys without a TTL; those RQ keeps for a queue only while there is something in them."""
    ours = {keys.pending(QUEUE), keys.moving(QUEUE), keys.leases(QUEUE)}
    return sorted(set(workbench.immortal_keys()) - ours)


def a_full_batch() -> Batch:
    """One that writes to every key of a run."""
    failures = [(b"f-0000.txt", Failure("no", 1, 5.0, "one", "printed"))]
    return Batch(1, 1, 1, 1, 1, {3: 1}, failures, [(b"f-0001.txt", 5)])


@pytest.mark.parametrize("action", ["continue", "finish", "return", "defer", "stall"])
def test_every_key_of_a_run_has_a_ttl_at_every_moment(
    workbench: Workbench, hand: Hand, action: Action
) -> None:
    """Also of a run that nobody ever goes on with."""
    assert lasting(workbench) == []
    hand.hold()
    assert lasting(workbench) == []
    hand.send(action, 1, Cursor(3, 10), a_full_batch())
    assert lasting(workbench) == []


def test_progress_lets_an_old_run_live_on(workbench: Workbench, hand: Hand) -> None:
    settings = workbench.load()
    hand.hold()
    hand.send("continue", 1, Cursor(3, 10), a_full_batch())
    found = list(workbench.redis.scan_iter("imece:imece:run:run*"))
    for key in found:
        workbench.redis.expire(key, settings.run_ttl // 2 - 100)
    hand.send("continue", 2, Cursor(4, 10), a_full_batch())
    ttls = {key: workbench.redis.ttl(key) for key in found}
    assert min(ttls.values()) > settings.run_ttl - 100, ttls


def test_an_ended_run_is_kept_for_its_time_and_no_longer(workbench: Workbench, hand: Hand) -> None:
    settings = workbench.load()
    hand.hold()
    hand.send("finish", 1, Cursor(10, 10), a_full_batch())
    for key in workbench.redis.scan_iter("imece:imece:run:run*"):
        assert settings.result_ttl - 100 < workbench.redis.ttl(key) <= settings.result_ttl, key


# The dead


def test_a_job_whose_lease_has_run_out_goes_to_the_front(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    workbench.redis.rpush(keys.pending(QUEUE), "another")
    hand.lapse()
    [line] = reap(workbench)
    job = hand.lease.reference.job_id
    assert line.startswith(f"job {job} is back in the queue: its worker is silent for ")
    assert pending(workbench.redis) == [job.encode(), b"another"]
    assert workbench.status().backlog.in_flight == 0
    assert reap(workbench) == []


def test_a_fresh_lease_is_left_alone(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    assert reap(workbench) == []


def test_a_worker_that_has_hung_up_is_dead_before_its_lease_runs_out(
    workbench: Workbench, hand: Hand
) -> None:
    workbench.settings |= {"lease": "3600", "heartbeat": "0.1"}
    hand = Hand(workbench, "one")
    hand.hold()
    until(lambda: reap(workbench), "three missed signs of life")
    assert len(pending(workbench.redis)) == 1


def test_a_silent_worker_that_is_connected_is_left_alone(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    expiry = workbench.redis.zscore(keys.leases(QUEUE), hand.member)
    assert expiry is not None
    workbench.redis.zadd(keys.leases(QUEUE), {hand.member: expiry - 2})  # silent for 2 s
    channel = workbench.redis.pubsub()  # type: ignore[no-untyped-call]
    channel.subscribe(f"rq:pubsub:{hand.name}")
    until(lambda: workbench.redis.pubsub_numsub(f"rq:pubsub:{hand.name}")[0][1], "the channel")
    assert reap(workbench) == []
    channel.close()
    until(lambda: reap(workbench), "the worker to be seen as dead")


def test_of_many_who_look_for_the_dead_one_finds_them(workbench: Workbench, hand: Hand) -> None:
    """At the same time."""
    hand.hold()
    hand.lapse()
    barrier = threading.Barrier(4)

    def look() -> list[str]:
        barrier.wait()
        return reap(workbench)

    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(look) for _ in range(4)]
    assert sum(len(look.result()) for look in looks) == 1
    assert len(pending(workbench.redis)) == 1


def test_a_lease_renewed_since_the_look_is_left_alone(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    hand.lapse()
    """Two seem dead; while the first is seen to, the second shows that it lives."""
    workbench.enqueue_apart("run2", buckets=1, files_per_job=10)
    other = Hand(workbench, "other")
    other.hold()
    other.lapse()
    look = requeue_dead(workbench.redis, workbench.load(), {}, 0, LONG)
    next(look)
    survivor = hand if workbench.redis.zscore(keys.leases(QUEUE), hand.member) else other
    survivor.send("continue")
    assert list(look) == []
    assert len(pending(workbench.redis)) == 1


def test_who_was_last_heard_before_the_server_was_started_has_time_to_come_back(
    workbench: Workbench, hand: Hand
) -> None:
    lease = workbench.load().lease
    hand.hold()
    hand.lapse()
    assert reap(workbench, uptime=0) == []
    assert reap(workbench, uptime=lease - 1) == []
    assert len(reap(workbench, uptime=lease)) == 1


def test_a_job_that_nobody_took_after_it_was_popped_comes_back(
    workbench: Workbench, hand: Hand
) -> None:
    moving: dict[bytes, float] = {}
    hand.pop()
    job = hand.lease.reference.job_id
    assert reap(workbench, moving, 100.0) == []
    moving[job.encode()] = 100.0
    patience = 3 * workbench.load().heartbeat
    assert reap(workbench, moving, 100.0 + patience - 0.01) == []
    [line] = reap(workbench, moving, 100.0 + patience + 0.01)
    assert line == f"job {job} is back in the queue: nobody took it after it was popped"
    assert pending(workbench.redis) == [job.encode()]
    assert hand.take() == "lost"


def test_a_dead_workers_job_that_is_no_more_is_dropped(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    workbench.redis.hdel("imece:imece:run:run:jobs", hand.lease.reference.field)
    hand.lapse()
    assert reap(workbench) == []
    assert pending(workbench.redis) == []
    assert workbench.status().backlog.in_flight == 0


def test_a_lease_without_a_sound_end_comes_back(workbench: Workbench, hand: Hand) -> None:
    hand.hold()
    workbench.redis.zadd(keys.leases(QUEUE), {hand.member: float("inf")})
    assert len(reap(workbench)) == 1
    assert workbench.status().backlog.in_flight == 0
    assert len(pending(workbench.redis)) == 1


def test_what_is_no_job_does_not_stay_between_queue_and_lease(
    workbench: Workbench, hand: Hand
) -> None:
    workbench.redis.rpush(keys.moving(QUEUE), b"\xff\xfe", "nonsense")
    workbench.redis.zadd(keys.leases(QUEUE), {b"\xff:\xfe": 1.0, b"nonsense": float("inf")})
    moving: dict[bytes, float] = {}
    reap(workbench, moving, 0.0)
    reap(workbench, moving, 1000.0)
    assert workbench.redis.llen(keys.moving(QUEUE)) == 0
    assert workbench.redis.zcard(keys.leases(QUEUE)) == 0


def test_nothing_is_written_to_a_run_that_is_gone(workbench: Workbench, hand: Hand) -> None:
    """A hash with a field or two would be taken for a run."""
    hand.hold()
    run = Run(workbench.redis, "imece", "run")
    workbench.redis.delete(*workbench.redis.scan_iter("imece:imece:run:run*"))
    assert not run.hold("for a reason")
    assert run.attach() is None
    run.purge()
    hand.send("stall", 1, Cursor(0, 10), Batch(), "no place")
    hand.lapse()
    reap(workbench)
    assert list(workbench.redis.scan_iter("imece:imece:run:*")) == []


# Jobs that are in no list


def look_for_lost(workbench: Workbench) -> list[str]:
    suspects, lines = put_back_lost(workbench.redis, QUEUE, set())
    assert lines == []
    return put_back_lost(workbench.redis, QUEUE, suspects)[1]


def test_jobs_that_somebody_took_out_of_the_queue_come_back(workbench: Workbench) -> None:
    workbench.files(30)
    workbench.enqueue(buckets=30, files_per_job=1)
    held = Hand(workbench, "one")
    held.hold()
    workbench.redis.delete(keys.pending(QUEUE))
    [line] = look_for_lost(workbench)
    assert line.endswith("of run run are back: they were in no list")
    waiting = pending(workbench.redis)
    assert len(waiting) == len(set(waiting)) == 29
    assert held.lease.reference.job_id.encode() not in waiting
    assert look_for_lost(workbench) == []


def test_nothing_is_put_back_that_is_somewhere(workbench: Workbench) -> None:
    workbench.files(5)
    workbench.enqueue(buckets=5, files_per_job=1)
    Hand(workbench, "one").hold()
    Hand(workbench, "two").pop()
    assert look_for_lost(workbench) == []
    assert len(pending(workbench.redis)) == 3


def test_one_worker_looks_at_a_time(workbench: Workbench) -> None:
    assert elect(workbench.redis, QUEUE, "one", 5)
    assert not elect(workbench.redis, QUEUE, "two", 5)
    assert elect(workbench.redis, QUEUE, "one", 0.01)
    until(lambda: elect(workbench.redis, QUEUE, "two", 5), "the office to be free")


def test_a_worker_looks_even_if_somebody_else_is_named_for_ever(workbench: Workbench) -> None:
    workbench.redis.set(keys.sweeper(QUEUE), "nobody")
    assert elect(workbench.redis, QUEUE, "one", 5)
    assert not elect(workbench.redis, QUEUE, "two", 5)


# All of it together


@dataclass
class Simulated:
    """A hand with a job, and all it has ever sent."""

    hand: Hand
    at: int
    stop: int
    sent: list[tuple[Action, int, Cursor, Batch]] = field(default_factory=list)

    def advance(self, chance: random.Random) -> tuple[str, int]:
        """The next batch: some files further, or the end, or giving it back."""
        step = chance.randint(0, min(4, self.stop - self.at))
        self.at += step
        action: Action = chance.choice(["continue", "continue", "return", "defer"])
        if self.at == self.stop:
            action = "finish"
        self.sent.append(
            (
                action,
                len(self.sent) + 1,
                Cursor(self.at, self.stop),
                Batch(done=step, bytes_in=step),
            )
        )
        return self.hand.send(*self.sent[-1])


@pytest.mark.parametrize("seed", range(5))
def test_counters_are_exact_whatever_dies_lags_or_is_sent_again(
    workbench: Workbench, seed: int
) -> None:
    """Hands take, record, die, come back from the dead and repeat themselves, at random."""
    chance = random.Random(seed)
    workbench.files(60)
    workbench.enqueue(buckets=4, files_per_job=10)
    redis = workbench.redis
    alive: list[Simulated] = []
    dead: list[Simulated] = []
    count = 0
    for _ in range(5000):
        if workbench.status().has_ended:
            break
        move = chance.choice(["take", "advance", "advance", "repeat", "die", "haunt"])
        if move == "take" and pending(redis):
            count += 1
            hand = Hand(workbench, str(count))
            claimed = hand.hold()
            alive.append(Simulated(hand, claimed.cursor.next, claimed.cursor.stop))
        elif move == "advance" and alive:
            one = chance.choice(alive)
            assert one.advance(chance)[0] == "held"
            if one.sent[-1][0] != "continue":
                alive.remove(one)
                dead.append(one)
        elif move == "repeat" and alive:
            one = chance.choice(alive)
            if one.sent:
                one.hand.send(*chance.choice(one.sent))
        elif move == "die" and alive:
            one = alive.pop(chance.randrange(len(alive)))
            dead.append(one)
            one.hand.lapse()
            reap(workbench)
        elif move == "haunt" and dead:
            one = chance.choice(dead)
            if one.at < one.stop:
                assert one.advance(chance)[0] == "lost"
            elif one.sent:
                assert one.hand.send(*one.sent[-1])[0] == "lost"
    now = workbench.status()
    assert (now.state, now.done, now.left, now.bytes_in) == ("done", 60, 0, 60)
    assert sum(now.timeline.values()) == 60
    assert dead
    assert lasting(workbench) == []
