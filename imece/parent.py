"""Binding a process to its parent, so that none outlives it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def follow_parent(parent: int, number: signal.Signals) -> None:
    """Asks the kernel to send this process a signal when its parent is gone, however it went.

    Called right after a fork. Linux only; elsewhere the child of a killed parent lives on.

    Args:
        parent: the parent's process id, as it was before the fork.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it was gone before the kernel was asked
            os._exit(1)
