"""Which files of a run are done, and which are not."""

from imece.run.cursor import Cursor
from imece.run.records import RecordError
from imece.run.store import Run


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


def not_done(run: Run) -> set[bytes]:
    """The files of a run that failed, or that no worker has come to."""
    files = {name for name, _ in run.failures()}
    for (part, bucket), cursors in run.unfinished().items():
        files |= open_files(run.names(part, bucket), cursors)
    return files


def done(run: Run, parts: tuple[str, ...]) -> set[bytes]:
    """The files that an unfinished round, or those before it, have done. None is known if records
    are damaged: then they are done again."""
    found, still_open = set[bytes](), set[bytes]()
    try:
        unfinished = run.unfinished()
        for part in parts:
            for bucket, files in run.buckets(part):
                left = open_files(files, unfinished.get((part, bucket), []))
                still_open |= left
                found.update(files)
    except RecordError:
        return set()
    return found - still_open - {name for name, _ in run.failures()}
