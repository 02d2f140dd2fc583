"""What the benchmarks share: rounds, fresh processes, rows of a table."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

median = statistics.median


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: how often each figure is taken; the median counts.
        part: 1, or 100 for a hundredth of the files.
    """

    rounds: int = 5
    part: int = 1


@dataclass(frozen=True)
class Row:
    """One line of the shared progress: what was measured, the figure, what it has to be."""

    what: str
    figure: str
    target: str = ""
    reached: bool | None = None


def at_least(bound: float, value: float, what: str, unit: str = "", digits: int = 0) -> Row:
    return Row(what, f"{value:,.{digits}f}{unit}", f"at least {bound:,g}{unit}", value >= bound)


def under(bound: float, value: float, what: str, unit: str = "", digits: int = 0) -> Row:
    return Row(what, f"{value:,.{digits}f}{unit}", f"under {bound:,g}{unit}", value < bound)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as Markdown."""
    verdicts = {None: "", True: "reached", False: "**missed**"}
    yield "| what | measured | target | |"
    yield "|---|--:|---|---|"
    for row in rows:
        yield f"| {row.what} | {row.figure} | {row.target} | {verdicts[row.reached]} |"


@dataclass(frozen=True)
class Ended:
    """A process that has ended well: its standard output, and seconds from start to end."""

    output: str
    seconds: float

    def answer(self) -> Any:
        """Its last line, JSON."""
        return json.loads(self.output.splitlines()[-1])


def fresh(module: str, *arguments: str | Path, url: str = "") -> Ended:
    """Runs a module in a process of its own; `url` is that of its Redis."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    began = time.perf_counter()
    ended = subprocess.run(
        command,
        env={**os.environ, "IMECE_REDIS_URL": url},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Ended(ended.stdout, time.perf_counter() - began)
