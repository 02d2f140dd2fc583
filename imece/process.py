"""What a process is to its parent and to its children, what it is called, and the numbers of its
open files."""

import ctypes
import fcntl
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def follow_parent(parent: int, number: signal.Signals) -> None:
    """Asks the kernel to send this process a signal when its parent is gone, for any reason.

    Called first of all. Linux only; elsewhere the child of a killed parent lives on.

    Args:
        parent: the parent's process id, as it was when this process was started.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it was gone before the kernel was asked
            os._exit(1)


def adopt_orphans() -> None:
    """Makes descendants whose parents have ended this process's own children. Linux only."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def name_process(name: str) -> None:
    """What `ps` and /proc call it; 15 bytes at most. Linux only."""
    if _libc is not None:
        _libc.prctl(_PR_SET_NAME, name.encode())


def signal_name(number: int) -> str:
    """`SIGSEGV`; not every real-time signal has a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


Identity = tuple[int, int]
"""Device and inode: tells whether a descriptor still stands for the same file."""

OUT_OF_THE_WAY = 512
"""The least number of a descriptor that is kept open while a processor runs."""


def move_up(number: int) -> int:
    """Gives an open file a number from `OUT_OF_THE_WAY` on, and closes the old one; the new one.
    The same number if the process may not have one as large.

    A processor that closes a small number twice, or too many of them, closes files of its own. And
    its next file gets the smallest number that is free, which is then none of ours.
    """
    try:
        moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, OUT_OF_THE_WAY)
    except OSError:
        return number
    os.close(number)
    return moved
