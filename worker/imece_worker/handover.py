"""Keeps the way to Redis out of the environment that processors and their programs see.

/proc/PID/environ shows what a process was started with, whatever it has made of it since. So the
worker starts anew, without these variables, under the same process id; their values come to it
through a nameless file in memory.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from imece_worker.stops import STOP_SIGNALS

SECRETS = {
    "IMECE_REDIS_URL",
    "IMECE_REDIS_USERNAME",
    "IMECE_REDIS_PASSWORD",
    "IMECE_REDIS_SENTINELS",
    "IMECE_REDIS_SENTINEL_MASTER",
}
FILE = "IMECE_HANDED_OVER"
"""Names the file's descriptor."""


def start_anew() -> None:
    """Does not come back if there is anything to hide, and a way to do so."""
    secrets = _secrets()
    if not secrets or not sys.executable or not hasattr(os, "memfd_create"):
        return
    number = os.memfd_create("imece", 0)  # the flag that would close it is not set
    with open(number, "w", closefd=False) as file:
        json.dump(secrets, file)
    rest = {name: value for name, value in os.environ.items() if name not in secrets}
    # A signal that comes in between waits until somebody listens again: stops.leave_with.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        os.execve(  # noqa: S606 - ourselves
            sys.executable, [sys.executable, *sys.orig_argv[1:]], rest | {FILE: str(number)}
        )
    except OSError:  # then `in_environment` does what it can
        os.close(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _secrets() -> dict[str, str]:
    """Those in the environment; their names may be written in small letters, too."""
    return {name: value for name, value in os.environ.items() if name.upper() in SECRETS}


@contextmanager
def in_environment() -> Iterator[None]:
    """For as long as the settings are read."""
    number = os.environ.pop(FILE, None)
    if number is not None:
        with open(int(number)) as file:
            file.seek(0)
            os.environ.update(json.load(file))
    try:
        yield
    finally:
        for name in _secrets():
            del os.environ[name]
