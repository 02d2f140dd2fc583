"""Directories by descriptors: what is opened lies beneath its root, whatever is swapped meanwhile.

A path is looked up anew at each use, so a check of it holds for no longer than the check. What a
descriptor leads to stays the same directory.
"""

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable

PINNED = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
"""How a directory is opened that need not be listed: it may be unreadable."""

LISTED = os.O_DIRECTORY | os.O_CLOEXEC | os.O_RDONLY | os.O_NOFOLLOW

_OPENAT2 = 437  # the same on all architectures; linux/openat2.h has the rest
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_TRIES = 100


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _by_one_call() -> Callable[[int, bytes], int] | None:
    """`openat2` for directories, if the kernel has it and lets us use it."""
    try:
        syscall = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return None
    how = _How(PINNED, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)

    def openat2(root: int, path: bytes) -> int:
        for _ in range(_TRIES):
            found: int = syscall(
                ctypes.c_long(_OPENAT2),
                ctypes.c_int(root),
                ctypes.c_char_p(path),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
            if found >= 0:
                return found
            # EAGAIN: something was renamed just then, and the kernel could not be sure.
            if (number := ctypes.get_errno()) not in (errno.EAGAIN, errno.EINTR):
                break
        raise OSError(number, os.strerror(number), path)

    if not hasattr(os, "O_PATH"):
        return None
    root = os.open("/", PINNED)
    try:
        os.close(openat2(root, b"."))
    except OSError:
        return None
    finally:
        os.close(root)
    return openat2


openat2 = _by_one_call()


def open_directory(root: int, path: bytes) -> int:
    """A descriptor of a directory beneath another; no link is followed on the way.

    Raises:
        OSError: ELOOP if there is a link on the way.
    """
    if openat2 is not None:
        return openat2(root, path or b".")
    return _step_by_step(root, path)


def _step_by_step(root: int, path: bytes, make: bool = False) -> int:
    here = os.open(b".", PINNED, dir_fd=root)
    try:
        for part in path.split(b"/") if path else ():
            if part in (b"", b".", b".."):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
            if make:
                _make(here, part)
            following = _step(here, part)
            os.close(here)
            here = following
    except OSError:
        os.close(here)
        raise
    return here


def _step(here: int, part: bytes) -> int:
    try:
        return os.open(part, PINNED | os.O_NOFOLLOW, dir_fd=here)
    except NotADirectoryError:
        if stat.S_ISLNK(os.lstat(part, dir_fd=here).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), part) from None
        raise


def make_directories(root: int, path: bytes) -> int:
    """As `open_directory`, making what is not there. Nothing is made behind a link."""
    return _step_by_step(root, path, make=True)


def _make(here: int, part: bytes) -> None:
    try:
        os.mkdir(part, dir_fd=here)
    except FileExistsError:
        pass


def is_there(name: bytes, directory: int) -> bool:
    """Whether there is anything by this name, be it a link to nothing."""
    try:
        os.lstat(name, dir_fd=directory)
    except OSError:
        return False
    return True


def remove(name: bytes, directory: int) -> None:
    """Removes a file, a link or a directory, if it is there and can be removed."""
    try:
        os.unlink(name, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        shutil.rmtree(name, ignore_errors=True, dir_fd=directory)


def remove_link(name: bytes, directory: int) -> None:
    """Removes what is there if it is a link."""
    try:
        if stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode):
            os.unlink(name, dir_fd=directory)
    except OSError:
        pass
