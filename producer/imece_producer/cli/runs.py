"""`imece status`, `runs`, `wait`, `retry`, `resume`, `cancel`, `delete`."""

import shlex
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from redis import Redis
from redis.exceptions import AuthenticationError

from imece import commandline
from imece.connection import OUTAGES
from imece.errors import ImeceError, RunError, ServiceError, UsageError
from imece.run import status
from imece.run.status import Status
from imece.run.store import Run, recent
from imece.settings import Settings, load
from imece_producer import display
from imece_producer.cli.app import (
    Context,
    Json,
    Namespace,
    Pipeline,
    Place,
    RunId,
    app,
    find,
    given_run,
    is_server_named,
    redis_of,
    run_of,
    settings_for,
)
from imece_producer.cluster import kubeconfig
from imece_producer.display import put, put_json, say
from imece_producer.follow import follow


@app.command("status", epilog=commandline.examples("imece status", "imece status nightly --watch"))
def show_status(
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="[default: the newest]", parser=given_run),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Until the run ends.")] = False,
    context: Context = None,
    namespace: Namespace = None,
    pipeline: Pipeline = None,
    as_json: Json = False,
) -> None:
    """Show how far a run is.

    Files done, failed and left; the rate and the time left; the workers and the queue.

    In a pod, or with --context, --namespace, --pipeline or their settings, it also shows the
    cluster's workers and what keeps them from working, even if Redis is out of reach.
    """
    place = find(run_id, context, namespace, pipeline)
    settings = place.settings
    named = place.local is None and (pipeline is not None or kubeconfig.is_named(settings))
    if named:
        from imece_producer.cluster import commands as on_cluster

    def show(now: Status | None) -> None:
        workers = on_cluster.look(settings, now) if named else None
        if as_json:
            told = now.summary() if now else {}
            put_json({**told, "cluster": workers} if workers else told)
        else:
            put("\n".join([*([display.block(now)] if now else []), *display.workers(workers)]))

    if place.record is not None:
        show(place.record.status)
        return
    try:
        with run_of(settings, run_id) as run:
            if watch and not as_json:
                show(follow(lambda: read(run, place)))
                return
            show(now := status.read(run))
            while watch and not now.has_stopped:
                time.sleep(1.0)
                show(now := read(run, place))
    except ImeceError:
        if named:  # the cluster may say why; and Redis is rarely reached from outside it
            show(None)
        raise


@app.command()
def runs(as_json: Json = False) -> None:
    """List all runs, newest first, with the local ones."""
    settings = load()
    local = list(local_runs(settings))
    found = [*local]
    try:
        with redis_of(settings) as redis:
            found += statuses(redis, settings.queue)
    except ServiceError as error:
        if is_server_named(settings):
            raise
        if not local:
            say(f"(only local runs were looked for: {error.what})")
    found.sort(key=lambda one: one.created, reverse=True)
    if as_json:
        put_json([{**one.summary(), "local": one in local} for one in found])
        return
    if not found:
        put("no runs")
        return
    rows = [["RUN", "STATE", "FILES", "DONE", "FAILED", "SKIPPED", "LEFT", "AGE", "WHERE"]]
    for one in found:
        counts = (one.files, one.done, one.failed, one.skipped, one.left)
        age = display.age((time.time() if one in local else one.now) - one.created)
        where = "here" if one in local else "Redis"
        rows.append([one.id, one.state, *(f"{number:,}" for number in counts), age, where])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        sized = list(zip(row, widths, strict=True))
        cells = [cell.ljust(width) for cell, width in sized]
        cells[2:7] = [cell.rjust(width) for cell, width in sized[2:7]]
        put("  ".join(cells).rstrip())


def statuses(redis: Redis, queue: str) -> Iterator[Status]:
    """Of all runs of one queue."""
    for run_id in recent(redis, queue):
        run = Run(redis, queue, run_id)
        try:
            with run.explained():
                yield status.read(run)
        except RunError as error:  # it has just expired, or is damaged
            say(f"imece: {error}")


def local_runs(settings: Settings) -> Iterator[Status]:
    """The status of each local run: those that are on, and what is left of the others."""
    from imece_producer.local import record, state

    state_dir = settings.state_dir.expanduser()
    for url in state.live(state_dir).values():
        try:
            with redis_of(state.at(settings, url)) as redis:
                yield from statuses(redis, settings.queue)
        except ServiceError:
            pass  # it has just ended
    for left in record.ended(state_dir):
        yield left.status


@app.command()
def wait(run_id: RunId, as_json: Json = False) -> None:
    """Wait until a run ends; the exit code says how.

    0: done. 1: some files failed, or the run was cancelled or is held.
    """
    place = find(run_id)
    if place.record is not None:
        last = place.record.status
    else:
        with run_of(place.settings, run_id) as run:
            status.read(run)  # a wrong id, or a Redis that is not there, is said at once
            last = follow(lambda: patient_read(run, place), quiet=as_json)
    if as_json:
        put_json(last.summary())
    else:
        put(display.block(last))
    raise typer.Exit(last.exit_code)


