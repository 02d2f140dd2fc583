"""The worker's private directory: paths for the processor that hold.

A processor takes paths, and whoever may write to IN or OUT could swap what lies on the way. So it
is given links in a directory that nobody else can write to, which lead to what has been opened
already (/proc/PID/fd). They have the file's real name and ending. A processor that puts something
else in the place of a link has not changed its input.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from functools import cache

from imece.files import beneath

PREFIX = "imece-worker-"
MEMORY = "/dev/shm"  # noqa: S108 - what is made there is for its owner alone
LOCK = b"lock"
_MADE_AFTER = 60.0
"""Seconds a directory may be without a lock: it is being made."""


@cache
def directory() -> bytes | None:
    """Made for this process and removed with it; None where descriptors have no paths."""
    if not os.path.isdir("/proc/self/fd"):
        return None
    parent = _parent()
    _sweep(parent)
    while True:
        made = os.fsencode(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(made + b"/" + LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)  # never given back: it ends with this process
        if os.fstat(lock).st_nlink > 0:  # else a sweeper was quicker
            break
        os.close(lock)
    atexit.register(_remove, made, os.getpid())
    trial = made + b"/trial"
    os.symlink(b"/proc/self/fd/%d" % lock, trial)
    if not os.path.exists(trial):  # links are not followed there
        return None
    os.unlink(trial)
    return made


def _parent() -> str:
    """In memory if that can be: a link is renamed for each file, on a disk at twice the price."""
    return MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else tempfile.gettempdir()


def _remove(made: bytes, maker: int) -> None:
    if os.getpid() == maker:
        shutil.rmtree(made, ignore_errors=True)


def _sweep(parent: str) -> None:
    """Removes what workers that were killed have left."""
    number = os.open(parent, beneath.LISTED & ~os.O_NOFOLLOW)
    try:
        with os.scandir(number) as entries:
            found = [entry.name for entry in entries if entry.name.startswith(PREFIX)]
        for name in found:
            _sweep_one(os.fsencode(name), number)
    except OSError:
        pass
    finally:
        os.close(number)


def _sweep_one(name: bytes, parent: int) -> None:
    try:
        number = os.open(name, beneath.LISTED, dir_fd=parent)
    except OSError:
        return
    lock = None
    try:
        about = os.fstat(number)
        if about.st_uid != os.geteuid():
            return
        try:
            lock = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=number)
        except FileNotFoundError:
            if time.time() - about.st_mtime < _MADE_AFTER:
                return
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        beneath.remove(name, parent)
    except OSError:
        pass  # its worker lives
    finally:
        os.close(number)
        if lock is not None:
            os.close(lock)


def path_by(number: int) -> bytes:
    """Of what is open in this process by this descriptor; for the programs it starts, too. By the
    number that this process has in /proc, which may be of another namespace than our own."""
    return b"/proc/%s/fd/%d" % (os.readlink(b"/proc/self"), number)


def path_of(base: bytes, execution: str) -> bytes:
    return base + b"/" + execution[:12].encode()


def clear(execution: str) -> None:
    """Removes what an execution's runners had."""
    if (base := directory()) is not None:
        shutil.rmtree(path_of(base, execution), ignore_errors=True)
