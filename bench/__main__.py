"""`python -m bench [NAME ...] [--quick] [--write]`: runs the benchmarks, prints their tables."""

import argparse
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from redis import Redis

from bench import current, enqueue, process, status
from bench.report import ROOT, Row, Size, table
from imece_producer.local.server import Server

# `process` comes first: see there what deleted files do to it.
BENCHES: dict[str, Callable[[Path, Size], Iterator[Row]]] = {
    "process": process.rows,
    "enqueue": enqueue.rows,
    "current": current.rows,
    "status": status.rows,
}
PAGE = ROOT / "docs" / "explanation" / "benchmarks.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"{', '.join(BENCHES)} [default: all]")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the files, one round")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp"), help="where to work; on disk, 5 GB free"
    )
    given = parser.parse_args()
    if unknown := set(given.name) - set(BENCHES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    if given.write and (given.quick or given.name):
        parser.error("--write is for all benchmarks in full size")
    size = Size(rounds=1, part=100) if given.quick else Size()
    page = list(head()) if given.write else []
    with tempfile.TemporaryDirectory(prefix="imece-bench-", dir=given.folder) as name:
        folder = Path(name)
        for bench in given.name or BENCHES:
            rows = list(BENCHES[bench](folder, size))
            if given.quick:
                rows = [replace(row, target="", reached=None) for row in rows]
            section = [f"## {bench}", "", *table(rows), ""]
            print("\n".join(section), flush=True)
            page += section
        if given.write:
            PAGE.write_text("\n".join(page), "utf-8")


def head() -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield "Made by `.venv/bin/python -m bench --write`; `make bench` prints the same tables. Each"
    yield "figure is the median of 5 rounds. In each round imece and its alternative take turns on"
    yield "the same machine and disk; a ratio is the median of the rounds' ratios."
    yield ""
    yield (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}, {server_version()}."
    )
    yield ""


def server_version() -> str:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        redis = Redis(unix_socket_path=str(server.socket))
        info = redis.info("server")
        redis.close()
    name = info.get("server_name", "redis")
    return f"{name.capitalize()} {info.get(f'{name}_version', info['redis_version'])}"


if __name__ == "__main__":
    main()
