"""A manifest: the names of one bucket's files, joined by NUL, compressed. Never changed.

A bucket job's indexes are those of the sorted names. They are sorted by who reads a manifest, one
bucket at a time: for the producer, who makes them all, that would be a third of its work on them.
"""

import zlib
from collections.abc import Sequence

from imece import names

LARGEST = 256 * 2**20
"""Bytes a manifest may unpack to; a larger one was not made by imece."""


def encode(files: Sequence[bytes]) -> bytes:
    """The blob for names in any order.

    The means are chosen for speed (bench/enqueue.py). Level 1 takes half the time of level 6 and is
    15 % larger; a small window takes less memory to set up.
    """
    packer = zlib.compressobj(level=1, wbits=13, memLevel=7)
    return packer.compress(b"\0".join(files)) + packer.flush()


def decode(blob: bytes) -> list[bytes]:
    """The names in a blob, sorted.

    Raises:
        ValueError: it is not a manifest, or holds a name that could leave its directory.
    """
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(blob, LARGEST)
    except zlib.error as error:
        raise ValueError(f"not a manifest: {error}") from None
    if not unpacker.eof:
        raise ValueError("not a manifest: cut off or too large")
    if b"\0\0" in text:  # before they become a list many times as large
        raise ValueError("a name in the manifest is empty")
    files = text.split(b"\0")
    parts = b"\0%s\0" % text.replace(b"/", b"\0")
    suspect = (b"\0\0", b"\0.\0", b"\0..\0", b"\0" + names.TEMPORARY_PREFIX)
    if any(part in parts for part in suspect):  # so much for nearly all
        for name in files:
            if flaw := names.flaw(name):
                raise ValueError(f"the name {names.shown(name)!r} in the manifest {flaw}")
    files.sort()
    return files
