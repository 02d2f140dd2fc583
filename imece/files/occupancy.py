"""Who makes outputs in an output directory: a local run alone, or workers of other servers.

Each local run has a server of its own, so that no server knows of all runs. They keep apart by a
lock on a file in the directory. The kernel gives it up with whoever held it. Where there are no
locks, nothing keeps them apart.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from imece import names
from imece.errors import RunError
from imece.files import beneath, staging
from imece.process import move_up

IN_USE = b"in-use"

PATIENCE = 0.5
"""Seconds: some hold the lock for an instant, to look."""

REMEDY = "wait until it has ended, or take another output directory"


class InUseError(RunError):
    """A local run has the output directory for itself."""


@contextmanager
def alone(output: bytes, run: str, server: str) -> Iterator[None]:
    """Keeps an output directory, which is made if it is not there, for one local run.

    Args:
        server: the address of its server, by which its own workers are known.

    Raises:
        RunError: another run makes outputs there.
    """
    number = _open(output, os.O_RDWR | os.O_CREAT)  # NFS wants it so
    if number is None:
        yield
        return
    try:
        end = time.monotonic() + PATIENCE
        while not _lock(number, fcntl.LOCK_EX):
            if time.monotonic() > end:
                raise RunError(_holder(number, output) or _sharers(output), REMEDY)
            time.sleep(0.02)
        holder = {"run": run, "server": server, "process": os.getpid()}
        _write(number, json.dumps({**holder, "host": socket.gethostname()}))
        yield
        _write(number, "")
    finally:
        os.close(number)


def share(output: bytes, server: str, access: int = os.O_RDONLY | os.O_CREAT) -> int | None:
    """Keeps local runs of other servers out until the descriptor is closed. None if there is no
    lock to hold: that of the local run that this server belongs to is held already.

    Raises:
        InUseError: another local run has it for itself.
    """
    number = _open(output, access)
    if number is None:
        return None
    if _lock(number, fcntl.LOCK_SH):
        return number
    try:
        if _read(number).get("server") != server:
            raise InUseError(
                _holder(number, output) or f"a local run makes outputs in {names.shown(output)}",
                REMEDY,
            )
    finally:
        os.close(number)
    return None


def check(output: bytes, server: str) -> None:
    """Raises InUseError as `share`; leaves nothing."""
    if (number := share(output, server, os.O_RDONLY)) is not None:
        os.close(number)


def _open(output: bytes, access: int) -> int | None:
    """The file to lock; with O_CREAT, directory and file are made. None if it is not there, or if
    nobody may make it."""
    make = bool(access & os.O_CREAT)
    with suppress(OSError):
        if make:
            os.makedirs(output, exist_ok=True)
        root = os.open(output, beneath.LISTED & ~os.O_NOFOLLOW)
        try:
            there = beneath.make_directories if make else beneath.open_directory
            home = there(root, names.HOME)
        finally:
            os.close(root)
        try:
            return move_up(_open_file(home, access | os.O_NOFOLLOW | os.O_CLOEXEC))
        finally:
            os.close(home)
    return None


def _open_file(home: int, flags: int) -> int:
    try:
        return os.open(IN_USE, flags, 0o644, dir_fd=home)
    except PermissionError:  # it is another user's
        return os.open(IN_USE, flags & ~(os.O_CREAT | os.O_RDWR), dir_fd=home)


def _lock(number: int, kind: int) -> bool:
    """False if others hold it."""
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # the file system has no locks
    return True


def _write(number: int, text: str) -> None:
    with suppress(OSError):  # it is another user's
        os.ftruncate(number, 0)
        os.pwrite(number, text.encode(), 0)


def _read(number: int) -> dict[str, object]:
    """What its holder says; nothing if that cannot be read."""
    with suppress(OSError, ValueError):
        found = json.loads(os.pread(number, 10_000, 0))
        if isinstance(found, dict):
            return found
    return {}


def _holder(number: int, output: bytes) -> str | None:
    """A sentence on the local run that holds it; None if there is none, or nobody can say."""
    said = _read(number)
    if not said:
        return None
    run, process, host = (names.printable(str(said.get(key))) for key in ("run", "process", "host"))
    where = names.shown(output)
    return f"the local run {run} (process {process} on {host}) makes outputs in {where}"


def _sharers(output: bytes) -> str:
    """A sentence on workers that share it."""
    run = None
    for block in staging.open_blocks(output):
        run = block.header.get("run")
    whose = f"run {names.printable(str(run))}" if run else "another run"
    return f"workers of {whose} make outputs in {names.shown(output)}"
