"""A run's next round: which of the listed files a worker has, are done, or are to be enqueued."""

from dataclasses import dataclass

from imece.run import causes
from imece.run.job import Cursor, Reference
from imece.run.records import RecordError
from imece.run.store import Run, Snapshot


@dataclass
class Round:
    """The files of a next round, sorted by what is to be done with them.

    Attributes:
        to_do: what is staged as new bucket jobs.
        finished: done by an earlier round; they count as skipped.
        in_hand: how many files are in the jobs of `kept`.
        kept: the fields of jobs that a worker has, or died with: they continue. The records of
            the others are damaged.
    """

    to_do: list[bytes]
    finished: list[bytes]
    in_hand: int
    kept: set[bytes]


def sort_out(run: Run, before: Snapshot, files: list[bytes], look_for_finished: bool) -> Round:
    """Leaves out the files of jobs that a worker has, so that none is started a second time, and
    those that are done though no worker could see it."""
    in_hand: set[bytes] = set()
    kept: set[bytes] = set()
    count = 0
    for field, cursor in before.held.items():
        try:
            reference = Reference.of_field(run.id, field)
            names = run.names(reference.part, reference.bucket)
            of_job = open_files(names, [Cursor.decode(cursor)])
        except RecordError:
            continue
        kept.add(field)
        count += len(of_job)
        in_hand.update(of_job)
    finished: set[bytes] = set()
    if look_for_finished and before.state in ("cancelled", "held", "failed"):
        finished = done(run, before.parts).intersection(files) - in_hand
    if not in_hand and not finished:
        return Round(files, [], 0, kept)
    left = [name for name in files if name not in in_hand and name not in finished]
    return Round(left, list(finished), count, kept)


def open_files(bucket: list[bytes], cursors: list[Cursor]) -> set[bytes]:
    """The files of a bucket that its unfinished jobs have still to do.

    Raises:
        RecordError: a cursor points outside the bucket.
    """
    found: set[bytes] = set()
    for cursor in cursors:
        cursor.check_within(len(bucket))
        found.update(bucket[cursor.next : cursor.stop])
        found.update(bucket[index] for index in cursor.retries)
    return found


def not_done(run: Run, cause: int | None = None) -> tuple[set[bytes], set[bytes]]:
    """The files of a run that failed, or that no worker has started.

    Args:
        cause: the number of a cause: files that failed with another one are not meant.

    Returns:
        Those that are meant; and the failed ones that are not.
    """
    number_of = causes.numbers(run.causes())
    meant, others = set[bytes](), set[bytes]()
    for name, failure in run.failures():
        (meant if cause in (None, number_of(failure)) else others).add(name)
    for (part, bucket), cursors in run.unfinished().items():
        meant |= open_files(run.names(part, bucket), cursors)
    return meant, others


def done(run: Run, parts: tuple[str, ...]) -> set[bytes]:
    """The files that an unfinished round, or those before it, have done. None is known if records
    are damaged: then they are done again."""
    found, still_open = set[bytes](), set[bytes]()
    try:
        unfinished = run.unfinished()
        for part in parts:
            for bucket, files in run.buckets(part):
                still_open |= open_files(files, unfinished.get((part, bucket), []))
                found.update(files)
    except RecordError:
        return set()
    return found - still_open - {name for name, _ in run.failures()}
