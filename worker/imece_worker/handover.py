"""Keeps address and password of Redis out of the environment that processors and programs see.

/proc/PID/environ shows what a process was started with, also when it has deleted a variable since.
So the worker starts again without these variables, under the same process id. It gets their values
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
    """Starts this process again if there is anything to hide, and a way to hide it. Then it does
    not come back."""
    secrets = _secrets()
    if not secrets or not sys.executable or not hasattr(os, "memfd_create"):
        return
    number = os.memfd_create("imece", 0)  # the flag that would close it is not set
    with open(number, "w", closefd=False) as file:
        json.dump(secrets, file)
    rest = {name: value for name, value in os.environ.items() if name not in secrets}
    # A signal that comes at this time waits until `stops.leave_with`.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        os.execve(  # noqa: S606 - ourselves
            sys.executable, [sys.executable, *sys.orig_argv[1:]], rest | {FILE: str(number)}
        )
    except OSError:  # then `in_environment` does what it can
        os.close(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _secrets() -> dict[str, str]:
    """Those in the environment. Their names may be in small letters, too."""
    return {name: value for name, value in os.environ.items() if name.upper() in SECRETS}


@contextmanager
def in_environment() -> Iterator[None]:
    """While the settings are read."""
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
