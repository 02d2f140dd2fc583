"""`imece-worker`: one worker process."""

import argparse
import gc
import os
import signal
import sys
from pathlib import Path

from imece.connection import reachable
from imece.errors import ImeceError, SettingsError
from imece.settings import Settings, load
from worker import deletioncost, log, processor
from worker.tally import Tally
from worker.worker import Worker, touchable

DESCRIPTION = """\
Takes bucket jobs from the queue and processes their files, until it is stopped (SIGTERM: it
finishes the file in hand, gives the rest back, and leaves with exit code 0). All else is set by
IMECE_... variables: docs/settings.md lists them."""

EXAMPLES = """\
examples:
  IMECE_PROCESSOR=examples.metrics:measure imece-worker
  imece-worker --command 'convert {input} -resize 50% {output}'
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 stopped as asked, 2 wrong settings, 3 Redis refuses us."""
    # Until the worker listens itself. The first process of a container is else deaf to it, and
    # would take a job after it was asked to stop. No exception: an import may catch it.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
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
    given = parser.parse_args(arguments)
    try:
        settings = load(processor=given.processor, command=given.command, queue=given.queue)
        return work(settings, only_check=given.check)
    except ImeceError as error:
        print(f"imece-worker: {error}", file=sys.stderr)
        return error.exit_code


def work(settings: Settings, only_check: bool = False) -> int:
    """Works until stopped, unless it is only to see whether it could."""
    log.set_up(settings)
    if settings.heartbeat_file is not None and (flaw := touchable(settings.heartbeat_file)):
        raise SettingsError(f"IMECE_HEARTBEAT_FILE: {flaw}")
    cost = deletioncost.start(settings)  # first: it forks, and from here on there may be threads
    tally = Tally()
    if settings.metrics_port:
        from worker import metrics

        metrics.serve(tally, settings.metrics_port)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # so that a script beside the user is found, as with python -m
    function = processor.load(settings)
    if only_check:
        return 0
    gc.freeze()  # forked horses then share what has been imported
    with reachable(settings):
        Worker(settings, function, cost, tally).work()
    return 0
