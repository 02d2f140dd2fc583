"""Files to buckets, buckets to bucket jobs."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

from imece.files.buckets import numbers
from imece.run import manifest
from imece.run.job import MOST_FILES
from imece.run.manifest import MOST_BUCKETS
from imece.run.parameters import Parameters

FILES_PER_BUCKET = 1000
FEWEST_BUCKETS = 256


@dataclass(frozen=True)
class Shape:
    """Into how many buckets, and how many files a bucket job may hold."""

    buckets: int
    files_per_job: int


@dataclass(frozen=True)
class Bucket:
    """One bucket: its number, how many files are in it, and its manifest."""

    number: int
    files: int
    manifest: bytes


def divide(parameters: Parameters, files: list[bytes]) -> tuple[Shape, list[Bucket]]:
    made = shape(len(files), parameters.buckets, parameters.files_per_job)
    return made, group(files, made.buckets, parameters.seed)


def shape(files: int, buckets: int | None, files_per_job: int | None) -> Shape:
    """What was asked for, or what suits the count of files.

    One file a job up to 256 files, then 256 jobs, then a job for every 1,000 files: enough pieces
    that the last one does not take long, few enough that to take one costs almost nothing.
    """
    if buckets is None:
        buckets = max(min(files, FEWEST_BUCKETS), files // FILES_PER_BUCKET)
        buckets = min(max(buckets, 1), MOST_BUCKETS)
    if files_per_job is None:
        # A quarter more than the mean: only buckets that chance has made large are split.
        files_per_job = 1 if files <= buckets else math.ceil(1.25 * files / buckets)
        files_per_job = min(files_per_job, MOST_FILES)
    return Shape(buckets, files_per_job)


def group(files: Sequence[bytes], buckets: int, seed: int) -> list[Bucket]:
    """The buckets that have files, each with its own."""
    groups: list[list[bytes]] = [[] for _ in range(buckets)]
    appends = [group.append for group in groups]
    for name, number in zip(files, numbers(files, buckets, seed), strict=True):
        appends[number](name)
    filled = [(number, names) for number, names in enumerate(groups) if names]

    def pack(chosen: list[tuple[int, list[bytes]]]) -> list[Bucket]:
        return [Bucket(number, len(names), manifest.encode(names)) for number, names in chosen]

    with ThreadPoolExecutor(2) as pool:  # one compresses while the other joins names
        halves = pool.map(pack, (filled[::2], filled[1::2]))
    return list(chain.from_iterable(halves))


def slices(files: int, files_per_job: int) -> Iterator[tuple[int, int]]:
    """Cuts a bucket of `files` files into bucket jobs of nearly equal size: (start, stop)."""
    pieces = math.ceil(files / files_per_job)
    for piece in range(pieces):
        yield files * piece // pieces, files * (piece + 1) // pieces


def jobs(buckets: Sequence[Bucket], files_per_job: int) -> int:
    """Into how many bucket jobs the buckets are cut."""
    return sum(math.ceil(bucket.files / files_per_job) for bucket in buckets)
