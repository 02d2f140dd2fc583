"""The signals that ask a worker to stop, and what each of its processes makes of them.

A service manager may send them to all processes of a worker at once (systemd's default,
KillMode=control-group). Then a runner goes on with its file. A program that it has started may
die of the signal, which is not the file's fault.
"""

import os
import select
import signal
import socket
from types import FrameType

from imece.errors import BY_SIGNAL

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""SIGQUIT: without finishing the current file."""

_heard = 0
_is_noting = _notes_in_children = False


def _to_listen_to() -> list[signal.Signals]:
    """All but SIGHUP where it is ignored, by nohup."""
    return [
        number
        for number in STOP_SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]


def leave_with(code: int | None) -> None:
    """From here on a signal to stop ends this process with this exit code, for as long as there is
    nothing to finish; None: with `BY_SIGNAL` and its number. No exception: an import may catch it.
    """
    for number in _to_listen_to():
        signal.signal(
            number, lambda number, frame: os._exit(BY_SIGNAL + number if code is None else code)
        )
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # see imece_worker/handover.py


def ignore() -> None:
    """For a process that ends with the worker."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def only_note() -> None:
    """From here on they are counted, and do nothing else; system calls go on. They are not ignored,
    because programs would inherit that.

    What a processor forks is ended by them as usual: `multiprocessing.Pool` counts on it.
    """
    global _is_noting  # noqa: PLW0603 - signals are a matter of the whole process
    for number in STOP_SIGNALS:
        signal.signal(number, _note)
        signal.siginterrupt(number, False)
    if not _is_noting:
        _is_noting = True
        os.register_at_fork(
            before=lambda: _mask(signal.SIG_BLOCK),  # else one might be noted by the child
            after_in_parent=lambda: _mask(signal.SIG_UNBLOCK),
            after_in_child=_heed_again,
        )


def note_in_children(wanted: bool) -> None:
    """Whether processes that are forked from here on only note them, too."""
    global _notes_in_children  # noqa: PLW0603 - as `_heard`
    _notes_in_children = wanted


def _mask(how: int) -> None:
    signal.pthread_sigmask(how, STOP_SIGNALS)


def _heed_again() -> None:
    for number in () if _notes_in_children else STOP_SIGNALS:
        if signal.getsignal(number) is _note:
            interrupts = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if interrupts else signal.SIG_DFL)
    _mask(signal.SIG_UNBLOCK)


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


class Wakeup:
    """Waits that any signal ends at once: one to stop, or that a child has ended.

    A handler does nothing but note the wish: no work, no Redis, no exception in the middle of
    something. Python writes a byte for each signal (signal.set_wakeup_fd), which ends the wait.

    Attributes:
        stopping: the worker is to stop.
        at_once: without finishing the current file.
        number: the first signal that asked for it; 0 if none has.
    """

    def __init__(self) -> None:
        self.stopping = self.at_once = False
        self.number = 0
        self._heard, self._told = socket.socketpair()
        self._heard.setblocking(False)
        self._told.setblocking(False)
        signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        for number in _to_listen_to():
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        self.at_once = self.at_once or number == signal.SIGQUIT
        self.number = self.number or number

    def wait(self, seconds: float, *others: socket.socket) -> bool:
        """Waits for a signal, for one of the other sockets, or for the time to pass.

        Returns:
            Whether one of the others can be read.
        """
        readable, _, _ = select.select([self._heard, *others], [], [], max(0.0, seconds))
        if self._heard in readable:
            try:
                self._heard.recv(4096)
            except BlockingIOError:
                pass
        return any(other in readable for other in others)
