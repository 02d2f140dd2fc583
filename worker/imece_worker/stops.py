"""The signals that ask a worker to stop, and what its other processes make of them.

A service manager may send them to all processes of a worker at once (systemd's default,
KillMode=control-group). Then a runner goes on with its file; a program that it has started may
die of the signal, which is not the file's fault.
"""

import os
import signal
from types import FrameType

from imece.errors import BY_SIGNAL

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""SIGQUIT: without finishing the file in hand."""

_heard = 0


def to_listen_to() -> list[signal.Signals]:
    """All but SIGHUP where it is ignored, by nohup."""
    return [
        number
        for number in STOP_SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]


def leave_with(code: int) -> None:
    """From here on a signal to stop ends this process with this exit code, for as long as there is
    nothing to finish. No exception: an import may catch it."""
    for number in to_listen_to():
        signal.signal(number, lambda number, frame: os._exit(code))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # see imece_worker/handover.py


def only_note() -> None:
    """From here on they are counted, and else do nothing; system calls go on. They are not ignored,
    because programs would inherit that."""
    for number in STOP_SIGNALS:
        signal.signal(number, _note)
        signal.siginterrupt(number, False)


def _note(number: int, frame: FrameType | None) -> None:
    global _heard  # noqa: PLW0603 - signals are a matter of the whole process
    _heard += 1


def heard() -> int:
    """How many have come since `only_note`."""
    return _heard


def is_death_by_stop(code: int) -> bool:
    """Whether an exit code may be that of a process that one of them has ended; see `BY_SIGNAL` for
    what a shell makes of it."""
    return any(code in (-number, BY_SIGNAL + number) for number in STOP_SIGNALS)
