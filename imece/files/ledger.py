"""The ledger of an output directory, `.imece/ledger`: a row for each file that was tried. It says
what an output was made from, by what, and at what cost.

An execution of a bucket job writes its rows to a segment in its staging directory
(imece/files/staging.py). When that directory is removed, by whomever, the segment becomes a file of
the ledger with one block (`keep`). When a round ends, all are put into one, without the rows that
later ones have replaced (`compact`).
"""

import errno
import fcntl
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from imece.files import beneath
from imece.files.rows import LEVEL, Block, Entry, LedgerError, Outcome, blocks, packed_names
from imece.names import HOME

LEDGER = b"ledger"
ENDING = b".rows"
UNFINISHED = b".new"
SEGMENT = b"rows"
LOCK = b"lock"

FEW = 64
"""So many files of a ledger are not put together, unless they are a fourth of the largest."""

OLD = 3600.0
"""Seconds after which nobody is still writing a file."""


def read_from(number: int, start: int) -> bytes:
    size = os.fstat(number).st_size
    return os.pread(number, size - start, start) if size > start else b""


@contextmanager
def opened(name: bytes, directory: int, flags: int, mode: int = 0o644) -> Iterator[int]:
    number = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory)
    try:
        yield number
    finally:
        os.close(number)


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
        with opened(SEGMENT, staging_directory, os.O_RDONLY) as number:
            keep_data(root, read_from(number, 0), is_durable=True)
    except FileNotFoundError:
        return
    os.unlink(SEGMENT, dir_fd=staging_directory)


def keep_data(root: int, data: bytes, is_durable: bool = False) -> None:
    """
    Args:
        is_durable: it takes the place of rows that may be on stable storage already.
    """
    try:
        block = next(blocks(data), None)
        if block is None or not block.rows():
            return
    except LedgerError:
        return
    _add(root, block, is_durable)


def add(output: bytes, block: Block) -> None:
    """Adds a block to the ledger of an output directory; raises OSError."""
    root = os.open(output, beneath.LISTED & ~os.O_NOFOLLOW)
    try:
        _add(root, block, is_durable=False)
    finally:
        os.close(root)


def _add(root: int, block: Block, is_durable: bool) -> None:
    where = _open(root, make=True)
    try:
        _put(block.encode(), where, _plain(block.header["execution"]) + ENDING, is_durable)
    finally:
        os.close(where)


def of_execution(root: int, execution: str) -> Block | None:
    """What an execution has handed in, if it was not put together with others yet.

    Raises:
        OSError, LedgerError: it cannot be read.
    """
    try:
        where = _open(root, make=False)
    except FileNotFoundError:
        return None
    try:
        with opened(_plain(execution) + ENDING, where, os.O_RDONLY) as number:
            return next(blocks(read_from(number, 0)), None)
    except FileNotFoundError:
        return None
    finally:
        os.close(where)


def _plain(execution: str) -> bytes:
    return "".join(filter(str.isalnum, execution))[:64].encode()


def _put(data: bytes, directory: int, name: bytes, is_durable: bool) -> None:
    """Writes a file whole or not at all."""
    unfinished = b"%s-%d%s" % (name, time.time_ns(), UNFINISHED)
    try:
        with opened(unfinished, directory, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as number:
            view = memoryview(data)
            while view:
                view = view[os.write(number, view) :]
            if is_durable:
                os.fsync(number)
        os.rename(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)
        if is_durable:
            os.fsync(directory)
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
    with _found(output) as where:
        return _read(where) if where is not None else ([], [])


@contextmanager
def _found(output: bytes) -> Iterator[int | None]:
    """The directory of the ledger; None if no row was ever written."""
    try:
        root = os.open(output, beneath.LISTED & ~os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        where = _open(root, make=False)
    except OSError:
        yield None
        return
    finally:
        os.close(root)
    try:
        yield where
    finally:
        os.close(where)


def _read(directory: int) -> tuple[list[Block], list[str]]:
    found: dict[tuple[str, float], Block] = {}
    flaws = []
    for name in sorted(_files(directory)):
        try:
            with opened(name, directory, os.O_RDONLY) as number:
                data = read_from(number, 0)
            for block in blocks(data):  # one that is there twice was about to be put together
                block.check()
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
        LedgerError: a row points outside its block.
    """
    with _found(output) as where:
        if where is None:
            return
        with _locked(where) as is_ours:
            if is_ours and _is_worth_it(where):
                _compact(where)


@contextmanager
def _locked(directory: int) -> Iterator[bool]:
    """Without a lock, two would keep each row twice. That is a waste, and nothing worse."""
    with opened(LOCK, directory, os.O_CREAT | os.O_RDWR) as number:
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
        for place, entry in enumerate(block.entries()):
            last[entry.output] = number, place
    kept: list[set[int]] = [set() for _ in found]
    for number, place in last.values():
        kept[number].add(place)
    data = b"".join(
        _only(block, places).encode() for block, places in zip(found, kept, strict=True) if places
    )
    name = b"%d-%d%s" % (time.time_ns(), os.getpid(), ENDING)
    _put(data, directory, name, is_durable=True)  # the old ones are removed next
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
    found = list(block.entries())
    if len(places) == len(found):
        return block
    left = [entry for place, entry in enumerate(found) if place in places]
    names = dict.fromkeys(entry.name for entry in left)
    numbers = {name: number for number, name in enumerate(names)}
    body = b"".join(entry.row._replace(file=numbers[entry.name]).encode() for entry in left)
    header = block.header | {"first": 0}
    return Block(header, packed_names(numbers), zlib.compress(body, LEVEL))


def entries(found: Iterable[Block]) -> dict[bytes, Entry]:
    """The last row of each output; none for what is `OPEN`."""
    last: dict[bytes, Entry] = {}
    for block in found:
        for entry in block.entries():
            if entry.row.outcome == Outcome.OPEN:
                last.pop(entry.output, None)
            else:
                last[entry.output] = entry
    return last
