"""The directory in which an execution writes its outputs before they are put in their places.

It is for its owner alone, and used by its descriptor. Beside the outputs it has: `lock`, which the
worker holds for as long as it lives; `rows`, what has become of each file (imece/files/segment.py);
and `copies`, the directories on other file systems to which it has copied something.
"""

import errno
import fcntl
import math
import os
import re
import socket
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from imece import names
from imece.files import beneath, ledger, segment
from imece.files.rows import Block
from imece.process import move_up

NAME = re.compile(re.escape(names.TEMPORARY_PREFIX) + rb"[0-9a-f]{12}")
"""Other names may begin like it: reports of failed files."""

CARRIED = b".carried"
LOCK, COPY_TARGETS = b"lock", b"copies"

FOREIGN_SILENCE = 60.0
"""Seconds without a sign of life after which another host's staging directory counts as left behind
if its lock is free: some network file systems keep locks to each host."""

UNKNOWN_SILENCE = 3600.0
"""The same if nobody knows whether its job will be taken over: the next worker needs its rows."""

LIFE_PAUSE = 15.0

APPENDED = os.O_CREAT | os.O_WRONLY | os.O_APPEND


def _open(name: bytes, directory: int, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)


def _read(name: bytes, directory: int) -> bytes:
    """What a file of the directory holds; nothing if it is not there."""
    try:
        number = _open(name, directory, os.O_RDONLY)
    except OSError:
        return b""
    with open(number, "rb") as stream:
        return stream.read()


def name_of(execution: str) -> bytes:
    return names.TEMPORARY_PREFIX + execution[:12].encode()


def host() -> str:
    """What tells one running kernel from another: on the same, a free lock means a dead worker."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            return stream.read().strip()
    except OSError:
        return socket.gethostname()


def is_ours(directory: int) -> bool:
    """Whether a directory has the same owner as the files that we make. That need not be us: a file
    server may give them another owner, the same each time."""
    owner = os.fstat(directory).st_uid
    if owner == os.geteuid():
        return True
    probe = b"probe-%d-%d" % (os.getpid(), time.monotonic_ns())
    try:
        number = _open(probe, directory, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except OSError:
        return False
    try:
        return os.fstat(number).st_uid == owner
    finally:
        os.close(number)
        os.unlink(probe, dir_fd=directory)


def open_private(parent: int, name: bytes, make: bool) -> int:
    """A descriptor of a directory that is for us alone.

    Raises:
        OSError: it is not there, or it is a link or somebody else's.
    """
    if make:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            pass
    number = os.open(name, beneath.LISTED, dir_fd=parent)
    try:
        if not is_ours(number):
            raise PermissionError(errno.EPERM, "it belongs to somebody else", name)
        if stat.S_IMODE(os.fstat(number).st_mode) & 0o077:
            try:
                os.fchmod(number, 0o700)
            except OSError:
                pass  # some file systems know no permissions
    except OSError:
        os.close(number)
        raise
    return number


def take_lock(directory: int, text: str) -> int | None:
    """Makes the lock file and holds it; its descriptor. None if it was removed just then.

    Where locks are not supported the file alone is there, with its time.
    """
    with open(_open(LOCK, directory, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), "w") as stream:
        stream.write(text)
    # Not open for writing: a file system with such a file cannot be made read-only. For a shared
    # lock this is enough on NFS, too; a sweeper asks for one that is not shared.
    try:
        number = _open(LOCK, directory, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_SH)
    except OSError:
        pass
    if os.fstat(number).st_nlink == 0:  # a sweeper was quicker
        os.close(number)
        return None
    _held.add(number)
    return number


def release(lock: int) -> None:
    _held.discard(lock)
    try:
        os.close(lock)
    except OSError:
        pass


_held: set[int] = set()


def _release_all() -> None:
    """In a child: a lock is its parent's, and a file that is open cannot be removed on NFS."""
    for number in list(_held):
        release(number)


os.register_at_fork(after_in_child=_release_all)


@contextmanager
def free_lock(directory: int) -> Iterator[tuple[str, float] | None]:
    """What the lock file says and when it was last touched, while nobody else can take it. None if
    it is held, or if nobody can know."""
    try:
        number = _open(LOCK, directory, os.O_RDWR)
    except FileNotFoundError:  # killed before it was made
        yield "", os.fstat(directory).st_mtime
        return
    except OSError:
        yield None
        return
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        text = os.pread(number, 1000, 0).decode("utf-8", "replace")
        yield text, os.fstat(number).st_mtime
    finally:
        os.close(number)


