"""The form of the ledger: rows, and the blocks that they are kept in. docs/reference/ledger.md
describes it for other programs.

A block is: PREAMBLE; a header, JSON; the names of the files, joined by NUL and compressed; and the
rows, compressed. A segment (imece/files/segment.py) is one whose rows go to its end, and are not
compressed.
"""

import json
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from imece import names

MAGIC = b"imece\0\0\1"
"""The last byte is the version of the form."""

PREAMBLE = struct.Struct("<8sIII")
"""Magic; bytes of the header, of the names, and of the rows (`TO_THE_END` in a segment)."""

TO_THE_END = 2**32 - 1

ROW = struct.Struct("<IBxHIIIqqqqqq")
"""The fields of `Row` in their order; in the place of `detail`, its length."""

LEVEL = 1
"""Of compression: 6 makes rows 4 % smaller and takes four times as long."""

LARGEST = 2**30
"""Bytes that the names or rows of one block may have."""


class Outcome(IntEnum):
    """What became of a file."""

    OPEN = 0
    """It is to be done again: what the rows before say of it holds no longer."""
    DONE = 1
    FAILED = 3


class LedgerError(Exception):
    """What is read is not a ledger's."""


class Row(NamedTuple):
    """One try of one file.

    Attributes:
        file: the index of its name; in a segment, in the whole bucket.
        tries: how often it has been tried since it was enqueued.
        ended: epoch seconds.
        peak: KiB of memory that its process had at most until then.
        detail: of a failure JSON (imece_worker/runner.py), else hashes (imece/files/digests.py).
        microseconds, cpu: what it took, on the clock and of processors, in microseconds.
        size, mtime: the input's: bytes, and nanoseconds since the epoch.
        output_size, output_mtime: the output's, as it was when it was put in its place; 0 if there
            is none. A directory's size is 0.
    """

    file: int
    outcome: int
    tries: int = 0
    ended: int = 0
    peak: int = 0
    detail: bytes = b""
    microseconds: int = 0
    cpu: int = 0
    size: int = 0
    mtime: int = 0
    output_size: int = 0
    output_mtime: int = 0

    def encode(self) -> bytes:
        fields = (*self[:5], len(self.detail), *self[6:])
        return ROW.pack(*fields) + self.detail


def size_and_time(output: os.stat_result) -> tuple[int, int]:
    """As in a row. A directory's size is 0."""
    return 0 if stat.S_ISDIR(output.st_mode) else output.st_size, output.st_mtime_ns


def rows(data: bytes, start: int = 0) -> Iterator[tuple[Row, int]]:
    """The whole rows of `data`, each with the place where it ends. Its writer may be at work, or
    have been killed: what is at the end is left for later. After a loss of power zeros may be at
    the end of a file: no row is only zeros."""
    size, step, unpack = len(data), ROW.size, ROW.unpack_from
    while (end := start + step) <= size:
        file, outcome, tries, ended, peak, length, *numbers = unpack(data, start)
        if (end := end + length) > size or not (outcome or ended):
            return
        detail = data[end - length : end] if length else b""
        yield Row(file, outcome, tries, ended, peak, detail, *numbers), end
        start = end


def packed_names(files: Iterable[bytes]) -> bytes:
    return zlib.compress(b"\0".join(files), LEVEL)


def _unpacked(data: bytes) -> bytes:
    """Raises LedgerError if it is not what `zlib.compress` makes, or too long."""
    try:
        unpacker = zlib.decompressobj()
        found = unpacker.decompress(data, LARGEST)
    except zlib.error as error:
        raise LedgerError(f"it cannot be unpacked: {error}") from None
    if not unpacker.eof:
        raise LedgerError("it cannot be unpacked: it is cut off, or too long")
    return found


@dataclass
class Block:
    """The rows of one execution, as they are kept.

    Attributes:
        header: run, round, worker, processor, at (when the job was taken, epoch seconds), …
        names: those that the rows' indexes, less `header["first"]`, point to, packed.
        packed: the rows, packed.
    """

    header: dict[str, Any]
    names: bytes
    packed: bytes

    @property
    def at(self) -> float:
        return float(self.header["at"])

    def check(self) -> None:
        """Raises LedgerError if it cannot be unpacked."""
        _unpacked(self.names)
        _unpacked(self.packed)

    def files(self) -> list[bytes]:
        """Raises LedgerError."""
        return _unpacked(self.names).split(b"\0")

    def outputs(self) -> list[bytes]:
        """Those of `files`, in the same order; raises LedgerError."""
        suffix = self.header.get("suffix")
        if suffix is None:
            return self.files()
        ending = os.fsencode(suffix)
        return [names.with_suffix(name, ending) for name in self.files()]

    def unpacked(self) -> bytes:
        """The rows; raises LedgerError."""
        return _unpacked(self.packed)

    def rows(self) -> list[Row]:
        """Raises LedgerError."""
        return [row for row, _ in rows(self.unpacked())]

    def entries(self) -> Iterator["Entry"]:
        """Raises LedgerError."""
        files, outputs, first = self.files(), self.outputs(), self.header["first"]
        for row in self.rows():
            if not 0 <= (place := row.file - first) < len(files):
                raise LedgerError("a row's index points outside")
            yield Entry(files[place], outputs[place], row, self)

    def encode(self) -> bytes:
        head = json.dumps(self.header).encode()
        lengths = len(head), len(self.names), len(self.packed)
        return PREAMBLE.pack(MAGIC, *lengths) + head + self.names + self.packed


class Entry(NamedTuple):
    """A row, with the name of its file, that of its output, and the block that it is in."""

    name: bytes
    output: bytes
    row: Row
    block: Block


def blocks(data: bytes) -> Iterator[Block]:
    """Those of a file of the ledger, or the one that a segment would become.

    Raises:
        LedgerError: it is none. What was before has been given already.
    """
    start = 0
    while start < len(data):
        if len(data) - start < PREAMBLE.size:
            raise LedgerError("it is cut off")
        magic, head, names, packed = PREAMBLE.unpack_from(data, start)
        if magic != MAGIC:
            raise LedgerError("it does not begin as a ledger does, or another version wrote it")
        places = [start + PREAMBLE.size, head, names]
        if packed != TO_THE_END:
            places.append(packed)
        for number in range(1, len(places)):
            places[number] += places[number - 1]
        if places[-1] > len(data):
            raise LedgerError("it is cut off")
        body = data[places[2] : places[3]] if packed != TO_THE_END else data[places[2] :]
        if packed == TO_THE_END:
            ends = [end for _, end in rows(body)]
            body = zlib.compress(body[: ends[-1]] if ends else b"", LEVEL)
        yield Block(_header(data[places[0] : places[1]]), data[places[1] : places[2]], body)
        start = places[3] if packed != TO_THE_END else len(data)


def _header(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    match found:
        case {"at": int() | float(), "first": int(), "execution": str()}:
            return dict(found)
    raise LedgerError("a header in it is not one")
