"""`imece enqueue`."""

from imece.run import status
from imece.run.parameters import Parameters
from imece.settings import load
from imece_producer import display
from imece_producer.cli.app import app, redis_of, run_id_of
from imece_producer.cli.options import (
    DryRun,
    Files,
    GivenRunId,
    Json,
    with_files,
)
from imece_producer.display import put, put_json, say
from imece_producer.parameters import made_run_id


@app.command(
    epilog="Examples:\n\n  imece enqueue /data/in /data/out --suffix .json\n\n"
    "  find . -name '*.csv' -print0 | imece enqueue . /data/out --from-file - -0"
)
@with_files
def enqueue(
    files: Files,
    run_id: GivenRunId = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """List a folder, group it into bucket jobs, put them into the queue."""
    settings = load()
    parameters = files.parameters(settings)
    name = run_id_of(run_id) if run_id else made_run_id(files.source)
    if dry_run:
        show_plan(files, parameters, as_json)
        return
    from imece_producer.enqueue import Producer

    with redis_of(settings) as redis:
        producer = Producer(redis, settings, say)
        enqueued = producer.enqueue(name, parameters, lambda: files.listing(parameters))
        if as_json:
            put_json({"how": enqueued.how, **status.read(enqueued.run).summary()})
            return
        put(display.enqueued(enqueued))
        if enqueued.plan is None or enqueued.plan.files:
            put(f"`imece status {name} --watch` shows how far it is")


def show_plan(files: Files, parameters: Parameters, as_json: bool) -> None:
    """For --dry-run."""
    from imece_producer.plan import plan

    made = plan(parameters, files.listing(parameters))
    if as_json:
        put_json({"files": made.files, "buckets": made.shape.buckets, "jobs": made.jobs})
    else:
        put(f"would process {display.plan(made)}" if made.files else display.plan(made))