@dataclass
class StagingDirectory:
    """One that is in use.

    Attributes:
        number: its descriptor.
        lock: that of its lock; only the worker itself has it, not its runner.
    """

    root: int
    name: bytes
    number: int
    lock: int | None = None
    _copy_targets: set[bytes] = field(default_factory=set)
    _shown: float = 0.0

    @classmethod
    def make(cls, root: int, execution: str) -> "StagingDirectory":
        """Raises OSError if it cannot be made, or if what is there is not ours."""
        name = name_of(execution)
        return cls(root, name, move_up(open_private(root, name, make=True)))

    def hold(self, kind: str) -> None:
        """The worker's: takes the lock. `kind` tells what the staging directory is for."""
        for _ in range(10):
            self.lock = take_lock(self.number, f"{host()}\n{kind}\n")
            if self.lock is not None:
                self._shown = time.monotonic()
                return
            os.close(self.number)
            self.number = move_up(open_private(self.root, self.name, make=True))
        raise OSError(errno.EAGAIN, "it is removed again and again", self.name)

    def show_life(self) -> None:
        if self.lock is not None and time.monotonic() - self._shown > LIFE_PAUSE:
            self._shown = time.monotonic()
            try:
                os.utime(self.lock)
            except OSError:
                pass

    def note_copy_target(self, directory: bytes) -> None:
        """Before something is copied to this directory, beneath the output directory."""
        if directory in self._copy_targets:
            return
        number = _open(COPY_TARGETS, self.number, APPENDED)
        os.write(number, directory + b"\0")
        os.close(number)
        self._copy_targets.add(directory)

    def close(self) -> None:
        """Its descriptors, the lock's too."""
        if self.lock is not None:
            release(self.lock)
        try:
            os.close(self.number)
        except OSError:
            pass  # a processor has closed it
        self.lock = None


def copy_targets(directory: int) -> list[bytes]:
    return _read(COPY_TARGETS, directory).split(b"\0")[:-1]


def clear(root: int, name: bytes) -> bool:
    """Removes a staging directory with all that is in it, and what was copied from it. Its rows go
    into the ledger, if that can be written. False if it is still there: somebody writes to it at
    this moment, or it is not ours."""
    try:
        number = open_private(root, name, make=False)
    except FileNotFoundError:
        return True
    except OSError:
        beneath.remove_link(name, root)
        return not beneath.is_there(name, root)
    try:
        with suppress(OSError):
            ledger.keep(root, number)
        for directory in copy_targets(number):
            if names.flaw(directory or b"-") is None:
                _clear_copy_target(root, directory, name + CARRIED)
    finally:
        os.close(number)
    beneath.remove(name, root)
    return not beneath.is_there(name, root)


def _clear_copy_target(root: int, directory: bytes, name: bytes) -> None:
    try:
        there = beneath.open_directory(root, directory)
    except OSError:
        return
    try:
        os.close(open_private(there, name, make=False))
        beneath.remove(name, there)
    except OSError:
        pass  # not there, or not ours
    finally:
        os.close(there)


def noted(output: bytes) -> tuple[list[Block], list[str]]:
    """All that is known of the outputs in a directory, the oldest first: its ledger, and the rows
    of executions that have not handed theirs in, because they are at work or were killed. And a
    sentence for each part that cannot be read."""
    open_ones = list(open_blocks(output))  # first: one may be handed in at this moment
    blocks, flaws = ledger.read(output)
    there = {(block.header["execution"], block.at) for block in blocks}
    blocks += [block for block in open_ones if (block.header["execution"], block.at) not in there]
    return sorted(blocks, key=lambda block: block.at), flaws


def open_blocks(output: bytes) -> Iterator[Block]:
    """What executions have written that have not handed it in; nothing of what cannot be read."""
    try:
        root = os.open(output, beneath.LISTED & ~os.O_NOFOLLOW)
    except OSError:
        return
    try:
        for name in _found(root):
            try:
                number = open_private(root, name, make=False)
            except OSError:
                continue
            try:
                if (block := segment.left_in(number)) is not None:
                    yield block
            finally:
                os.close(number)
    except OSError:
        return  # it cannot be listed
    finally:
        os.close(root)


def sweep(
    root: bytes,
    keep: Collection[str] | None = None,
    kind: str | None = None,
    now: float = 0.0,
    patience: float = math.inf,
) -> int:
    """Removes staging directories that dead workers have left in an output directory; how many.

    A worker is dead if its lock is free; on another host it must also have been silent for a while.

    Args:
        keep: the executions whose jobs are held or will be taken over. None if that is not known:
            then it removes only what has been silent for long.
        kind: it removes those of this kind at once: nobody takes their jobs over.
        now: epoch seconds; 0: this moment.
        patience: seconds after which it stops to look: a directory may have millions of entries.
    """
    try:
        number = os.open(root, beneath.LISTED)
    except OSError:
        return 0
    kept = {name_of(execution) for execution in keep or ()}
    removed = 0
    try:
        for name in _found(number, time.monotonic() + patience):
            if name not in kept:
                removed += _sweep(number, name, keep is not None, kind, now or time.time())
    except OSError:
        pass  # it cannot be listed
    finally:
        os.close(number)
    return removed


def _found(directory: int, end: float = math.inf) -> list[bytes]:
    """The names of staging directories."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if NAME.fullmatch(name := os.fsencode(entry.name)):
                found.append(name)
            if time.monotonic() > end:
                break
    return found


def _sweep(root: int, name: bytes, known: bool, kind: str | None, now: float) -> bool:
    try:
        number = open_private(root, name, make=False)
    except OSError:
        return False
    try:
        with free_lock(number) as said:
            if said is None:
                return False
            text, touched = said
            where, _, what = text.partition("\n")
            if known or (kind is not None and what.strip() == kind):
                silence = 0.0 if where == host() else FOREIGN_SILENCE
            else:
                silence = UNKNOWN_SILENCE
            if now - touched < silence:
                return False
            clear(root, name)
    finally:
        os.close(number)
    return clear(root, name)  # on NFS the lock file was kept until it was closed
