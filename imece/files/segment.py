"""The rows of one execution of a bucket job, while it works: a file in its staging directory, or a
nameless one. Its runner appends, its worker reads.
"""

import errno
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from imece.files import ledger
from imece.files.ledger import SEGMENT, opened, read_from
from imece.files.rows import (
    MAGIC,
    PREAMBLE,
    TO_THE_END,
    Block,
    LedgerError,
    Row,
    blocks,
    packed_names,
    rows,
)
from imece.process import move_up

CAN_REOPEN = os.path.isdir("/proc/self/fd")
"""Whether a file that is open can be opened again, for something else, without its name."""

SLOW = 0.002
"""Seconds between two rows from which on the segment is not kept open for the next: a file system
with a file that is open for writing cannot be made read-only."""

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
APPENDED = os.O_WRONLY | os.O_APPEND


class Segment:
    """The rows of one execution while it works: its runner appends, its worker reads.

    It is held open to be read from. Whoever removes it takes nothing from those who have it.

    Args:
        number: the file's descriptor.
        start: where its rows begin.
        is_nameless: it is open to be written to, too, and stays open.
    """

    def __init__(self, number: int, start: int = 0, is_nameless: bool = False) -> None:
        self._number = number
        self._is_nameless = is_nameless
        self._appended = number if is_nameless or not CAN_REOPEN else -1
        self._read = start
        self._written = 0.0

    @classmethod
    def begin(cls, directory: int, header: dict[str, Any], files: Iterable[bytes]) -> "Segment":
        """The worker's: a new one.

        Args:
            directory: the staging directory.

        Raises:
            OSError: it cannot be written.
        """
        names, head = packed_names(files), json.dumps(header).encode()
        start = PREAMBLE.pack(MAGIC, len(head), len(names), TO_THE_END) + head + names
        with opened(SEGMENT, directory, APPENDED | os.O_CREAT | os.O_TRUNC, 0o600) as number:
            _write(number, start)
        made = cls.of(directory)
        made._read = len(start)
        return made

    @classmethod
    def of(cls, directory: int) -> "Segment":
        """The runner's: that of its worker.

        Raises:
            OSError: it is not there.
        """
        flags = READ if CAN_REOPEN else os.O_RDWR | os.O_APPEND
        return cls(move_up(os.open(SEGMENT, flags, dir_fd=directory)))

    @classmethod
    def nameless(cls, number: int) -> "Segment":
        """For a run without outputs: nobody keeps its rows. The worker empties the file."""
        return cls(number, is_nameless=True)

    def append(self, row: Row) -> None:
        """One call of `write`: a row is there whole, or not at all, whoever is killed.

        Raises:
            OSError: it is not there.
        """
        now, last = time.monotonic(), self._written
        self._written = now
        if self._appended == -1:
            self._appended = move_up(self._open())
        _write(self._appended, row.encode())
        if self._appended != self._number and now - last > SLOW:
            os.close(self._appended)
            self._appended = -1

    def _open(self) -> int:
        """To be written to, though its name may be gone."""
        return os.open(f"/proc/self/fd/{self._number}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def new(self) -> list[Row]:
        """The rows since the last call; none once it is closed.

        Raises:
            OSError: they cannot be read.
        """
        if self._number == -1:
            return []
        found = list(rows(read_from(self._number, self._read)))
        if found:
            self._read += found[-1][1]
        return [row for row, _ in found]

    def drop_half_a_row(self) -> None:
        """After `new`, and once its writer is dead: it may have been killed while it wrote. The
        next row must not be read as the other half.

        Raises:
            OSError: it cannot be written to.
        """
        if os.fstat(self._number).st_size == self._read:
            return
        if self._appended == self._number:
            os.ftruncate(self._number, self._read)
        else:
            number = self._open()
            os.ftruncate(number, self._read)
            os.close(number)

    def keep(self, root: int) -> None:
        """Makes a block of it; see `ledger.keep`."""
        ledger.keep_data(root, read_from(self._number, 0))

    def close(self) -> None:
        """A nameless one stays."""
        if self._is_nameless:
            return
        for number in {self._number, self._appended}:
            if number != -1:
                with suppress(OSError):  # a processor has closed it
                    os.close(number)
        self._number = self._appended = -1


def _write(number: int, data: bytes) -> None:
    written = os.write(number, data)
    if written != len(data):  # the disk is full
        os.ftruncate(number, os.fstat(number).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def left_in(staging_directory: int) -> Block | None:
    """What an execution has left; None if there is nothing that can be read."""
    try:
        with opened(SEGMENT, staging_directory, READ) as number:
            return next(blocks(read_from(number, 0)), None)
    except (OSError, LedgerError):
        return None