def read(run: Run, place: Place) -> Status:
    """A run's status; of a local run whose server has gone with its call, what that has left."""
    while True:
        try:
            return status.read(run)
        except OUTAGES:
            if place.local is None:
                raise
            if left := place.last_words():
                return left.status
            time.sleep(0.1)


def patient_read(run: Run, place: Place) -> Status:
    """The same, however long Redis is away."""
    since = None
    while True:
        try:
            return read(run, place)
        except AuthenticationError:
            raise  # no waiting fixes that
        except OUTAGES:
            if since is None:
                since = time.monotonic()
                say("Redis is out of reach: waiting for it")
            time.sleep(1.0)


@app.command(epilog=commandline.examples("imece retry nightly", "imece retry nightly --cause 2"))
def retry(
    run_id: RunId,
    cause: Annotated[
        int | None,
        typer.Option(
            help="Only the files that failed with this cause, by its number; the others stay "
            "failed. `imece failures RUN --by-cause` shows the numbers.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Process the failed files of an ended run again.

    They are the run's next round. Files that no worker has started are part of it, too.
    """
    go_on(run_id, as_json, cause)


@app.command(epilog=commandline.examples("imece resume nightly", "imece resume -n imece"))
def resume(
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run that is held or cancelled.", parser=given_run),
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
    pipeline: Pipeline = None,
    as_json: Json = False,
) -> None:
    """Continue a held or cancelled run, or end a pause.

    Without RUN it ends every pause of the workers of a cluster.

    The run's next round has the files that are left and those that failed. The workers are those
    of a cluster.
    """
    if run_id is not None:
        go_on(run_id, as_json)
        return
    from imece_producer.cluster import commands

    commands.resume(settings_for(context, namespace, pipeline), as_json)


def go_on(run_id: str, as_json: bool, cause: int | None = None) -> None:
    """Enqueues the files of a run that failed, or that no worker has come to."""
    from imece_producer.enqueue import Producer

    settings = on_server(run_id)
    with run_of(settings, run_id) as run:
        again = Producer(run.redis, settings).again(run, cause)
        if as_json:
            put_json({"requeued": again, **status.read(run).summary()})
        else:
            put(f"run {run_id}: {display.count(again, 'file')} in the queue again")
            if workers := status.read(run).backlog.workers:
                say(
                    f"(workers keep the code that they have loaded: after a fix, start the "
                    f"{workers:,} again, in a cluster by kubectl rollout restart deployment/"
                    f"{settings.deployment})"
                )


@app.command()
def cancel(run_id: RunId, as_json: Json = False) -> None:
    """Start no new files of a run; what is done stays.

    `imece resume RUN` continues it.
    """
    from imece.run import dead_workers

    settings = on_server(run_id)
    with run_of(settings, run_id) as run:
        parameters = run.readable_parameters()
        run.cancel(settings.result_ttl)
        dead_workers.clear_output(run, parameters)
        if as_json:
            put_json({"run": run_id, "state": run.state()})
        else:
            put(f"run {run_id} is cancelled: files in hand are finished, no other is started")


@app.command(epilog=commandline.examples("imece delete nightly", "imece delete --ended-here"))
def delete(
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="The run id; `imece runs` lists them.",
            show_default=False,
            parser=given_run,
        ),
    ] = None,
    ended_here: Annotated[
        bool, typer.Option("--ended-here", help="Every local run that is not on.")
    ] = False,
) -> None:
    """Remove an ended run; its outputs stay.

    From Redis; or of a local run, what it has left in IMECE_STATE_DIR.
    """
    from imece.run import dead_workers

    if (run_id is None) != ended_here:
        raise UsageError("name a run, or take --ended-here")
    if run_id is None:
        from imece_producer.local import record

        left = record.ended(load().state_dir.expanduser())
        for one in left:
            one.delete()
        put(f"{display.count(len(left), 'local run')} deleted; their outputs are where they were")
        return
    place = find(run_id, to_change=True)
    if place.record is not None:
        place.record.delete()
    else:
        with run_of(place.settings, run_id) as run:
            parameters = run.readable_parameters()
            run.delete()
            dead_workers.clear_output(run, parameters)
    put(f"run {run_id} is deleted; its outputs are where they were")


def on_server(run_id: str) -> Settings:
    """The settings for a run that is to change.

    Raises:
        RunError: it is a local run that no call processes.
    """
    place = find(run_id, to_change=True)
    if place.record is not None:
        call = shlex.join(["imece", *place.record.call])
        raise RunError(f"run {run_id} is a local run, and not on", f"to go on with it: {call}")
    return place.settings
