"""The ledger of an output directory, without workers."""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from imece.files import ledger, staging
from imece.files.rows import MAGIC, PREAMBLE, ROW, Entry, Outcome, Row
from imece.files.segment import Segment

NAMES = [b"a.txt", b"in/b.txt", b"\xff odd\n.txt"]


class Folder:
    """An output directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.root = os.open(path, os.O_RDONLY)
        self._open = [self.root]

    def staging(self, name: str) -> int:
        (self.path / name).mkdir(exist_ok=True)
        self._open.append(os.open(self.path / name, os.O_RDONLY))
        return self._open[-1]

    def writes(self, execution: str, at: float, *rows: Row, names: list[bytes] = NAMES) -> None:
        """One execution, from its beginning to its end."""
        directory = self.staging(f".imece-{execution}")
        segment = begun(directory, execution, at, names)
        for row in rows:
            segment.append(row)
        segment.close()
        ledger.keep(self.root, directory)

    def entries(self) -> dict[bytes, Entry]:
        found, flaws = ledger.read(os.fsencode(self.path))
        assert flaws == []
        return ledger.entries(found)

    def files(self) -> list[Path]:
        return sorted((self.path / ".imece" / "ledger").glob("*.rows"))

    def close(self) -> None:
        for number in self._open:
            os.close(number)


def begun(directory: int, execution: str, at: float, names: list[bytes] = NAMES) -> Segment:
    header = {"execution": execution, "at": at, "first": 0, "run": "nightly"}
    return Segment.begin(directory, header, names)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "out")
    yield made
    made.close()


def test_a_row_is_read_as_it_was_written(folder: Folder) -> None:
    row = Row(2, Outcome.FAILED, 3, 1764000000, 2**31, b'{"reason": "why"}', *range(1, 7))
    folder.writes("e1", 1.0, Row(0, Outcome.DONE, 1), row)
    found = folder.entries()
    assert found[NAMES[2]].row == row
    assert found[NAMES[0]].row == Row(0, Outcome.DONE, 1)
    assert found[NAMES[0]].block.header["run"] == "nightly"
    assert NAMES[1] not in found


def test_the_later_row_counts_whichever_file_it_is_in(folder: Folder) -> None:
    folder.writes("f", 1.0, Row(0, Outcome.FAILED), Row(1, Outcome.DONE))
    folder.writes("a", 2.0, Row(0, Outcome.DONE), Row(1, Outcome.OPEN, ended=1))
    found = folder.entries()
    assert {name: entry.row.outcome for name, entry in found.items()} == {NAMES[0]: Outcome.DONE}


def test_a_reader_sees_whole_rows_only_and_each_once(folder: Folder) -> None:
    directory = folder.staging("s")
    reader = begun(directory, "e", 1.0)
    writer = Segment.of(directory)
    writer.append(Row(0, Outcome.DONE))
    half = Row(1, Outcome.FAILED, detail=b"x" * 100).encode()[:-1]
    with (folder.path / "s" / "rows").open("ab") as stream:
        stream.write(half)
    assert reader.new() == [Row(0, Outcome.DONE)]
    assert reader.new() == []
    reader.drop_half_a_row()
    writer.append(Row(2, Outcome.DONE))
    assert reader.new() == [Row(2, Outcome.DONE)]
    writer.close()


def test_what_a_killed_writer_left_is_kept_but_for_the_half_row(folder: Folder) -> None:
    directory = folder.staging("s")
    writer = begun(directory, "e", 1.0)
    writer.append(Row(0, Outcome.DONE))
    writer.close()
    with (folder.path / "s" / "rows").open("ab") as stream:
        stream.write(b"\1\0\0")
    ledger.keep(folder.root, directory)
    assert list(folder.entries()) == [NAMES[0]]


def test_an_execution_that_has_done_nothing_leaves_nothing(folder: Folder) -> None:
    folder.writes("e", 1.0)
    assert not (folder.path / ".imece").exists()


def test_a_full_disk_leaves_no_half_row(folder: Folder) -> None:
    """The limit on the size of a file stands for it: a write is cut off in the same way."""
    directory = folder.staging("s")
    writer = begun(directory, "e", 1.0)
    writer.append(Row(0, Outcome.DONE))
    size = (folder.path / "s" / "rows").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
        with pytest.raises(OSError, match=r"No space left|File too large"):
            writer.append(Row(1, Outcome.DONE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    writer.append(Row(2, Outcome.DONE))
    writer.close()
    ledger.keep(folder.root, directory)
    assert sorted(folder.entries()) == sorted([NAMES[0], NAMES[2]])


def test_zeros_at_the_end_of_a_segment_are_no_rows(folder: Folder) -> None:
    """A loss of power may leave them."""
    directory = folder.staging(".imece-0123456789ab")
    segment = begun(directory, "e", 1.0)
    segment.append(Row(0, Outcome.DONE))
    segment.close()
    with (folder.path / ".imece-0123456789ab" / "rows").open("ab") as stream:
        stream.write(bytes(3 * ROW.size))
    blocks, _ = staging.noted(os.fsencode(folder.path))
    assert [row for block in blocks for row in block.rows()] == [Row(0, Outcome.DONE)]


def test_files_are_put_together_without_what_was_replaced(folder: Folder) -> None:
    many = [b"%04d" % number for number in range(1000)]
    done = [Row(number, Outcome.DONE, microseconds=1) for number in range(1000)]
    folder.writes("e1", 1.0, *done, names=many)
    folder.writes("e2", 2.0, *(row._replace(microseconds=2) for row in done[:600]), names=many)
    folder.writes("e3", 3.0, Row(999, Outcome.OPEN, ended=1), names=many)
    before = folder.entries()
    assert len(before) == 999
    ledger.compact(os.fsencode(folder.path))
    assert len(folder.files()) == 1
    after = folder.entries()
    unplaced = [
        {name: entry.row._replace(file=0) for name, entry in found.items()}
        for found in (before, after)
    ]
    assert unplaced[0] == unplaced[1]
    assert {name: entry.block.header["execution"] for name, entry in after.items()} == {
        name: entry.block.header["execution"] for name, entry in before.items()
    }
    blocks, _ = ledger.read(os.fsencode(folder.path))
    assert sum(len(block.rows()) for block in blocks) == 1000


def test_a_large_file_is_not_written_anew_for_a_small_one(folder: Folder) -> None:
    many = [os.urandom(8).hex().encode() for _ in range(1000)]
    folder.writes("e1", 1.0, *(Row(index, Outcome.DONE) for index in range(1000)), names=many)
    folder.writes("e2", 2.0, Row(0, Outcome.DONE))
    before = folder.files()
    ledger.compact(os.fsencode(folder.path))
    assert folder.files() == before


def test_two_do_not_put_together_at_once(folder: Folder) -> None:
    for number in range(3):
        folder.writes(f"e{number}", number, Row(number, Outcome.DONE))
    where = os.open(folder.path / ".imece" / "ledger", os.O_RDONLY)
    with ledger._locked(where) as is_ours:
        assert is_ours
        ledger.compact(os.fsencode(folder.path))
        assert len(folder.files()) == 3
    os.close(where)
    ledger.compact(os.fsencode(folder.path))
    assert len(folder.files()) == 1


def test_a_compaction_that_was_killed_leaves_each_row_once(folder: Folder) -> None:
    for number in range(3):
        folder.writes(f"e{number}", number, Row(number, Outcome.DONE))
    old = {path: path.read_bytes() for path in folder.files()}
    ledger.compact(os.fsencode(folder.path))
    for path, data in old.items():  # it was killed before it removed them
        path.write_bytes(data)
    blocks, flaws = ledger.read(os.fsencode(folder.path))
    assert (len(blocks), flaws) == (3, [])
    ledger.compact(os.fsencode(folder.path))
    assert len(folder.files()) == 1
    assert len(folder.entries()) == 3


HEADER = b'{"at": 1, "first": 0, "execution": "e"}'


@pytest.mark.parametrize(
    "garbage",
    [
        b"no ledger at all, but long enough for one",
        MAGIC,
        PREAMBLE.pack(MAGIC, 9, 9, 9) + b"x" * 27,
        PREAMBLE.pack(MAGIC, 2**31, 9, 9) + b"x" * 27,
        PREAMBLE.pack(MAGIC[:-1] + b"\2", 0, 0, 0),
        PREAMBLE.pack(MAGIC, len(HEADER), 9, 9) + HEADER + b"x" * 18,
    ],
)
def test_a_file_that_is_none_is_named_and_left_alone(folder: Folder, garbage: bytes) -> None:
    folder.writes("e1", 1.0, Row(0, Outcome.DONE))
    folder.writes("e2", 1.0, Row(1, Outcome.DONE))
    spoilt = folder.path / ".imece" / "ledger" / "spoilt.rows"
    spoilt.write_bytes(garbage)
    found, flaws = ledger.read(os.fsencode(folder.path))
    assert len(ledger.entries(found)) == 2
    assert len(flaws) == 1
    assert flaws[0].startswith(".imece/ledger/spoilt.rows: ")
    ledger.compact(os.fsencode(folder.path))
    assert spoilt.read_bytes() == garbage
    assert len(folder.files()) == 3


def test_a_ledger_that_leads_elsewhere_is_not_written_to(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder.path / ".imece").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
        folder.writes("e", 1.0, Row(0, Outcome.DONE))
    assert list((tmp_path / "elsewhere").iterdir()) == []
