"""`imece status` as a whole process, on a run of 1,000,000 files and on one of 10,000; beside it
RQ's own `rq info`, and an interpreter that does nothing."""

from collections.abc import Iterator
from pathlib import Path

from bench.report import Ended, Row, Size, fresh, median, under
from imece_producer.local.server import Server

FILES = (1_000_000, 10_000)


def rows(folder: Path, size: Size) -> Iterator[Row]:
    counts = [files // size.part for files in FILES]
    took: dict[str, list[Ended]] = {}
    with Server(folder / "redis-status") as server:
        for files in counts:
            enqueue(server, folder, files)
        for _ in range(size.rounds):
            for files in counts:
                ended = fresh("imece_producer", "status", f"run-{files}", url=server.url)
                assert f"left of {files:,}" in ended.output
                took.setdefault(f"`imece status`, {files:,} files", []).append(ended)
            took.setdefault("`rq info`", []).append(fresh("rq.cli", "info", "--url", server.url))
            took.setdefault("an interpreter that does nothing", []).append(fresh("this"))
    for what, ended_ones in took.items():
        seconds = median(ended.seconds for ended in ended_ones)
        if what.startswith("`imece"):
            yield under(0.4, seconds, what, " s", digits=2)
        else:
            yield Row(what, f"{seconds:.2f} s")


def enqueue(server: Server, folder: Path, files: int) -> None:
    """Names only: a list does not need the files to be there."""
    names = folder / f"names-{files}"
    names.write_text("".join(f"part-{number:06d}.csv\n" for number in range(files)))
    source = folder / "nowhere"
    source.mkdir(exist_ok=True)
    options = ["--from-file", str(names), "--run-id", f"run-{files}"]
    fresh("imece_producer", "enqueue", source, "-", *options, url=server.url)
