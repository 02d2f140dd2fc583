"""The mark by which a directory is known as an output of ours: an extended attribute, or a file in
it where the file system has no attributes. It names the output, and says whether the directory was
empty from the beginning. So people's own directories are not replaced. Somebody could write such a
mark by hand.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from imece import names
from imece.files import beneath

ATTRIBUTE = "user.imece.output"
FILE = names.TEMPORARY_PREFIX + b"output"
EMPTY = b" empty"
"""Ends the mark of a directory in which there was nothing."""


def sign(directory: int, name: bytes, output: bytes) -> None:
    """Marks a directory as ours, made as this output. One that cannot be marked is not."""
    try:
        with _opened(directory, name) as number:
            mark = _mark(output) + (EMPTY if _is_empty(number) else b"")
            try:
                os.setxattr(number, ATTRIBUTE, mark)
            except (OSError, AttributeError):
                flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(FILE, flags, 0o644, dir_fd=number), "wb") as stream:
                    stream.write(mark)
    except OSError:
        pass


def is_signed(directory: int, name: bytes, output: bytes) -> bool:
    """Whether a directory was made by imece as this output."""
    try:
        with _opened(directory, name) as number:
            return _read(number).removesuffix(EMPTY) == _mark(output)
    except OSError:
        return False


def is_emptied(directory: int, name: bytes) -> bool:
    """Whether a directory that was made by imece had something in it, and now is empty."""
    try:
        with _opened(directory, name) as number:
            return _is_empty(number) and not _read(number).endswith(EMPTY)
    except OSError:
        return False


@contextmanager
def _opened(directory: int, name: bytes) -> Iterator[int]:
    number = os.open(name, beneath.LISTED, dir_fd=directory)
    try:
        yield number
    finally:
        os.close(number)


def _read(number: int) -> bytes:
    """Raises OSError if there is no mark."""
    try:
        return os.getxattr(number, ATTRIBUTE)
    except (OSError, AttributeError):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with open(os.open(FILE, flags, dir_fd=number), "rb") as stream:
            return stream.read(100)


def _is_empty(number: int) -> bool:
    with os.scandir(number) as entries:
        return all(os.fsencode(entry.name) == FILE for entry in entries)


def _mark(output: bytes) -> bytes:
    return hashlib.sha256(output).hexdigest().encode()
