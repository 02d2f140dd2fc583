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
    from imece_producer.__main__ import main as imece

    sys.argv = ["imece", "enqueue", directory, "-", "--run-id", "bench"]
    try:
        imece()
    except SystemExit as end:
        assert end.code == 0


def main(what: str, directory: str) -> None:
    task = {"scan": scan, "enqueue": enqueue}[what]
    if task is enqueue:
        import imece_producer.cli
        import imece_producer.enqueue  # noqa: F401 - imported here, so that it is not timed
    began = time.perf_counter()
    task(directory)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
