"""The ledger of an output directory: a row for each try of a file. What it was made from, what came
out, by what, and at what cost.

An execution of a bucket job writes its rows to a segment in its staging directory
(imece/files/staging.py). When that directory is removed, by whomever, the segment becomes a block
in `.imece/ledger` (`keep`). When a round ends, all blocks are put into one file, without the rows
that later ones have replaced (`compact`).

A segment, and a block, is: PREAMBLE; a header, JSON; the names of the files, joined by NUL and
compressed; the rows. A block's rows are compressed. A file of the ledger is one block after the
other. docs/reference/ledger.md describes it for other programs.
"""

import errno
import fcntl
import json
import os
import stat
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from imece.files import beneath
from imece.names import HOME
from imece.process import move_up

LEDGER = b"ledger"
ENDING = b".rows"
UNFINISHED = b".new"
SEGMENT = b"rows"
LOCK = b"lock"

MAGIC = b"imece\0\0\1"
"""The last byte is the version of the form."""

PREAMBLE = struct.Struct("<8sIII")
"""Magic; bytes of the header, of the names, and of the rows (`TO_THE_END` in a segment)."""

TO_THE_END = 2**32 - 1

ROW = struct.Struct("<IBxHIIIqqqqqq")
"""The fields of `Row` in their order; in the place of `detail`, its length."""

LARGEST = 2**30
"""Bytes that the names or rows of one block may have."""

FEW = 64
"""So many files of a ledger are not put together, unless they are a fourth of the largest."""

CAN_REOPEN = os.path.isdir("/proc/self/fd")
"""Whether a file that is open can be opened again, for something else, without its name."""

OLD = 3600.0
"""Seconds after which nobody is still writing a file."""

SLOW = 0.002
"""Seconds between two rows from which on the segment is not kept open for the next: a file system
with a file that is open for writing cannot be made read-only."""

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
APPENDED = os.O_WRONLY | os.O_APPEND


class Outcome(IntEnum):
    """What became of a file."""

    OPEN = 0
    """Its output is gone: what the rows before say of it holds no longer."""
    DONE = 1
    SKIPPED = 2
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
        detail: JSON, of a failure (imece_worker/runner.py); else empty.
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


def size(output: os.stat_result) -> int:
    """As in a row."""
    return 0 if stat.S_ISDIR(output.st_mode) else output.st_size


def rows(data: bytes, start: int = 0) -> Iterator[tuple[Row, int]]:
    """The whole rows of `data`, each with the place where it ends. Its writer may be at work, or
    have been killed: what is at the end is left for later."""
    size, step, unpack = len(data), ROW.size, ROW.unpack_from
    while (end := start + step) <= size:
        file, outcome, tries, ended, peak, length, *numbers = unpack(data, start)
        if (end := end + length) > size:
            return
        detail = data[end - length : end] if length else b""
        yield Row(file, outcome, tries, ended, peak, detail, *numbers), end
        start = end


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
        names, head = _packed_names(files), json.dumps(header).encode()
        start = PREAMBLE.pack(MAGIC, len(head), len(names), TO_THE_END) + head + names
        with _opened(SEGMENT, directory, APPENDED | os.O_CREAT | os.O_TRUNC, 0o600) as number:
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
        found = list(rows(_from(self._number, self._read)))
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
        """Makes a block of it; see `keep`."""
        _keep(root, _from(self._number, 0))

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


def _from(number: int, start: int) -> bytes:
    size = os.fstat(number).st_size
    return os.pread(number, size - start, start) if size > start else b""


@contextmanager
def _opened(name: bytes, directory: int, flags: int, mode: int = 0o644) -> Iterator[int]:
    number = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory)
    try:
        yield number
    finally:
        os.close(number)


def _packed_names(files: Iterable[bytes]) -> bytes:
    return zlib.compress(b"\0".join(files), 1)


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

    def files(self) -> list[bytes]:
        """Raises LedgerError."""
        return _unpacked(self.names).split(b"\0")

    def rows(self) -> list[Row]:
        """Raises LedgerError."""
        return [row for row, _ in rows(_unpacked(self.packed))]

    def named_rows(self) -> Iterator[tuple[bytes, Row]]:
        """Raises LedgerError."""
        files, first = self.files(), self.header["first"]
        for row in self.rows():
            if not 0 <= row.file - first < len(files):
                raise LedgerError("a row's index points outside")
            yield files[row.file - first], row

    def encode(self) -> bytes:
        head = json.dumps(self.header).encode()
        lengths = len(head), len(self.names), len(self.packed)
        return PREAMBLE.pack(MAGIC, *lengths) + head + self.names + self.packed


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
            body = zlib.compress(body[: ends[-1]] if ends else b"", 6)
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


def read_segment(staging_directory: int) -> Block | None:
    """What an execution has left; None if there is nothing that can be read."""
    try:
        with _opened(SEGMENT, staging_directory, READ) as number:
            return next(blocks(_from(number, 0)), None)
    except (OSError, LedgerError):
        return None


def check(root: int) -> None:
    """Raises OSError if no ledger can be written in an output directory."""
    where = _open(root, make=True)
    try:
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=where):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    finally:
        os.close(where)


