"""What a process is to its parent and to its children, and what it is called."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def follow_parent(parent: int, number: signal.Signals) -> None:
    """Asks the kernel to send this process a signal when its parent is gone, for any reason.

    Called right after a fork. Linux only; elsewhere the child of a killed parent lives on.

    Args:
        parent: the parent's process id, as it was before the fork.
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
