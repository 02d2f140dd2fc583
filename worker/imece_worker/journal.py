"""A nameless temporary file that runners write to and their parent reads."""

import fcntl
import os
import tempfile


class Journal:
    """Appended to by whoever holds it, read from anywhere. Gone with its last holder."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as this
        self.number = self._file.fileno()
        # Whoever writes, writes at the end: parent and runner share it.
        flags = fcntl.fcntl(self.number, fcntl.F_GETFL)
        fcntl.fcntl(self.number, fcntl.F_SETFL, flags | os.O_APPEND)

    def append(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.number, data) :]

    def size(self) -> int:
        return os.lseek(self.number, 0, os.SEEK_END)

    def read(self, start: int) -> bytes:
        return os.pread(self.number, max(0, self.size() - start), start)

    def clear(self, start: int = 0) -> None:
        os.ftruncate(self.number, start)
