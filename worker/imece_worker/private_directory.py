"""The worker's private directory: paths for the processor that nobody else can change.

A processor takes paths, and those who may write to IN or OUT could exchange a directory on the way.
So the processor gets a link in a directory that nobody else can write to. It leads to a file that
is open already (/proc/PID/fd), and has the file's real name and ending. A processor that replaces
the link has not changed its input.
"""

import atexit
import os
import shutil
import tempfile
import time
from itertools import count

from imece.files import beneath, staging

PREFIX = "imece-worker-"
MEMORY = "/dev/shm"  # noqa: S108 - what is made there is for its owner alone
"""The link is renamed for each file. On a disk that takes twice as long."""
MADE_WITHIN = 60.0
"""Seconds a directory may be without a lock that says something: it is being made."""


_known: list[bytes | None] = []


def directory() -> bytes | None:
    """The worker's: made for it and removed with it; None where descriptors have no paths."""
    if not _known:
        _known.append(_make())
    return _known[0]


def know(made: bytes | None) -> None:
    """The runner's: which one its worker has."""
    _known[:] = [made]


def _make() -> bytes | None:
    if not os.path.isdir("/proc/self/fd"):
        return None
    parent = MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else tempfile.gettempdir()
    _sweep(parent)
    lock = None
    while lock is None:  # a sweeper was quicker
        made = os.fsencode(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        number = os.open(made, beneath.LISTED)
        lock = staging.take_lock(number, "held")  # never given back: it ends with this process
        os.close(number)
    atexit.register(_remove, made, os.getpid())
    trial = made + b"/trial"
    os.symlink(b"/proc/self/fd/%d" % lock, trial)
    if not os.path.exists(trial):  # links are not followed there
        return None
    os.unlink(trial)
    return made


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
    try:
        if os.fstat(number).st_uid != os.geteuid():
            return
        with staging.free_lock(number) as said:
            if said is None:
                return  # its worker lives
            text, touched = said
            if text or time.time() - touched > MADE_WITHIN:
                beneath.remove(name, parent)
    finally:
        os.close(number)


def path_by(number: int) -> bytes:
    """Of an open file of this process, for its programs, too. /proc may be of another namespace,
    and there this process has another number."""
    return b"/proc/%s/fd/%d" % (os.readlink(b"/proc/self"), number)


def path_of(base: bytes, execution: str, slot: int = 0) -> bytes:
    return base + b"/%s-%d" % (execution[:12].encode(), slot)


def clear(execution: str) -> None:
    """Removes the links of an execution's runners."""
    if (base := directory()) is not None:
        for slot in count():
            path = path_of(base, execution, slot)
            if slot and not os.path.isdir(path):
                break
            shutil.rmtree(path, ignore_errors=True)
