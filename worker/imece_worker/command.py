"""`imece-worker`: one worker process. What comes before is in imece_worker/__main__.py."""

from typing import TYPE_CHECKING, Annotated

import typer

from imece import commandline
from imece.commandline import Include, Set, Suffix, Version, given
from imece.errors import UsageError
from imece_worker import handover

if TYPE_CHECKING:
    from imece.settings import Settings
    from imece_worker.interpreter import Interpreter

app = commandline.new("")


@app.command(
    epilog=commandline.examples(
        "IMECE_PROCESSOR=examples.metrics:measure imece-worker",
        "imece-worker --command 'convert {input} -resize 50% {output}'",
        "IMECE_INPUT=/data/in IMECE_OUTPUT=/data/out \\",
        "  imece-worker --bucket-id 0 --bucket-count 8",
    )
)
def work(
    processor: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="package.module:function. [IMECE_PROCESSOR]", parser=given
        ),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="A program and its arguments. [IMECE_COMMAND]", parser=given
        ),
    ] = None,
    shell: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A text for sh -c. [IMECE_SHELL]", parser=given),
    ] = None,
    stdout: Annotated[
        bool | None,
        typer.Option("--stdout", help="The standard output is the output. [IMECE_COMMAND_STDOUT]"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=2, max=100, help="Files that a class gets at a time. [IMECE_BATCH]"),
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The queue to listen to. [IMECE_QUEUE]", parser=given),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only load the processor, then end.")
    ] = False,
    bucket_id: Annotated[
        int | None,
        typer.Option(
            help="Process one of a fixed number of buckets of IMECE_INPUT without Redis, then end. "
            "Which one, from 0 on."
        ),
    ] = None,
    bucket_count: Annotated[
        int | None, typer.Option(help="With --bucket-id: how many buckets there are.")
    ] = None,
    include: Include = None,
    suffix: Suffix = None,
    set_words: Set = None,
    asked_for_version: Version = False,
) -> None:
    """Take bucket jobs from the queue and process their files, until stopped.

    SIGTERM, SIGINT and SIGHUP stop it: it finishes the current file and gives the rest of its job
    back. SIGQUIT: it gives the current file back, too. All other settings are IMECE_… variables:
    docs/reference/settings.md lists them.

    Exit codes: 0 stopped as asked, or the bucket is done; 1 some files of the bucket failed;
    2 wrong usage or settings; 3 Redis refuses the worker; 128 and the number of the signal: stopped
    before the bucket was done.
    """
    if (bucket_id is None) != (bucket_count is None):
        raise UsageError("--bucket-id and --bucket-count go together")
    if bucket_id is None and (include or suffix):
        raise UsageError("--include and --suffix need --bucket-id and --bucket-count")
    if bucket_id is None and not check and set_words:
        raise UsageError(
            "--set needs --bucket-id and --bucket-count, or --check: a run has its own"
        )
    # Here, because --help needs none of it, --check and a static bucket no Redis.
    from imece import settings
    from imece.run.parameters import set_of
    from imece_worker import log
    from imece_worker.interpreter import Interpreter

    parameters = set_of(set_words or ())
    with handover.in_environment():
        found = settings.load(
            processor=processor,
            command=command,
            shell=shell,
            command_stdout=stdout or None,
            batch=batch,
            queue=queue,
        )
    # Imports the processor while we import the rest.
    knows_set = bucket_id is not None or bool(parameters)
    interpreter = Interpreter(found, parameters if knows_set else None)
    if check:  # beside a worker, maybe, whose heartbeat file and port are left alone
        log.set_up(found)
        interpreter.wait()
    elif bucket_id is not None and bucket_count is not None:
        from imece_worker import static

        code = static.work(
            found, interpreter, bucket_id, bucket_count, tuple(include or ()), suffix, parameters
        )
        raise typer.Exit(code)
    else:
        take_jobs(found, interpreter)


def take_jobs(settings: "Settings", interpreter: "Interpreter") -> None:
    """Works from the queue until stopped."""
    from imece.connection import reachable
    from imece_worker import context, deletioncost
    from imece_worker.statistics import WorkerStatistics
    from imece_worker.worker import Worker

    context.prepare(settings)
    cost = deletioncost.start(settings)  # first: it forks, and from here on there may be threads
    statistics = WorkerStatistics()
    if settings.metrics_port:
        from imece_worker import metrics

        metrics.serve(statistics, settings.metrics_port)
    interpreter.wait()
    with reachable(settings):
        Worker(settings, interpreter, cost, statistics).work()
