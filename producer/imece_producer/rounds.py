"""A run's next round: which of the listed files a worker has, are done, or are to be enqueued."""

from collections.abc import Sequence
from dataclasses import dataclass

from imece.files.current import Comparer, Comparison
from imece.run import causes
from imece.run.job import Cursor, Reference
from imece.run.records import RecordError
from imece.run.store import Run, Snapshot


@dataclass
class Round:
    """The files of a next round, sorted by what is to be done with them.

    Attributes:
        to_do: what is staged as new bucket jobs.
        through: those whose outputs are current, or that an earlier round has done; they count as
            skipped.
        in_hand: how many files are in the jobs of `kept`.
        kept: the fields of jobs that a worker has, or died with: they continue. The records of
            the others are damaged.
    """

    to_do: list[bytes]
    through: list[bytes]
    in_hand: int
    kept: set[bytes]


class Selection:
    """Which of a round's files are to be done.

    Args:
        files: all of them.
        comparer: None: what is current is not asked.
        knows_done: what an unfinished round has done is not done again, as Redis knows it.

    Attributes:
        comparison: of the files that no worker has.
    """

    def __init__(
        self,
        run: Run,
        files: Sequence[bytes],
        comparer: Comparer | None = None,
        knows_done: bool = False,
    ) -> None:
        self.comparison = Comparison()
        self._run = run
        self._files = files
        self._comparer = comparer
        self._knows_done = knows_done
        self._in_hand: set[bytes] | None = None

    def sort_out(self, before: Snapshot) -> Round:
        """Leaves out the files of jobs that a worker has, so that none is started a second time;
        and those that are through."""
        in_hand, kept, count = self._held(before)
        self._compare(in_hand)
        to_do = [name for name in self.comparison.to_do if name not in in_hand]
        through = [name for name in self.comparison.current if name not in in_hand]
        if self._knows_done and before.state in ("cancelled", "held", "failed"):
            finished = done(self._run, before.parts).intersection(to_do)
            to_do = [name for name in to_do if name not in finished]
            through += finished
        return Round(to_do, through, count, kept)

    def _compare(self, in_hand: set[bytes]) -> None:
        """Those that are out of the workers' hands since the last time. A job of a run that is not
        on is never taken: so they only become more."""
        if self._in_hand is None:
            new = [name for name in self._files if name not in in_hand]
        else:
            new = list((self._in_hand - in_hand).intersection(self._files))
        self._in_hand = in_hand
        if self._comparer is None:
            self.comparison.to_do += new
        elif new:
            self.comparison.add(self._comparer.compare(new))

    def _held(self, before: Snapshot) -> tuple[set[bytes], set[bytes], int]:
        """The files that workers have, the fields of their jobs, and how many files that are."""
        in_hand, kept, count = set[bytes](), set[bytes](), 0
        for field, cursor in before.held.items():
            try:
                reference = Reference.of_field(self._run.id, field)
                names = self._run.names(reference.part, reference.bucket)
                of_job = open_files(names, [Cursor.decode(cursor)])
            except RecordError:
                continue
            kept.add(field)
            count += len(of_job)
            in_hand.update(of_job)
        return in_hand, kept, count


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
