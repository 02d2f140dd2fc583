"""Files to buckets, buckets to bucket jobs."""

import marshal
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mmh3

from imece import manifest, names
from imece.errors import ListingError

FILES_PER_BUCKET = 1000
FEWEST_BUCKETS = 256
MOST_BUCKETS = 65536

WORTH_A_PROCESS = 100_000
"""From so many files on, sorting and compressing are shared with a second process."""


@dataclass(frozen=True)
class Shape:
    """Into how many buckets, and how many files a bucket job may hold."""

    buckets: int
    files_per_job: int


def shape(files: int, buckets: int | None, files_per_job: int | None) -> Shape:
    """What was asked for, or what suits the count of files.

    One file a job up to 256 files, then 256 jobs, then a job for every 1,000 files: enough pieces
    that nobody waits long for the last, few enough that taking one costs next to nothing.
    """
    if buckets is None:
        buckets = max(min(files, FEWEST_BUCKETS), files // FILES_PER_BUCKET)
        buckets = min(max(buckets, 1), MOST_BUCKETS)
    if files_per_job is None:
        # A quarter more than the mean: only buckets that chance has made large are split.
        files_per_job = 1 if files <= buckets else math.ceil(1.25 * files / buckets)
    return Shape(buckets, files_per_job)


@dataclass(frozen=True)
class Bucket:
    """One bucket: its number, how many files are in it, and its manifest."""

    number: int
    files: int
    manifest: bytes


def group(files: Sequence[bytes], buckets: int, seed: int) -> list[Bucket]:
    """The buckets that have files: those with `mmh3.hash(name, seed, signed=False) % buckets` the
    bucket's number.

    Raises:
        ListingError: a name is there twice.
    """
    groups: list[list[bytes]] = [[] for _ in range(buckets)]
    appends = [group.append for group in groups]
    hash_ = mmh3.hash
    for name in files:
        appends[hash_(name, seed, False) % buckets](name)
    filled = [number for number in range(buckets) if groups[number]]
    try:
        manifests = _encode([groups[number] for number in filled], len(files) >= WORTH_A_PROCESS)
    except manifest.DuplicateError as error:
        raise ListingError(f"the name {names.shown(error.name)!r} is in the list twice") from None
    return [
        Bucket(number, len(groups[number]), blob)
        for number, blob in zip(filled, manifests, strict=True)
    ]


def _encode(groups: list[list[bytes]], in_two: bool) -> list[bytes]:
    """The manifest of each group; of every second one by a forked child, if `in_two`."""
    if not in_two:
        return [manifest.encode(group) for group in groups]
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                marshal.dump(_encode(groups[1::2], False), answer)
                answer.flush()
                code = 0
            finally:
                os._exit(code)
        try:
            ours = _encode(groups[::2], False)
        finally:
            _, status = os.waitpid(child, 0)
        answer.seek(0)
        # If the child has failed, so shall we, with the reason.
        theirs = marshal.load(answer) if status == 0 else _encode(groups[1::2], False)  # noqa: S302
    merged = [b""] * len(groups)
    merged[::2], merged[1::2] = ours, theirs
    return merged


def slices(files: int, files_per_job: int) -> Iterator[tuple[int, int]]:
    """Cuts a bucket of `files` files into bucket jobs of nearly equal size: (start, stop)."""
    pieces = math.ceil(files / files_per_job)
    for piece in range(pieces):
        yield files * piece // pieces, files * (piece + 1) // pieces


def check_outputs(files: Sequence[bytes], suffix: bytes | None) -> None:
    """Raises ListingError if two inputs would write the same output.

    Only a new suffix can do that. Hashes first, names only for those that clash: that is half the
    memory of a set of all names.
    """
    if suffix is None:
        return
    seen: set[int] = set()
    clashing: set[int] = set()
    for name in files:
        digest = hash(names.with_suffix(name, suffix))
        if digest in seen:
            clashing.add(digest)
        seen.add(digest)
    first: dict[bytes, bytes] = {}
    for name in files if clashing else ():
        output = names.with_suffix(name, suffix)
        if hash(output) not in clashing:
            continue
        if output in first:
            raise ListingError(
                f"the inputs {names.shown(first[output])!r} and {names.shown(name)!r} would both "
                f"write {names.shown(output)!r}: leave --suffix out, or one of them with --exclude"
            )
        first[output] = name
