"""What runners leave behind: it becomes the worker's, is killed, and is buried.

A process whose parent has ended is adopted by the nearest ancestor that asks for it, or by process
1, which in a container is the worker. One that has ended, and that nobody waits for, stays as a
zombie.
"""

import os
import signal
import time

from imece.process import adopt_orphans

PATIENCE = 1.0


class Orphans:
    """Children of this process that it has not started itself.

    To be made when all but runners and drainers have been forked: what is there by then, a process
    that the import of the processor has started say, is left alone.
    """

    def __init__(self) -> None:
        adopt_orphans()
        self.own = children()
        """Those that are none."""

    def reap(self) -> None:
        """Takes note of those that have ended. Nobody else's exit code is taken."""
        if not _any_has_ended():
            return
        for pid in children() - self.own:
            _reap(pid)

    def kill(self) -> None:
        """All of them, and those that come up when their parents are gone."""
        end = time.monotonic() + PATIENCE
        while orphans := children() - self.own:
            for pid in orphans:
                _kill(pid)
                _reap(pid)
            if time.monotonic() > end:
                return  # one cannot be killed at the moment: it is tried again
            time.sleep(0.001)


def children() -> set[int]:
    """Of all threads of this process; none where the system does not tell."""
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
    """Whether there is an exit code to be taken, of any child; quicker than to look for all."""
    if not hasattr(os, "waitid"):
        return True
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # another user's: it was a set-user-id program
        pass


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
