"""What the ledger of an output directory says, as a table; and whether the outputs are still so."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imece import names
from imece.errors import ListingError
from imece.files import digests, ledger, staging
from imece.files.rows import Entry, LedgerError, Outcome, size_and_time
from imece.version import Version

Fields = dict[str, Any]

WORDS = {Outcome.DONE: "done", Outcome.FAILED: "failed"}
HEADER = ("run", "worker", "processor", "code", "libraries", "image", "imece")
"""The columns that come from a block's header: all rows of an execution have them in common."""

COLUMNS = (
    "file", "outcome", "tries", "ended", "seconds", "cpu_seconds", "peak_memory", "size",
    "modified", "output", "output_size", "output_modified", "input_hash",
    "output_hash", "set", *HEADER,
)  # fmt: skip


def entries(output: Path) -> tuple[dict[bytes, Entry], list[str]]:
    """What the ledger says of each output, and what of it cannot be read.

    Raises:
        ListingError: there is no ledger, or none that can be read.
    """
    blocks, flaws = staging.noted(os.fsencode(output))
    if not blocks and not flaws:
        raise ListingError(
            f"{names.shown(os.fsencode(output))} has no ledger: no run of imece has made outputs "
            "there, or {}/ was removed".format(os.fsdecode(names.HOME))
        )
    try:
        return ledger.entries(blocks), flaws
    except LedgerError as error:
        where = names.shown(os.fsencode(output))
        raise ListingError(f"the ledger in {where}/.imece cannot be read: {error}") from None


def table(found: dict[bytes, Entry], run: str | None = None) -> Iterator[Fields]:
    """A row for each output, sorted; only those that a run has tried last, if one is named.

    `file` and `output` are relative to their directories. Seconds are on the clock and of
    processors; sizes and memory in bytes; times ISO 8601, UTC.
    """
    for output, entry in sorted(found.items()):
        row, header = entry.row, entry.block.header
        if run is not None and header.get("run") != run:
            continue
        is_done = row.outcome == Outcome.DONE
        of_input, of_output = digests.split(row.detail if is_done else b"")
        yield {
            "file": names.shown(entry.name),
            "outcome": WORDS[Outcome(row.outcome)],
            "tries": row.tries,
            "ended": _time(row.ended * 10**9),
            "seconds": row.microseconds / 1e6,
            "cpu_seconds": row.cpu / 1e6,
            "peak_memory": row.peak * 1024,
            "size": row.size,
            "modified": _time(row.mtime),
            "output": names.shown(output) if is_done else None,
            "output_size": row.output_size if is_done else None,
            "output_modified": _time(row.output_mtime) if is_done and row.output_mtime else None,
            "input_hash": of_input.hex() or None,
            "output_hash": of_output.hex() or None,
            "set": names.json_line(header.get("set", {})),
            **{key: header.get(key) for key in HEADER},
        }


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="milliseconds")


@dataclass
class Verdict:
    """What has become of the outputs that the ledger knows, by the names of the outputs.

    Attributes:
        sound: how many are as they were made.
        hashed: how many were read and compared with their hashes.
        versions: how many outputs each version of a processor has made.
        missing: they are gone.
        changed: they have another size or time, or are something else.
        orphaned: they are there, and their inputs are gone.
        unseen: input directories that are not seen from here, so that nobody can say of their files
            whether they are gone.
    """

    sound: int
    missing: list[bytes]
    changed: list[bytes]
    orphaned: list[bytes]
    unseen: set[str]
    hashed: int = 0
    versions: Counter[Version] = field(default_factory=Counter)

    @property
    def is_sound(self) -> bool:
        return not (self.missing or self.changed)


def verify(output: Path, found: dict[bytes, Entry], by_hash: bool = False) -> Verdict:
    """Looks at each output, and whether its input is there.

    Args:
        by_hash: reads the outputs whose hashes the ledger has, too.
    """
    sources = {entry.block.header.get("input", "") for entry in found.values()}
    verdict = Verdict(0, [], [], [], {source for source in sources if not os.path.isdir(source)})
    for made, (name, _, row, block) in sorted(found.items()):
        if row.outcome != Outcome.DONE:
            continue
        if (version := Version.read(block.header)) is not None:
            verdict.versions[version] += 1
        try:
            there = os.lstat(os.path.join(os.fsencode(output), made))
        except (FileNotFoundError, NotADirectoryError):
            verdict.missing.append(made)
            continue
        source = block.header.get("input", "")
        if source not in verdict.unseen and not os.path.lexists(
            os.path.join(os.fsencode(source), name)
        ):
            verdict.orphaned.append(made)
        is_sound = size_and_time(there) == (row.output_size, row.output_mtime)
        if by_hash and is_sound and (digest := digests.split(row.detail)[1]):
            is_sound = _has_hash(os.path.join(os.fsencode(output), made), digest)
            verdict.hashed += 1
        if is_sound:
            verdict.sound += 1
        else:
            verdict.changed.append(made)
    return verdict


def _has_hash(path: bytes, digest: bytes) -> bool:
    try:
        return digests.of_file(path, follow=False) == digest
    except OSError:
        return False
