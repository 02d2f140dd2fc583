"""What is timed in a process of its own: `python -m bench.tasks WHAT DIRECTORY` prints the seconds
and the peak of memory as JSON. The start of the interpreter and imports are not in the seconds."""

import json
import os
import resource
import sys
import time

import mmh3


def scan(directory: str) -> None:
    """The alternative to an enqueuing: the least that anybody who lists and groups has to do."""
    for entry in os.scandir(directory):
        mmh3.hash(entry.name)


def enqueue(directory: str) -> None:
    """`imece enqueue`, whole."""
    _enqueue(directory, "-")


def skip(directory: str) -> None:
    """The same of files that are current."""
    _enqueue(directory, _outputs(directory))


def look(directory: str) -> None:
    """The alternative: the least that anybody has to do who looks at inputs and outputs."""
    target = _outputs(directory)
    there = {entry.name for entry in os.scandir(target)}
    for entry in os.scandir(directory):
        os.stat(entry.path)  # noqa: PTH116 - a Path costs more than the look
        if entry.name in there:
            os.stat(f"{target}/{entry.name}")  # noqa: PTH116


def _outputs(directory: str) -> str:
    return directory.removesuffix("-in") + "-out"


def _enqueue(directory: str, target: str) -> None:
    from imece_producer.__main__ import main as imece

    sys.argv = ["imece", "enqueue", directory, target, "--run-id", "bench"]
    try:
        imece()
    except SystemExit as end:
        assert end.code == 0


def main(what: str, directory: str) -> None:
    task = {"scan": scan, "enqueue": enqueue, "skip": skip, "look": look}[what]
    if task in (enqueue, skip):
        import imece_producer.cli
        import imece_producer.enqueue  # noqa: F401 - imported here, so that it is not timed
    began = time.perf_counter()
    task(directory)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
