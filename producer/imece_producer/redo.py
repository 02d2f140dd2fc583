"""`imece redo`: takes back what the ledger says of some outputs. Whatever makes the next round then
makes them again."""

import os
import time
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path

from imece.files import ledger, listing
from imece.files.rows import LEVEL, Block, Entry, Outcome, Row, packed_names
from imece.version import Version

AFTER = 1e-6
"""Seconds: a row that takes another back is in force after it, whatever the clocks say."""


def chosen(
    found: Iterable[Entry], made_by: str | None, stale: Version | None, globs: list[str]
) -> list[Entry]:
    """Those that are done and meet all conditions that are given.

    Args:
        made_by: the beginning of the fingerprint of their code, or the processor, or the image.
        stale: those that another version has made than this one.
        globs: patterns for the names of inputs, as in .gitignore.
    """
    accepted, _ = listing.filters(globs, ())
    return [
        entry
        for entry in found
        if entry.row.outcome == Outcome.DONE
        and (made_by is None or _is_made_by(entry, made_by))
        and (stale is None or _is_stale(entry, stale))
        and (accepted is None or accepted(entry.name))
    ]


def _is_made_by(entry: Entry, wanted: str) -> bool:
    version = Version.read(entry.block.header)
    if version is None:
        return False
    return version.code.startswith(wanted) or wanted in (version.processor, version.image)


def _is_stale(entry: Entry, now: Version) -> bool:
    version = Version.read(entry.block.header)
    return version is None or version != now


def take_back(output: Path, entries: Iterable[Entry]) -> None:
    """Writes that they are to be made again; raises OSError if the ledger cannot be written."""
    by_suffix: dict[str | None, list[Entry]] = {}
    for entry in entries:
        by_suffix.setdefault(entry.block.header.get("suffix"), []).append(entry)
    for suffix, some in by_suffix.items():
        at = max(entry.block.at for entry in some) + AFTER
        header = {"execution": uuid.uuid4().hex, "at": at, "first": 0, "suffix": suffix}
        now = int(time.time())
        rows = b"".join(Row(n, Outcome.OPEN, ended=now).encode() for n in range(len(some)))
        names = packed_names(entry.name for entry in some)
        ledger.add(os.fsencode(output), Block(header, names, zlib.compress(rows, LEVEL)))
