"""Directories by descriptors: what is opened is beneath its root, also if somebody swaps
directories at that time.

A path is looked up again at each use, so a check of it holds for no longer than the check. What a
descriptor leads to stays the same directory.
"""

import errno
import os
import shutil
import stat

PINNED = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
"""Opens a directory that need not be listed: it may be unreadable."""

LISTED = os.O_DIRECTORY | os.O_CLOEXEC | os.O_RDONLY | os.O_NOFOLLOW


def open_directory(root: int, path: bytes, make: bool = False) -> int:
    """A descriptor of a directory beneath another; it follows no link on the way.

    Args:
        make: make what is not there. Nothing is made behind a link.

    Raises:
        OSError: ELOOP if there is a link on the way.
    """
    here = os.open(b".", PINNED, dir_fd=root)
    try:
        for part in path.split(b"/") if path else ():
            if part in (b"", b".", b".."):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
            following = _step(here, part, make)
            os.close(here)
            here = following
    except OSError:
        os.close(here)
        raise
    return here


def _step(here: int, part: bytes, make: bool) -> int:
    try:
        return os.open(part, PINNED | os.O_NOFOLLOW, dir_fd=here)
    except FileNotFoundError:
        if not make:
            raise
    except NotADirectoryError:
        if stat.S_ISLNK(os.lstat(part, dir_fd=here).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), part) from None
        raise
    try:
        os.mkdir(part, dir_fd=here)
    except FileExistsError:
        pass  # somebody was quicker
    return _step(here, part, make=False)


def is_there(name: bytes, directory: int) -> bool:
    """Whether there is anything by this name; a link to nothing counts, too."""
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
