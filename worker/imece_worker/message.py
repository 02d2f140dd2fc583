"""One bucket job as the parent gives it to a runner, through the line between them."""

import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from imece.run.job import Cursor
from imece.run.parameters import Parameters
from imece_worker.paths import Paths
from imece_worker.retry import ServerClock

_LENGTHS = struct.Struct("!QQ")


@dataclass(frozen=True)
class JobMessage:
    """All a runner needs to know of a bucket job.

    Attributes:
        first: index in the bucket of the first of `files`.
        untouched: see `Claimed`.
    """

    first: int
    files: Sequence[bytes]
    cursor: Cursor
    parameters: Parameters
    untouched: bool
    paths: Paths
    clock: ServerClock

    def send(self, line: socket.socket) -> None:
        """Raises OSError if there is nobody to receive it."""
        paths = self.paths
        target = os.fsdecode(paths.target_root) if paths.target_root is not None else None
        suffix = os.fsdecode(paths.suffix) if paths.suffix is not None else None
        head = json.dumps(
            {
                "first": self.first,
                "cursor": self.cursor.encode(),
                "parameters": self.parameters.encode(),
                "untouched": self.untouched,
                "clock": self.clock.ahead,
                "places": [os.fsdecode(paths.source_root), target, suffix, paths.execution],
                "overwrite": paths.overwrite,
            }
        ).encode()
        files = b"\0".join(self.files)
        line.sendall(_LENGTHS.pack(len(head), len(files)) + head + files)

    @classmethod
    def receive(cls, line: socket.socket) -> "JobMessage | None":
        """Waits for the next one; None if none will come."""
        try:
            head_length, files_length = _LENGTHS.unpack(_read(line, _LENGTHS.size))
        except EOFError:
            return None
        head = json.loads(_read(line, head_length))
        source, target, suffix, execution = head["places"]
        return cls(
            first=head["first"],
            files=_read(line, files_length).split(b"\0"),
            cursor=Cursor.decode(head["cursor"]),
            parameters=Parameters.decode(head["parameters"]),
            untouched=head["untouched"],
            paths=Paths(
                os.fsencode(source),
                os.fsencode(target) if target is not None else None,
                os.fsencode(suffix) if suffix is not None else None,
                execution,
                head["overwrite"],
            ),
            clock=ServerClock(head["clock"]),
        )


def _read(line: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = line.recv(min(length - len(data), 2**20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
