"""`imece-worker`: one worker process. What comes before is in imece_worker/cli.py."""

import argparse
import gc
import os
import sys

from imece import names
from imece.connection import reachable
from imece.errors import ImeceError
from imece.settings import Settings, load
from imece_worker import deletioncost, handover, startup
from imece_worker.statistics import WorkerStatistics
from imece_worker.worker import Worker

DESCRIPTION = """\
Takes bucket jobs from the queue and processes their files, until it is stopped (SIGTERM, SIGINT or
SIGHUP: it finishes the file in hand, gives the rest back, and leaves with exit code 0; SIGQUIT: it
gives the file in hand back, too). All else is set by IMECE_... variables:
docs/reference/settings.md lists them."""

EXAMPLES = """\
examples:
  IMECE_PROCESSOR=examples.metrics:measure imece-worker
  imece-worker --command 'convert {input} -resize 50% {output}'
  IMECE_INPUT=/data/in IMECE_OUTPUT=/data/out imece-worker --bucket-id 0 --bucket-count 8
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 stopped as asked, or the static bucket is done; 1 some of its files failed;
    2 wrong settings; 3 Redis refuses us; 143 stopped before the static bucket was done."""
    _open_standard_files()
    parser = argparse.ArgumentParser(
        prog="imece-worker",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processor", help="package.module:function (IMECE_PROCESSOR)")
    parser.add_argument("--command", help="a program and its arguments (IMECE_COMMAND)")
    parser.add_argument("--queue", help="the queue to listen to (IMECE_QUEUE)")
    parser.add_argument("--check", action="store_true", help="load the processor, and stop")
    alone = parser.add_argument_group(
        "without Redis", "one of a fixed number of buckets of IMECE_INPUT, then an end"
    )
    alone.add_argument("--bucket-id", type=int, help="which bucket, from 0 on")
    alone.add_argument("--bucket-count", type=int, help="how many there are")
    alone.add_argument("--include", action="append", default=[], help="as imece enqueue has it")
    alone.add_argument("--suffix", help="as imece enqueue has it")
    given = parser.parse_args(arguments)
    if (given.bucket_id is None) != (given.bucket_count is None):
        parser.error("--bucket-id and --bucket-count go together")
    if given.bucket_id is None and (given.include or given.suffix):
        parser.error("--include and --suffix need --bucket-id and --bucket-count")
    try:
        with handover.in_environment():
            settings = load(processor=given.processor, command=given.command, queue=given.queue)
        if given.bucket_id is None:
            return work(settings, only_check=given.check)
        from imece_worker import static

        return static.work(
            settings, given.bucket_id, given.bucket_count, tuple(given.include), given.suffix
        )
    except ImeceError as error:
        print(f"imece-worker: {names.printable(str(error))}", file=sys.stderr)
        return error.exit_code


def _open_standard_files() -> None:
    """Those among 0, 1 and 2 that whoever started us has closed. Else sockets and files get these
    numbers, and a runner takes them for where it prints."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 - open for as long as the process
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115


def work(settings: Settings, only_check: bool = False) -> int:
    """Works until stopped, unless it is only to see whether it could: beside a worker, maybe, whose
    heartbeat file and port are then left alone."""
    if only_check:
        startup.load_processor(settings)
        return 0
    startup.prepare(settings)
    cost = deletioncost.start(settings)  # first: it forks, and from here on there may be threads
    statistics = WorkerStatistics()
    if settings.metrics_port:
        from imece_worker import metrics

        metrics.serve(statistics, settings.metrics_port)
    function = startup.load_processor(settings)
    gc.freeze()  # forked runners then share what has been imported
    with reachable(settings):
        Worker(settings, function, cost, statistics).work()
    return 0
