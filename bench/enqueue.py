"""List, group and enqueue 1,000,000 names, beside a loop that only lists and hashes them."""

import os
from collections.abc import Iterator
from pathlib import Path

from redis import Redis

from bench.report import Row, Size, at_least, fresh, median, under
from imece_producer.local.server import Server

FILES = 1_000_000


def rows(folder: Path, size: Size) -> Iterator[Row]:
    files = FILES // size.part
    source = folder / "names"
    make_empty_files(source, files)
    fresh("bench.tasks", "scan", source)  # from here on, the directory is in memory for both
    ours, scans, memory = [], [], []
    for number in range(size.rounds):
        with Server(folder / f"redis-{number}") as server:
            redis = Redis(unix_socket_path=str(server.socket))
            before = redis.info("memory")["used_memory"]
            ours.append(fresh("bench.tasks", "enqueue", source, url=server.url))
            memory.append((redis.info("memory")["used_memory"] - before) / files)
            redis.close()
        scans.append(fresh("bench.tasks", "scan", source))
    our_seconds = [ended.answer()["seconds"] for ended in ours]
    scan_seconds = [ended.answer()["seconds"] for ended in scans]
    ratios = [scan / our for scan, our in zip(scan_seconds, our_seconds, strict=True)]
    what = f"{files:,} names"
    yield Row(f"`imece enqueue` of {what}", f"{files / median(our_seconds):,.0f} names/s")
    yield Row(
        f"`os.scandir` + `mmh3.hash` alone of {what}",
        f"{files / median(scan_seconds):,.0f} names/s",
    )
    yield at_least(0.5, median(ratios), "ratio of the two", digits=2)
    yield Row("whole process, `imece enqueue`", f"{median(e.seconds for e in ours):.2f} s")
    yield Row("whole process, the loop alone", f"{median(e.seconds for e in scans):.2f} s")
    yield under(15, median(memory), "memory in Redis a file", " bytes", digits=1)
    peak = median(ended.answer()["peak"] for ended in ours)
    yield under(300, peak / 1e6, "peak memory of the producer", " MB")


def make_empty_files(directory: Path, count: int) -> None:
    """part-000001.csv …"""
    directory.mkdir()
    within = os.open(directory, os.O_RDONLY)
    for number in range(1, count + 1):
        os.close(os.open(f"part-{number:06d}.csv", os.O_CREAT | os.O_WRONLY, dir_fd=within))
    os.close(within)
