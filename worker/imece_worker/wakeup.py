"""What ends a worker's waits: a child that ended, a signal to stop."""

import select
import signal
import socket
from types import FrameType

from imece_worker import stops


class Wakeup:
    """Waits that any signal ends at once.

    A handler does nothing but note the wish: no work, no Redis, no exception in the middle of
    something. Python writes a byte for each signal (signal.set_wakeup_fd), which ends the wait.

    Attributes:
        stopping: the worker is to stop.
        at_once: without finishing the file in hand.
    """

    def __init__(self) -> None:
        self.stopping = self.at_once = False
        self._heard, self._told = socket.socketpair()
        self._heard.setblocking(False)
        self._told.setblocking(False)
        signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        for number in stops.to_listen_to():
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        self.at_once = self.at_once or number == signal.SIGQUIT

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
