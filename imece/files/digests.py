"""Hashes of contents, for `--hash`: in a row of the ledger that of the input, then that of the
output, which is not there if the output is a directory."""

import hashlib
import os

SIZE = 16
"""Bytes of BLAKE2b: two of 10¹² files are the same with a probability of 10⁻¹⁵."""


def of_file(path: bytes, follow: bool = True) -> bytes:
    """Raises OSError if it cannot be read."""
    flags = os.O_RDONLY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    with open(os.open(path, flags), "rb") as stream:
        found = hashlib.blake2b(digest_size=SIZE)
        while block := stream.read(2**18):
            found.update(block)
        return found.digest()


def split(detail: bytes) -> tuple[bytes, bytes]:
    """Those of input and output in a row; empty where there is none."""
    return detail[:SIZE], detail[SIZE : 2 * SIZE]
