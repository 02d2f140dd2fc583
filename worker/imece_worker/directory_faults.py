"""Whether a file failed because of the run's directories, or for a reason of its own. A fault of
the directories is looked for now; one that has passed already is not seen.
"""

import errno
import os
import tempfile
from contextlib import suppress

from imece import names
from imece_worker.directories import Tree

FULL = (errno.ENOSPC, errno.EDQUOT)
BROKEN = (errno.ESTALE, errno.ENOTCONN, errno.EIO)
PROBE = 2**16
LITTLE_ROOM = 64 * 2**20
"""Bytes. With less room than this, the directory is to blame when a file found no room."""


def fault(
    error: BaseException | None, inputs: Tree, outputs: Tree | None, staging_directory: int | None
) -> str | None:
    """What is wrong with the run's directories, so that a file failed with this error; or None.

    Args:
        staging_directory: the descriptor of the one in which outputs are written, if it is open.
    """
    said_full = _says_full(error)
    shown = f"the input directory {names.shown(inputs.path)}"
    if (flaw := _flaw(inputs, os.R_OK | os.X_OK)) is not None:
        return f"{shown} {flaw}"
    if outputs is not None:
        shown = f"the output directory {names.shown(outputs.path)}"
        flaw = _flaw(outputs, os.W_OK | os.X_OK) or _probe(outputs, staging_directory, said_full)
        if flaw is not None:
            return f"{shown} {flaw}"
    if said_full and _is_full(tempfile.gettempdir()):
        return f"the directory for temporary files {tempfile.gettempdir()} is full"
    return None


def _flaw(tree: Tree, rights: int) -> str | None:
    """What is wrong with a root."""
    try:
        if not tree.is_in_place():
            return "is not the one it was when the job was begun"
        if rights & os.W_OK and os.statvfs(tree.path).f_flag & os.ST_RDONLY:
            return "is read-only"
    except OSError as error:
        return _described(error.errno) or f"cannot be looked at: {error.strerror}"
    if not os.access(tree.path, rights):
        return "cannot be written to" if rights & os.W_OK else "cannot be read"
    return None


def _probe(outputs: Tree, staging_directory: int | None, said_full: bool) -> str | None:
    """Writes a little to the output directory."""
    name = names.TEMPORARY_PREFIX + b"probe-%d" % os.getpid()
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        room = os.statvfs(outputs.path)
        try:
            directory = staging_directory if staging_directory is not None else outputs.root
            number = os.open(name, flags, 0o600, dir_fd=directory)
        except FileNotFoundError:  # the file has removed the staging directory
            directory = outputs.root
            number = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            written = os.write(number, bytes(PROBE))
        finally:
            os.close(number)  # where a network file system tells
            os.unlink(name, dir_fd=directory)
    except OSError as error:
        return _described(error.errno)
    little = room.f_blocks and room.f_bavail * room.f_frsize < LITTLE_ROOM
    return "is full" if written < PROBE or (said_full and little) else None


def _described(number: int | None) -> str | None:
    if number in FULL:
        return "is full"
    if number == errno.EROFS:
        return "is read-only"
    if number == errno.ENOENT:
        return "is gone"
    if number in BROKEN:
        return f"cannot be used: {os.strerror(number or 0)}"
    return None


def _is_full(directory: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as stream:
            return stream.write(bytes(PROBE)) != PROBE
    except OSError as error:
        return error.errno in FULL


def _says_full(error: BaseException | None) -> bool:
    """Whether an error says that a file system is full, or one of its causes does. A processor's
    own class may fail to say anything."""
    full = [os.strerror(number) for number in FULL]
    with suppress(Exception):
        if any(text in str(error) for text in full):
            return True
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        with suppress(Exception):
            if getattr(error, "errno", None) in FULL:
                return True
        error = error.__cause__ or error.__context__
    return False
