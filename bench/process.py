"""100,000 files of 1 kB hashed to one output each by two workers, beside a pool of two processes;
and the same files through a processor that does nothing.

Nothing is deleted before the end: for five minutes ext4 avoids inodes that were freed, and making
files takes up to ten times as long meanwhile. Wait that long before the next measurement.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from redis import Redis

from bench.processors import digest_and_rename
from bench.report import ROOT, Row, Size, at_least, median
from imece.run import keys, status
from imece.run.store import Run
from imece_producer.local.server import Server

FILES = 100_000
PROCESSES = 2
CHUNK = 500


@dataclass(frozen=True)
class Took:
    """Seconds of the work alone, its processes ready before; and with all that comes before."""

    work: float
    whole: float


def rows(folder: Path, size: Size) -> Iterator[Row]:
    files = FILES // size.part
    source = folder / "source"
    make_files(source, files)
    ours: list[Took] = []
    pools: list[Took] = []
    idle: list[Took] = []
    with Server(folder / "redis") as server:
        for number in range(size.rounds):
            turns = [
                lambda target: ours.append(by_imece(server, source, target, "digest", files)),
                lambda target: pools.append(by_pool(source, target)),
            ]
            for turn in turns if number % 2 == 0 else reversed(turns):
                target = folder / f"target-{len(ours)}-{len(pools)}"
                target.mkdir()
                os.sync()
                turn(target)
                assert len([*target.glob("*.bin")]) == files
            idle.append(by_imece(server, source, "-", "nothing", files))
    ratios = [pool.work / our.work for our, pool in zip(ours, pools, strict=True)]
    yield Row(
        f"imece, {files:,} files hashed, {PROCESSES} workers, from the first job taken to the "
        "end of the run",
        f"{files / median(took.work for took in ours):,.0f} files/s",
    )
    yield Row(
        f"`Pool({PROCESSES}).imap_unordered(chunksize={CHUNK})`, the same work, the pool ready",
        f"{files / median(took.work for took in pools):,.0f} files/s",
    )
    yield at_least(0.8, median(ratios), "ratio of the two", digits=2)
    whole = median(took.whole for took in ours)
    yield Row("imece with start of the workers, listing and enqueuing", f"{whole:.2f} s")
    whole = median(took.whole for took in pools)
    yield Row("the pool with its start and listing", f"{whole:.2f} s")
    rate = files / median(took.work for took in idle)
    yield at_least(60_000, rate, "imece, a processor that does nothing", " files/s")


def make_files(directory: Path, count: int) -> None:
    directory.mkdir()
    for number in range(count):
        (directory / f"part-{number:06d}.bin").write_bytes(os.urandom(1000))


def by_pool(source: Path, target: Path) -> Took:
    began = time.perf_counter()
    paths = [(entry.path, f"{target}/{entry.name}") for entry in os.scandir(source)]
    with get_context("fork").Pool(PROCESSES) as pool:
        pool.map(abs, range(PROCESSES))
        ready = time.perf_counter()
        for _ in pool.imap_unordered(digest_and_rename, paths, chunksize=CHUNK):
            pass
        ended = time.perf_counter()
    return Took(ended - ready, ended - began)


def by_imece(server: Server, source: Path, target: Path | str, processor: str, files: int) -> Took:
    """Default settings. The server's clock says when the first job was taken and the run ended."""
    environment = {
        **os.environ,
        "IMECE_REDIS_URL": server.url,
        "IMECE_PROCESSOR": f"bench.processors:{processor}",
    }
    run_id = f"bench-{time.time_ns()}"
    redis = Redis(unix_socket_path=str(server.socket))
    began = time.perf_counter()
    with workers(redis, environment, server.directory / "workers.log"):
        subprocess.run(
            [sys.executable, "-m", "imece_producer", "enqueue", source, target, "--run-id", run_id],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        run = Run(redis, "imece", run_id)
        while not (last := status.read(run)).has_ended:
            time.sleep(0.05)
        whole = time.perf_counter() - began
    redis.close()
    assert last.done == files, last
    return Took(last.seconds, whole)


@contextmanager
def workers(redis: Redis, environment: dict[str, str], log: Path) -> Iterator[None]:
    """Workers that are ready: each is registered, and then waits for a job."""
    with log.open("ab") as stream:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "imece_worker"],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
            for _ in range(PROCESSES)
        ]
    try:
        while redis.scard(keys.workers("imece")) < PROCESSES:
            assert all(process.poll() is None for process in processes), log.read_text()
            time.sleep(0.01)
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
