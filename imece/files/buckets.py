"""The formula of a bucket; it stands here alone, for producers and for static buckets."""

from collections.abc import Iterable, Iterator

import mmh3


def numbers(names: Iterable[bytes], buckets: int, seed: int) -> Iterator[int]:
    """The bucket of each name: `mmh3.hash(name, seed, signed=False) % buckets`.

    Args:
        names: of input files, relative to the input directory.
    """
    digest = mmh3.mmh3_32_uintdigest  # the same number, called more quickly
    return (digest(name, seed) % buckets for name in names)
