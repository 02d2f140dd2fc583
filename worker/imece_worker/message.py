"""One bucket job as the parent gives it to a runner, through the line between them."""

import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from imece.run.job import Cursor
from imece.run.parameters import Parameters
from imece_worker import private_directory
from imece_worker.paths import Paths
from imece_worker.retry import ServerClock

_LENGTHS = struct.Struct("!QQ")


@dataclass(frozen=True)
class JobMessage:
    """All a runner needs to know of a bucket job.

    Attributes:
        first: index in the bucket of the first of `files`.
        alone: the first of the files that are to be tried one by one, and the one behind the last
            of them: a batch with them has ended its process.
        ahead: those from the cursor's next on that have been tried.
    """

    first: int
    files: Sequence[bytes]
    cursor: Cursor
    ahead: Sequence[int]
    parameters: Parameters
    paths: Paths
    clock: ServerClock
    alone: tuple[int, int] = (0, 0)

    def send(self, line: socket.socket) -> None:
        """Raises OSError if there is nobody to receive it."""
        paths = self.paths
        head = json.dumps(
            {
                "first": self.first,
                "cursor": self.cursor.encode(),
                "ahead": self.ahead,
                "alone": self.alone,
                "parameters": self.parameters.encode(),
                "clock": self.clock.ahead,
                "source": os.fsdecode(paths.source_root),
                "target": paths.target_root and os.fsdecode(paths.target_root),
                "execution": paths.execution,
                "links": (links := private_directory.directory()) and os.fsdecode(links),
            }
        ).encode()
        files = b"\0".join(self.files)
        line.sendall(_LENGTHS.pack(len(head), len(files)) + head + files)

    @classmethod
    def receive(cls, line: socket.socket) -> "JobMessage | None":
        """Waits for the next one; None if none will come."""
        lengths = _read(line, _LENGTHS.size)
        if not lengths:
            return None
        head_length, files_length = _LENGTHS.unpack(lengths)
        head = json.loads(_read(line, head_length))
        parameters = Parameters.decode(head["parameters"])
        private_directory.know(head["links"] and os.fsencode(head["links"]))
        return cls(
            first=head["first"],
            files=_read(line, files_length).split(b"\0"),
            cursor=Cursor.decode(head["cursor"]),
            ahead=head["ahead"],
            alone=tuple(head["alone"]),
            parameters=parameters,
            paths=Paths(head["source"], head["target"], parameters, head["execution"]),
            clock=ServerClock(head["clock"]),
        )


def _read(line: socket.socket, length: int) -> bytes:
    """So many bytes; nothing if the parent has hung up."""
    data = bytearray()
    while len(data) < length:
        part = line.recv(min(length - len(data), 2**20))
        if not part:
            return b""
        data += part
    return bytes(data)
