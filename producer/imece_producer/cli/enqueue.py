"""`imece enqueue`."""

from typing import TYPE_CHECKING, Annotated

import typer

from imece.run import status
from imece.settings import load
from imece_producer import display
from imece_producer.cli.app import app, redis_of, run_id_of
from imece_producer.cli.options import (
    Files,
    GivenRunId,
    Json,
    with_files,
)
from imece_producer.display import put, put_json, say
from imece_producer.parameters import made_run_id

if TYPE_CHECKING:
    pass


@app.command(
    epilog="Examples:\n\n  imece enqueue /data/in /data/out --suffix .json\n\n"
    "  find . -name '*.csv' -print0 | imece enqueue . /data/out --from-file - -0"
)
@with_files
def enqueue(
    files: Files,
    run_id: GivenRunId = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be enqueued, and do nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List a folder, group it into bucket jobs, put them into the queue."""
    settings = load()
    parameters = files.parameters(settings)
    name = run_id_of(run_id) if run_id else made_run_id(files.source)
    from imece_producer.enqueue import Producer
    from imece_producer.plan import plan

    if dry_run:
        made = plan(parameters, files.listing(parameters))
        counts = {"files": made.files, "buckets": made.shape.buckets, "jobs": made.jobs}
        if as_json:
            put_json(counts)
        else:
            put(f"would enqueue {display.plan(made)}")
        return
    with redis_of(settings) as redis:
        producer = Producer(redis, settings, say)
        enqueued = producer.enqueue(name, parameters, lambda: files.listing(parameters))
        if as_json:
            put_json({"how": enqueued.how, **status.read(enqueued.run).summary()})
            return
        put(display.enqueued(enqueued))
        put(f"`imece status {name} --watch` shows how far it is")
