"""The promise: what a checkpoint says of a file is whole, although the runner goes on meanwhile."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imece.files import segment
from imece.files.rows import Outcome, Row
from imece.files.segment import Segment
from imece.run.claim import Batch, Claimed
from imece.run.job import Cursor, PendingRetry
from imece.run.parameters import Parameters
from imece_worker.control import Control
from imece_worker.progress import Progress
from imece_worker.retry import ServerClock
from tests.conftest import Workbench

FILES = [b"a", b"b", b"c"]


class Job:
    """Three files; what a runner does with them, and what its worker makes of it."""

    def __init__(self, parameters: Parameters, folder: Path) -> None:
        self.clock = ServerClock.at(1_700_000_000.0)
        self.claimed = Claimed(Cursor(0, len(FILES)), [], parameters, self.clock.now(), FILES, 0)
        self.directory = os.open(folder, os.O_RDONLY)
        self.reader = Segment.begin(self.directory, {"at": 0, "first": 0, "execution": "e"}, FILES)
        self.runner = Segment.of(self.directory)
        self.control = Control()
        self.progress = Progress(self.claimed, self.reader, self.control, "w", self.clock)
        self.failed: list[bytes] = []
        self.done = self.retried = 0

    def successor(self, cursor: Cursor) -> Progress:
        """That of another worker, which takes the job over."""
        segment = Segment.nameless(os.memfd_create("rows"))
        claimed = replace(self.claimed, cursor=cursor)
        return Progress(claimed, segment, Control(), "v", self.clock)

    def fails(self, file: int, tries: int = 1, due: float | None = None) -> None:
        detail = {"due": due, "cause": "why", "error": 0, "reason": "why", "output": ""}
        self.runner.append(Row(file, Outcome.FAILED, tries, detail=json.dumps(detail).encode()))

    def succeeds(self, file: int, tries: int = 1) -> None:
        self.runner.append(Row(file, Outcome.DONE, tries))

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


def ledger_rows(job: Job) -> list[Row]:
    block = segment.left_in(job.directory)
    assert block is not None
    return block.rows()


@pytest.fixture
def job(workbench: Workbench) -> Iterator[Job]:
    workbench.files(1)
    workbench.enqueue(retries=1)
    made = Job(workbench.status().parameters, workbench.folder)
    yield made
    made.reader.close()
    made.runner.close()
    os.close(made.directory)


def test_a_retry_that_ends_well_is_counted_once(job: Job) -> None:
    job.fails(0, due=0.0)
    assert job.checkpoint() == Cursor(1, 3, {0: PendingRetry(1, 0.0)})
    job.succeeds(1)
    job.succeeds(2)
    job.checkpoint()
    job.succeeds(0, tries=2)
    job.checkpoint()
    cursor = job.checkpoint()
    assert (cursor.next, cursor.retries) == (3, {})
    assert (job.done, job.failed, job.retried) == (3, [], 1)
    assert job.progress.finished()


def test_a_file_is_done_when_its_output_is_in_its_place(job: Job) -> None:
    """The row comes first; then the runner says that it has gone on."""
    job.control.begin(0, 0)
    job.succeeds(0)
    assert (job.checkpoint().next, job.done) == (0, 0)
    job.control.end()
    assert (job.checkpoint().next, job.done) == (1, 1)


def test_a_file_whose_output_could_not_be_put_in_its_place_has_failed(job: Job) -> None:
    job.control.begin(0, 0)
    job.succeeds(0)
    job.checkpoint()
    job.fails(0)
    job.control.begin(1, 2)
    job.succeeds(1)
    assert (job.checkpoint().next, job.done, job.failed) == (1, 0, [b"a"])
    job.control.void = 1
    job.control.end()
    assert (job.checkpoint().next, job.done) == (1, 0)


def test_a_row_of_a_dead_runner_counts_if_its_output_is_there(job: Job) -> None:
    job.control.begin(0, 0)
    job.succeeds(0)
    job.progress.collect()
    assert not job.progress.settle(lambda name, row: False)
    assert job.checkpoint().next == 0
    job.succeeds(0)
    job.progress.collect()
    assert job.progress.settle(lambda name, row: True)
    assert job.checkpoint().next == 1


def test_the_successor_counts_what_came_after_the_last_checkpoint_and_no_more(job: Job) -> None:
    job.succeeds(0)
    job.fails(1, due=5.0)
    cursor = job.checkpoint()
    job.fails(1, tries=2)  # quarantined
    job.succeeds(2)
    successor = job.successor(cursor)
    successor.take_over(ledger_rows(job), lambda name, row: True)
    batch = successor.take()
    assert (batch.done, batch.failed, batch.retried) == (1, 1, 0)
    assert [name for name, _ in batch.failures] == [b"b"]
    assert successor.finished()


def test_the_successor_does_what_has_no_output_again(job: Job) -> None:
    job.succeeds(0)
    job.succeeds(1)
    successor = job.successor(job.claimed.cursor)
    rows = [Row(0, Outcome.DONE, 1), Row(1, Outcome.DONE, 1)]
    successor.take_over(rows, lambda name, row: name == b"b")
    assert successor.take().done == 1
    assert (successor.cursor().next, successor.ahead()) == (0, [1])
    successor.take_over([Row(0, Outcome.DONE, 1), Row(0, Outcome.OPEN)], lambda name, row: True)
    assert successor.cursor().next == 0


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
    assert (0, Outcome.OPEN) in [row[:2] for row in ledger_rows(job)]


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
