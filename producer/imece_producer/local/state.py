"""The state directory of a local run: who processes it, and at which address its server is."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pydantic import SecretStr

from imece.errors import RunError, UsageError
from imece.settings import Settings

OTHER_SERVER = ("redis_username", "redis_password", "redis_sentinels", "redis_sentinel_master")
"""What settings say of a server that is not the embedded one."""

QUEUE = "imece"
"""The queue of every local run, whatever IMECE_QUEUE says: each has a server of its own, and every
command has to find it."""

LOCK_PATIENCE = 0.3

RECORD, FAILURES = "record.json", "failures.jsonl"
"""What a call leaves (imece_producer/local/record.py): how far it has come; all its failures, a
line of JSON each."""


class OccupiedError(RunError):
    """Another call processes this run."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps a second local run out of a state directory.

    Raises:
        OccupiedError: there is one.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise UsageError(
            f"IMECE_STATE_DIR: {directory} cannot be written to: {error.strerror}"
        ) from None
    with lock:
        if not _locked(lock):
            raise OccupiedError(directory.name)
        try:
            _address(directory).unlink(missing_ok=True)  # of a call that was killed
            yield
        finally:
            _address(directory).unlink(missing_ok=True)


def _locked(lock: TextIO) -> bool:
    """Takes the lock, unless somebody keeps it; `live` holds one for an instant only."""
    end = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)


def announce(directory: Path, url: str) -> None:
    """Lets other commands find the server of a local run; they see the whole address or none."""
    unfinished = directory / "server.url.new"
    unfinished.write_text(url, "utf-8")
    unfinished.rename(_address(directory))


def live(state_dir: Path) -> dict[str, str]:
    """The local runs that are on: run id -> URL of their server."""
    found = {}
    for file in sorted(state_dir.glob("*/server.url")):
        url = announced(file.parent)
        if url is not None and is_locked(file.parent):
            found[file.parent.name] = url
    return found


def announced(directory: Path) -> str | None:
    """The URL of a local run's server; None if it has none yet, or none any more."""
    try:
        return _address(directory).read_text("utf-8")
    except OSError:
        return None


def _address(directory: Path) -> Path:
    return directory / "server.url"


def at(settings: Settings, url: str) -> Settings:
    """The settings for the server of a local run, in place of any other server they name."""
    return settings.model_copy(
        update={**dict.fromkeys(OTHER_SERVER), "redis_url": SecretStr(url), "queue": QUEUE},
    )


def only_live(state_dir: Path, run_id: str | None) -> tuple[str, str]:
    """The local run that is meant.

    Raises:
        UsageError: there is none, or it is not clear which.
    """
    runs = live(state_dir)
    if run_id is not None and run_id in runs:
        return run_id, runs[run_id]
    if not runs or run_id is not None:
        raise UsageError("no local run is on" + (f" under the id {run_id}" if run_id else ""))
    if len(runs) > 1:
        raise UsageError(f"several local runs are on: name one with --run: {', '.join(runs)}")
    return next(iter(runs.items()))


def is_locked(directory: Path) -> bool:
    """Whether a call processes the run of this directory."""
    try:
        with (directory / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # nobody has ever processed it
    return False
