"""The promise: what a checkpoint says of a file is whole, although the runner goes on meanwhile."""

import json
import os
from collections.abc import Callable, Iterator

import pytest

from imece.run.claim import Batch, Claimed
from imece.run.job import Cursor, PendingRetry
from imece.run.parameters import Parameters
from imece_worker.progress import Progress
from imece_worker.retry import ServerClock
from imece_worker.shared_progress import Journal, Outcome, SharedProgress
from tests.conftest import Workbench

FILES = [b"a", b"b", b"c"]


class RunnerAtWork(Journal):
    """Writes on right after its parent has read."""

    def __init__(self) -> None:
        super().__init__()
        self.next: Callable[[], None] = lambda: None

    def read(self, start: int) -> bytes:
        found = super().read(start)
        step, self.next = self.next, lambda: None
        step()
        return found


class Job:
    """Three files; what a runner does with them, and what its parent makes of it."""

    def __init__(self, parameters: Parameters) -> None:
        self.shared = SharedProgress(len(FILES))
        self.shared.assign(0, len(FILES))
        self.journal = RunnerAtWork()
        clock = ServerClock.at(1_700_000_000.0)
        cursor = Cursor(0, len(FILES))
        claimed = Claimed(cursor, [], parameters, clock.now(), FILES, 0, untouched=False)
        self.progress = Progress(claimed, self.shared, self.journal, "w", clock)
        self.failed: list[bytes] = []
        self.done = self.retried = 0

    def note(self, index: int, tries: int = 1, due: float | None = None) -> None:
        try_: dict[str, object] = {"index": index, "began": self.shared.began, "tries": tries}
        line = try_ | {"due": due, "reason": "why", "output": ""}
        self.journal.append(json.dumps(line).encode() + b"\n")

    def fails(self, index: int, due: float | None = None) -> None:
        self.shared.begin(index)
        self.note(index, due=due)
        self.shared.end(index, Outcome.FAILED)

    def succeeds(self, index: int) -> None:
        self.shared.begin(index)
        self.shared.end(index, Outcome.DONE)

    def checkpoint(self) -> Cursor:
        """What is recorded in Redis, if it is all that will ever be: files before the cursor, and
        no others, have come to an end or are owed a retry."""
        self.progress.collect()
        cursor, batch = self.progress.cursor(), self.progress.take()
        self.failed += [name for name, _ in batch.failures]
        self.done += batch.done
        self.retried += batch.retried
        assert self.done + len(self.failed) + len(cursor.retries) == cursor.next
        return cursor

    def looks_again(self, *gone: bytes) -> Batch:
        """A batch was sent, and Redis says that another round has begun."""
        self.progress.collect()
        taken = self.progress.take()
        return self.progress.look_again(taken, lambda name: name not in gone)


@pytest.fixture
def job(workbench: Workbench) -> Iterator[Job]:
    workbench.files(1)
    workbench.enqueue(retries=1)
    made = Job(workbench.status().parameters)
    yield made
    os.close(made.journal.number)


def test_a_file_that_fails_while_its_parent_looks_is_passed_with_its_failure(job: Job) -> None:
    job.succeeds(0)
    job.journal.next = lambda: job.fails(1)
    assert job.checkpoint().next == 1
    assert job.checkpoint().next == 2
    assert job.failed == [b"b"]


def test_a_failure_whose_file_is_still_in_hand_is_counted_with_it(job: Job) -> None:
    job.shared.begin(0)
    job.note(0)
    assert job.checkpoint().next == 0
    assert job.progress.last_failed == (0, job.shared.began)
    job.shared.end(0, Outcome.FAILED)
    assert job.checkpoint().next == 1
    assert job.failed == [b"a"]
    job.checkpoint()
    assert job.failed == [b"a"]


def test_a_retry_that_ends_while_its_parent_looks_is_counted_once(job: Job) -> None:
    job.journal.next = lambda: job.fails(0, due=0.0)
    assert job.checkpoint().next == 0
    job.succeeds(1)
    job.succeeds(2)
    job.shared.reopen(0)
    job.shared.begin(0)  # its second try
    job.checkpoint()
    job.journal.next = lambda: job.shared.end(0, Outcome.DONE)
    job.checkpoint()
    cursor = job.checkpoint()
    assert (cursor.next, cursor.retries) == (3, {})
    assert (job.done, job.failed, job.retried) == (3, [], 1)
    assert job.progress.finished()


def test_a_file_whose_output_is_gone_is_owed_a_try_and_not_counted(job: Job) -> None:
    job.succeeds(0)
    job.succeeds(1)
    assert job.looks_again(b"a").done == 1
    assert job.progress.cursor() == Cursor(2, 3, {0: PendingRetry(0, 0)})
    job.done = 1  # that batch is recorded
    assert job.checkpoint().retries == {0: PendingRetry(0, 0)}
    job.succeeds(0)
    job.succeeds(2)
    job.checkpoint()
    assert job.progress.finished()
    assert (job.done, job.failed, job.retried) == (3, [], 0)


def test_what_came_after_the_batch_is_looked_at_with_it(job: Job) -> None:
    """The runner went on while the batch was on its way: before the other round, or after."""
    job.fails(0)
    job.succeeds(1)
    job.progress.collect()
    taken = job.progress.take()
    job.succeeds(2)
    batch = job.progress.look_again(taken, lambda name: name != b"b")
    assert (batch.done, batch.failed, batch.retried) == (1, 1, 0)
    assert [name for name, _ in batch.failures] == [b"a"]
    assert job.progress.cursor() == Cursor(3, 3, {1: PendingRetry(0, 0)})
    assert job.progress.take() == Batch()
