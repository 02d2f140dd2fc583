"""Enqueue 1,000,000 files all of which are current, beside a loop that only looks at them."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from bench.enqueue import make_empty_files
from bench.report import Row, Size, fresh, median, under
from imece.files import ledger
from imece.files.rows import LEVEL, Block, Outcome, packed_names
from imece.files.rows import Row as LedgerRow
from imece_producer.local.server import Server

FILES = 1_000_000
OF_A_JOB = 10_000


def rows(folder: Path, size: Size) -> Iterator[Row]:
    files = FILES // size.part
    source, target = folder / "current-in", folder / "current-out"
    make_empty_files(source, files)
    make_empty_files(target, files)
    make_ledger(source, target)
    fresh("bench.tasks", "look", source)  # from here on, both are in memory for both
    ours, looks = [], []
    for number in range(size.rounds):
        with Server(folder / f"redis-current-{number}") as server:
            ours.append(fresh("bench.tasks", "skip", source, url=server.url).answer())
        looks.append(fresh("bench.tasks", "look", source).answer()["seconds"])
    seconds = median(answer["seconds"] for answer in ours)
    what = f"{files:,} current files"
    yield under(10 / size.part, seconds, f"`imece enqueue` of {what}", " s", digits=2)
    yield Row(f"`os.scandir` and `os.stat` alone of {what} and outputs", f"{median(looks):.2f} s")
    ratios = [answer["seconds"] / look for answer, look in zip(ours, looks, strict=True)]
    yield Row("ratio of the two", f"{median(ratios):.2f}")
    peak = median(answer["peak"] for answer in ours)
    yield Row("peak memory of the producer", f"{peak / 1e6:,.0f} MB")
    size_of_ledger = sum(path.stat().st_size for path in (target / ".imece" / "ledger").iterdir())
    yield under(40, size_of_ledger / files, "ledger a file", " bytes", digits=1)


def make_ledger(source: Path, target: Path) -> None:
    """As if all outputs had been made by bucket jobs of 10,000 files."""
    names = sorted(os.fsencode(path.name) for path in source.iterdir())
    for start in range(0, len(names), OF_A_JOB):
        some = names[start : start + OF_A_JOB]
        body = b"".join(
            LedgerRow(
                number,
                Outcome.DONE,
                1,
                size=0,
                mtime=time_of(source, name),
                microseconds=100 + number % 50,
                output_mtime=time_of(target, name),
            ).encode()
            for number, name in enumerate(some)
        )
        header = {"execution": f"{start:012d}", "at": start, "first": 0, "set": {}}
        block = Block(header, packed_names(some), zlib.compress(body, LEVEL))
        ledger.add(os.fsencode(target), block)
    ledger.compact(os.fsencode(target))


def time_of(directory: Path, name: bytes) -> int:
    return (directory / os.fsdecode(name)).stat().st_mtime_ns
