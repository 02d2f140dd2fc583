"""Which inputs are to be processed, and why: decided by the ledger, and one look at inputs and
outputs. Workers look for nothing.

An output is current if the ledger shows that it was made from this input, with this processor, and
if both are as they were then, by size and time. Where the ledger knows nothing of an output, it is
current if it is no older than its input.
"""

import os
import stat
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from imece import names
from imece.files import digests, signature, staging
from imece.files.rows import ROW, Block, LedgerError, Outcome, size_and_time
from imece.version import Version

SLOW = 200e-6
"""Seconds for a file and its output from which on several are looked at at a time."""

PART, SLOW_PART = 1000, 50
HEAD = struct.Struct("<I12xI")
"""Of a row: its file, and the length of its detail; see `rows.ROW`."""

THREADS = 32


class Reason(StrEnum):
    """Why a file is to be processed; the words are those that people read."""

    NEW = "new"
    CHANGED = "changed since"
    GONE = "with an output that is gone"
    REPLACED = "with an output that was replaced"
    FAILED = "failed before"
    PROCESSOR = "made by another processor, or with other parameters"
    CODE = "made by other code"
    ASKED = "as imece redo asked for"
    ALL = "because of --overwrite"


Looks = tuple[int, int]
"""Size and time of a file."""

Verdict = tuple[Reason | None, bool]
"""Why a file is to be processed, None if it is current; and whether other code made its output."""


@dataclass(frozen=True)
class Rules:
    """How is decided what is current.

    Attributes:
        redo_code: outputs that other code has made are not.
        by_content: hashes decide in place of times, where the ledger has them.
    """

    redo_code: bool = False
    by_content: bool = False


BY_TIME = Rules()


@dataclass
class Comparison:
    """
    Attributes:
        to_do: the files that are to be processed.
        current: those whose outputs are current.
        reasons: why, and how many files.
        other_code: how many of the current outputs other code has made.
        flaws: sentences about parts of the ledger that cannot be read.
    """

    to_do: list[bytes] = field(default_factory=list)
    current: list[bytes] = field(default_factory=list)
    reasons: Counter[Reason] = field(default_factory=Counter)
    other_code: int = 0
    flaws: list[str] = field(default_factory=list)

    def add(self, more: "Comparison") -> None:
        """Of other files of the same run."""
        self.to_do += more.to_do
        self.current += more.current
        self.reasons += more.reasons
        self.other_code += more.other_code
        self.flaws = more.flaws