def keep(root: int, staging_directory: int) -> None:
    """Makes a block of the segment in a staging directory, if there are rows in it. The segment is
    gone then: else its rows would be there twice.

    Args:
        root: the output directory, by a descriptor.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with _opened(SEGMENT, staging_directory, READ) as number:
            _keep(root, _from(number, 0))
    except FileNotFoundError:
        return
    os.unlink(SEGMENT, dir_fd=staging_directory)


def _keep(root: int, data: bytes) -> None:
    try:
        block = next(blocks(data), None)
        if block is None or not block.rows():
            return
    except LedgerError:
        return
    where = _open(root, make=True)
    try:
        _put(block.encode(), where, _plain(block.header["execution"]) + ENDING)
    finally:
        os.close(where)


def _plain(execution: str) -> bytes:
    return "".join(filter(str.isalnum, execution))[:64].encode()


def _put(data: bytes, directory: int, name: bytes) -> None:
    """Writes a file whole or not at all."""
    unfinished = b"%s-%d%s" % (name, time.time_ns(), UNFINISHED)
    try:
        with _opened(unfinished, directory, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as number:
            view = memoryview(data)
            while view:
                view = view[os.write(number, view) :]
        os.rename(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(OSError):
            os.unlink(unfinished, dir_fd=directory)
        raise


def _open(root: int, make: bool) -> int:
    """The directory of the ledger; raises OSError."""
    path = HOME + b"/" + LEDGER
    pinned = beneath.make_directories(root, path) if make else beneath.open_directory(root, path)
    try:
        return os.open(b".", beneath.LISTED, dir_fd=pinned)
    finally:
        os.close(pinned)


# All of it


def read(output: bytes) -> tuple[list[Block], list[str]]:
    """The blocks of an output directory's ledger, the oldest first; and a sentence for each file of
    it that cannot be read."""
    try:
        root = os.open(output, beneath.LISTED & ~os.O_NOFOLLOW)
    except OSError:
        return [], []
    try:
        where = _open(root, make=False)
    except OSError:
        return [], []
    finally:
        os.close(root)
    try:
        return _read(where)
    finally:
        os.close(where)


def _read(directory: int) -> tuple[list[Block], list[str]]:
    found: dict[tuple[str, float], Block] = {}
    flaws = []
    for name in sorted(_files(directory)):
        try:
            with _opened(name, directory, os.O_RDONLY) as number:
                data = _from(number, 0)
            for block in blocks(data):  # one that is there twice was about to be put together
                found[block.header["execution"], block.at] = block
        except FileNotFoundError:
            continue  # it was put together with others just then
        except (OSError, LedgerError) as error:
            shown = os.fsdecode(HOME + b"/" + LEDGER + b"/" + name)
            flaws.append(f"{shown}: {error}")
    return sorted(found.values(), key=lambda block: block.at), flaws


def _files(directory: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(directory) if name.endswith(ENDING.decode())]


def compact(output: bytes) -> None:
    """Puts the files of a ledger together, without the rows that later ones have replaced. Does
    nothing if there is little to gain, or if somebody else does it at this moment.

    Raises:
        OSError: it cannot be written. What was there is there still.
    """
    try:
        root = os.open(output, beneath.LISTED & ~os.O_NOFOLLOW)
    except OSError:
        return
    try:
        where = _open(root, make=False)
    except OSError:
        return  # no row was written
    finally:
        os.close(root)
    try:
        with _locked(where) as is_ours:
            if is_ours and _is_worth_it(where):
                _compact(where)
    finally:
        os.close(where)


@contextmanager
def _locked(directory: int) -> Iterator[bool]:
    """Without a lock, two would keep each row twice. That is a waste, and nothing worse."""
    with _opened(LOCK, directory, os.O_CREAT | os.O_RDWR) as number:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # the file system has no locks
        yield True


def _is_worth_it(directory: int) -> bool:
    sizes = sorted(os.stat(name, dir_fd=directory).st_size for name in _files(directory))
    return len(sizes) > FEW or (len(sizes) > 1 and sum(sizes[:-1]) > sizes[-1] / 4)


def _compact(directory: int) -> None:
    listed = sorted(_files(directory))
    found, flaws = _read(directory)
    if flaws:
        return  # they stay for a person, each in its own file
    last: dict[bytes, tuple[int, int]] = {}
    for number, block in enumerate(found):
        for place, (name, row) in enumerate(block.named_rows()):
            if row.outcome != Outcome.SKIPPED:
                last[name] = number, place
    kept: list[set[int]] = [set() for _ in found]
    for number, place in last.values():
        kept[number].add(place)
    data = b"".join(
        _only(block, places).encode() for block, places in zip(found, kept, strict=True) if places
    )
    _put(data, directory, b"%d-%d%s" % (time.time_ns(), os.getpid(), ENDING))
    for name in listed + _left(directory):
        os.unlink(name, dir_fd=directory)


def _left(directory: int) -> list[bytes]:
    """What those have left who were killed while they wrote it."""
    old = time.time() - OLD
    names = [os.fsencode(name) for name in os.listdir(directory)]
    return [
        name
        for name in names
        if name.endswith(UNFINISHED) and os.stat(name, dir_fd=directory).st_mtime < old
    ]


def _only(block: Block, places: set[int]) -> Block:
    """A block with these of its rows; the names of the others are left out, too."""
    named = list(block.named_rows())
    if len(places) == len(named):
        return block
    left = [entry for place, entry in enumerate(named) if place in places]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in left))}
    body = b"".join(row._replace(file=numbers[name]).encode() for name, row in left)
    header = block.header | {"first": 0}
    return Block(header, _packed_names(numbers), zlib.compress(body, 6))


class Entry(NamedTuple):
    """What the ledger says of one file: its last row, and the block that it is in."""

    row: Row
    block: Block


def entries(found: Iterable[Block]) -> dict[bytes, Entry]:
    """The last row of each file that is not `SKIPPED`; none for what is `OPEN`."""
    last: dict[bytes, Entry] = {}
    for block in found:
        for name, row in block.named_rows():
            if row.outcome == Outcome.OPEN:
                last.pop(name, None)
            elif row.outcome != Outcome.SKIPPED:
                last[name] = Entry(row, block)
    return last
