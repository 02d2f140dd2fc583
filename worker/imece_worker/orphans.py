"""What processors leave running.

A process whose parent has ended is adopted by the nearest ancestor that asks for it, or by process
1, which in a container is the worker. The worker kills it and takes its exit code. Otherwise it
would stay as a zombie.
"""

import os
import signal
import time
from contextlib import suppress

from imece.process import adopt_orphans

PATIENCE = 1.0


class Orphans:
    """Children of this process that it has not started itself.

    Attributes:
        own: children that it has started itself, or leaves alone.
    """

    def __init__(self) -> None:
        adopt_orphans()
        self.own: set[int] = set()

    def spare(self) -> None:
        """Leaves those alone that there are now: an import of the processor has left them."""
        self.own |= children()

    def reap(self) -> None:
        """Takes the exit codes of those that have ended, and of no other process."""
        if not _any_has_ended():
            return
        for pid in children() - self.own:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def kill(self) -> None:
        """All of them, and those that they leave when they end."""
        end = time.monotonic() + PATIENCE
        while orphans := children() - self.own:
            for pid in orphans:
                with suppress(ProcessLookupError, PermissionError):  # PermissionError: a
                    os.kill(pid, signal.SIGKILL)  # set-user-id program of another user
            self.reap()
            if time.monotonic() > end:
                return  # one cannot be killed at the moment: it is tried again
            time.sleep(0.001)


def children() -> set[int]:
    """The children of all threads of this process; none where the system does not tell."""
    found: set[int] = set()
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return found  # /proc is another namespace's, and its numbers are not ours
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children") as file:
                found.update(map(int, file.read().split()))
    except OSError:
        pass  # a thread that has just ended, or a system that does not tell
    return found


def _any_has_ended() -> bool:
    """Whether any child has ended; quicker than to look for all."""
    if not hasattr(os, "waitid"):
        return True
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
