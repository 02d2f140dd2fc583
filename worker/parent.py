"""Binding a process to its parent, so that none outlives it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent is gone. Called right after a fork.

    Linux only; elsewhere the child of a killed parent finishes what it has in hand.

    Args:
        parent: the parent's process id, as it was before the fork.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the kernel was asked
            os._exit(1)
