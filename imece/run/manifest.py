"""A manifest: the names of one bucket's files, joined by NUL, compressed. Never changed.

A bucket job's indexes are those of the sorted names. The reader of a manifest sorts them, one
bucket at a time. The producer makes all manifests: to sort would be a third of its work on them.
"""

import zlib
from collections.abc import Sequence

from imece import names
from imece.errors import ListingError
from imece.run.records import RecordError

MOST_BUCKETS = 65536
"""Manifests a run may ask for."""

LARGEST = 64 * 2**20
"""Bytes a manifest may unpack to; a larger one was not made by imece."""

MOST_NAMES = 2**21
"""Names it may hold. With both, a worker takes at most half a gigabyte to unpack one."""

WRONG = "what stands for the names of its files is not a manifest: "


def encode(files: Sequence[bytes]) -> bytes:
    """The blob for names in any order.

    It is made for speed (bench/enqueue.py): level 1 takes half the time of level 6 and is
    15 % larger; a small window takes less memory to set up.

    Raises:
        ListingError: they are more than `decode` takes.
    """
    text = b"\0".join(files)
    if len(text) > LARGEST or len(files) > MOST_NAMES:
        raise ListingError(
            f"a bucket of {len(files):,} files with {len(text):,} bytes of names is too large: "
            f"it may have {MOST_NAMES:,} files and {LARGEST:,} bytes",
            "take more --buckets",
        )
    packer = zlib.compressobj(level=1, wbits=13, memLevel=7)
    return packer.compress(text) + packer.flush()


def decode(blob: bytes) -> list[bytes]:
    """The names in a blob, sorted.

    Raises:
        RecordError: it is not a manifest, or holds a name that could leave its directory.
    """
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(blob, LARGEST + 1)
    except zlib.error:
        raise RecordError(f"{WRONG}it cannot be unpacked") from None
    if len(text) > LARGEST or text.count(b"\0") >= MOST_NAMES:
        raise RecordError(f"{WRONG}it is too large")
    if not unpacker.eof:
        raise RecordError(f"{WRONG}it is cut off")
    if unpacker.unused_data:
        raise RecordError(f"{WRONG}something follows it")
    if b"\0\0" in text:  # before they become a list many times as large
        raise RecordError("a name in the manifest is empty")
    files = text.split(b"\0")
    parts = b"\0%s\0" % text.replace(b"/", b"\0")
    suspect = (b"\0\0", b"\0.\0", b"\0..\0", b"\0.imece\0", b"\0.imece-")
    if any(part in parts for part in suspect):  # so much for nearly all
        for name in files:
            if flaw := names.flaw(name):
                raise RecordError(f"the name '{names.shown(name)}' in the manifest {flaw}")
    files.sort()
    if len(set(files)) < len(files):
        raise RecordError("a name is in the manifest twice")
    return files