class _Known:
    """The last row of each output that a ledger knows. It holds rows as they are kept: a million
    of them take 70 MB so, and several times as much as objects."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.headers: list[dict[str, object]] = []
        self.flaws: list[str] = []
        self._rows: list[bytes] = []
        self._last: dict[bytes, int] = {}
        for block in blocks:
            try:
                self._add(block)
            except LedgerError as error:
                self.flaws.append(f"{block.header['execution']}: {error}")

    def _add(self, block: Block) -> None:
        outputs, rows, first = block.outputs(), block.unpacked(), block.header["first"]
        number, start, size = len(self._rows) << 40, 0, len(rows)
        self.headers.append(block.header)
        self._rows.append(rows)
        unpack, step, last = HEAD.unpack_from, ROW.size, self._last
        while start + step <= size:
            file, detail = unpack(rows, start)
            if not 0 <= file - first < len(outputs):
                raise LedgerError("a row's index points outside")
            last[outputs[file - first]] = number | start
            start += step + detail

    def find(self, output: bytes) -> tuple[int, int, Looks, Looks, tuple[bytes, bytes]] | None:
        """The number of its header, the outcome, sizes and times of input and output, and their
        hashes."""
        place = self._last.get(output)
        if place is None:
            return None
        number, start = place >> 40, place & (2**40 - 1)
        rows = self._rows[number]
        _, outcome, _, _, _, length, _, _, size, mtime, output_size, output_mtime = ROW.unpack_from(
            rows, start
        )
        end = start + ROW.size
        hashes = digests.split(rows[end : end + length] if length else b"")
        return number, outcome, (size, mtime), (output_size, output_mtime), hashes


class Comparer:
    """Compares inputs with outputs.

    Args:
        source, target: the run's directories as this process sees them.
        version: of the processor that would make them; None if it is not known here.
        given: what the run sets for it.
    """

    def __init__(
        self,
        source: bytes,
        target: bytes,
        suffix: bytes | None,
        version: Version | None,
        given: Mapping[str, Any],
        rules: Rules = BY_TIME,
    ) -> None:
        self._source = os.path.realpath(source) + b"/"
        self._target = os.path.realpath(target) + b"/"
        self._suffix = suffix
        self._version, self._given = version, given
        self._rules = rules
        blocks, self._flaws = staging.noted(self._target)
        self._known = _Known(blocks)
        self._flaws += self._known.flaws
        self._relations = [self._relation(header) for header in self._known.headers]
        self._is_slow = False

    def _relation(self, header: dict[str, object]) -> Reason | None:
        """What is other than now in the version that made the outputs of a block."""
        made, now = Version.read(header), self._version
        if header.get("set", {}) != self._given:
            return Reason.PROCESSOR
        if made is None or now is None:
            return None
        if made.processor != now.processor:
            return Reason.PROCESSOR
        return None if made.is_same_code(now) else Reason.CODE

    def compare(self, files: Iterable[bytes]) -> Comparison:
        found = Comparison(flaws=list(self._flaws))
        for directory, some in _by_directory(files).items():
            there = self._listed(directory)
            looked_at: list[bytes] = []
            for name in some:
                output = names.with_suffix(name, self._suffix)
                if there is None or output.rpartition(b"/")[2] in there:
                    looked_at.append(name)
                else:
                    found.to_do.append(name)
                    found.reasons[self._without_output(output)] += 1
            for part, verdicts in self._judged(looked_at):
                for name, (reason, is_other_code) in zip(part, verdicts, strict=True):
                    found.other_code += is_other_code
                    if reason is None:
                        found.current.append(name)
                    else:
                        found.to_do.append(name)
                        found.reasons[reason] += 1
        return found

    def _judged(self, files: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], list[Verdict]]]:
        """Those whose outputs are there, part by part; with threads where looks are slow."""
        step = SLOW_PART if self._is_slow else PART
        parts = [files[start : start + step] for start in range(0, len(files), step)]
        if self._is_slow:
            with ThreadPoolExecutor(THREADS) as pool:
                yield from zip(parts, pool.map(self._judge, parts), strict=True)
            return
        for number, part in enumerate(parts):
            began = time.monotonic()
            yield part, self._judge(part)
            if time.monotonic() - began > SLOW * len(part):
                self._is_slow = True
                yield from self._judged(files[(number + 1) * step :])
                return

    def _judge(self, files: Sequence[bytes]) -> list[Verdict]:
        return [self._verdict(name) for name in files]

    def _listed(self, directory: bytes) -> set[bytes] | None:
        """What is in a directory of outputs; None if it cannot be listed: then each is tried."""
        try:
            return set(os.listdir(os.path.join(self._target, directory)))
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError:
            return None

    def _without_output(self, output: bytes) -> Reason:
        known = self._known.find(output)
        if known is None:
            return Reason.NEW
        return Reason.GONE if known[1] == Outcome.DONE else _not_done(known[1])

    def _verdict(self, name: bytes) -> Verdict:
        path = names.with_suffix(name, self._suffix)
        try:
            output = os.lstat(self._target + path)
        except OSError:
            return self._without_output(path), False
        try:
            source = os.stat(self._source + name)
        except OSError:
            return Reason.CHANGED, False  # the worker says what is wrong with it
        known = self._known.find(path)
        if known is None:
            return self._by_times(path, source, output), False
        number, outcome, made_of, made, hashes = known
        if outcome != Outcome.DONE:
            return _not_done(outcome), False
        of_input, of_output = hashes if self._rules.by_content else (b"", b"")
        now = source.st_size, source.st_mtime_ns
        if _differs(now, made_of, of_input, self._source + name):
            return Reason.CHANGED, False
        if _differs(size_and_time(output), made, of_output, self._target + path):
            return Reason.REPLACED, False
        relation = self._relations[number]
        if relation == Reason.CODE and not self._rules.redo_code:
            return None, True
        return relation, False

    def _by_times(
        self, path: bytes, source: os.stat_result, output: os.stat_result
    ) -> Reason | None:
        if output.st_mtime_ns < source.st_mtime_ns:
            return Reason.CHANGED
        if stat.S_ISREG(output.st_mode):
            return None
        return None if self._is_whole_directory(path) else Reason.REPLACED

    def _is_whole_directory(self, path: bytes) -> bool:
        """Whether a directory is an output of ours, and was not emptied."""
        directory, _, last = path.rpartition(b"/")
        try:
            number = os.open(os.path.join(self._target, directory), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return False
        try:
            return signature.is_signed(number, last, path) and not signature.is_emptied(
                number, last
            )
        finally:
            os.close(number)


def _not_done(outcome: int) -> Reason:
    return Reason.FAILED if outcome == Outcome.FAILED else Reason.ASKED


def _differs(now: tuple[int, int], before: tuple[int, int], digest: bytes, path: bytes) -> bool:
    """Whether a file is another than before, by size and time; by its hash, if that is given."""
    if not digest:
        return now != before
    try:
        return now[0] != before[0] or digests.of_file(path) != digest
    except OSError:
        return True


def _by_directory(files: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name in files:
        found.setdefault(name[: name.rfind(b"/") + 1], []).append(name)
    return found
