"""Puts what an execution has made on stable storage, so that no loss of power undoes what Redis was
told (`IMECE_SYNC`).

One call of `syncfs` for each file system at a checkpoint, and not one of `fsync` for each file: it
writes the files, their directories and the rows.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from imece.files import beneath
from imece.process import move_up

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
CAN_SYNC = hasattr(_libc, "syncfs")


class Storage:
    """The file systems that one execution writes to.

    Their descriptors are opened before the first output is written: `syncfs` reports an error to
    those who had opened the file system before it happened.
    """

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._numbers: dict[int, int] = {}  # by device
        with suppress(OSError):
            self._open(root)

    def _open(self, directory: bytes) -> None:
        number = move_up(os.open(directory, beneath.LISTED))
        if self._numbers.setdefault(os.fstat(number).st_dev, number) != number:
            os.close(number)

    def add(self, directories: Iterable[bytes]) -> None:
        """Those to which outputs are carried, relative to the output directory."""
        for directory in directories:
            with suppress(OSError):  # it was moved away, and the outputs with it
                self._open(os.path.join(self._root, directory))

    def sync(self, pause: float, meanwhile: Callable[[], None]) -> None:
        """Comes back when all that was written before is there. A disk may take long: so another
        thread waits for it.

        Args:
            meanwhile: called again and again, after `pause` seconds.

        Raises:
            OSError: some of it may never be there.
        """
        if not self._numbers:
            self._open(self._root)
        errors: list[int] = []
        numbers = list(self._numbers.values())
        thread = threading.Thread(target=_sync, args=(numbers, errors), daemon=True)
        thread.start()
        thread.join(pause)
        while thread.is_alive():
            meanwhile()
            thread.join(pause)
        if errors:
            raise OSError(errors[0], os.strerror(errors[0]))

    def __del__(self) -> None:
        for number in self._numbers.values():
            os.close(number)


def _sync(numbers: list[int], errors: list[int]) -> None:
    assert _libc is not None  # noqa: S101 - CAN_SYNC
    errors += [ctypes.get_errno() for number in numbers if _libc.syncfs(number) != 0]
