"""`imece status`, `runs`, `wait`, `failures`, `retry`, `resume`, `cancel`, `delete`."""

import time
from typing import Annotated

import typer
from redis.exceptions import AuthenticationError

from imece.connection import OUTAGES
from imece.errors import ImeceError, RunError
from imece.run import status
from imece.run.status import Status
from imece.run.store import Run, recent
from imece.settings import Settings, load
from imece_producer import display
from imece_producer.cli.app import (
    Context,
    Json,
    Namespace,
    RunId,
    app,
    find_settings,
    given_run,
    redis_of,
    run_of,
)
from imece_producer.cluster import kubeconfig
from imece_producer.display import put, put_json, say


@app.command("status", epilog="Examples:\n\n  imece status\n\n  imece status nightly --watch")
def show_status(
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="[default: the newest]", parser=given_run),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Until the run ends.")] = False,
    context: Context = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Show how far a run is: files done, failed, left; rate; time left; workers; queue.

    In a pod, or with --context, --namespace or their settings, it also shows the cluster's
    workers and what keeps them from working, even if Redis is out of reach.
    """
    settings = find_settings(run_id, context, namespace)
    named = kubeconfig.is_named(settings)
    if named:
        from imece_producer.cluster import commands as on_cluster

    def show(now: Status | None) -> None:
        workers = on_cluster.look(settings, now) if named else None
        if as_json:
            told = now.summary() if now else {}
            put_json({**told, "cluster": workers} if workers else told)
        else:
            put("\n".join([*([display.block(now)] if now else []), *display.workers(workers)]))

    try:
        with run_of(settings, run_id) as run:
            if watch and not as_json:
                display.follow(lambda: status.read(run))
            show(now := status.read(run))
            while watch and not now.has_stopped:
                time.sleep(1.0)
                show(now := status.read(run))
    except ImeceError:
        if named:  # the cluster may say why; and Redis is rarely reached from outside it
            show(None)
        raise


@app.command()
def runs(as_json: Json = False) -> None:
    """List all runs, newest first."""
    settings = find_settings()
    with redis_of(settings) as redis:
        found = []
        for run_id in recent(redis):
            run = Run(redis, run_id)
            try:
                with run.explained():
                    found.append(status.read(run))
            except RunError as error:  # it has just expired, or is damaged
                say(f"imece: {error}")
    if as_json:
        put_json([one.summary() for one in found])
        return
    if not found:
        put("no runs")
        return
    rows = [["RUN", "STATE", "FILES", "DONE", "FAILED", "SKIPPED", "LEFT", "MADE"]]
    for one in found:
        counts = (one.files, one.done, one.failed, one.skipped, one.left)
        made = display.ago(one.created, one.now)
        rows.append([one.id, one.state, *(f"{number:,}" for number in counts), made])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        sized = list(zip(row, widths, strict=True))
        cells = [cell.ljust(width) for cell, width in sized]
        cells[2:7] = [cell.rjust(width) for cell, width in sized[2:7]]
        put("  ".join(cells).rstrip())


@app.command()
def wait(run_id: RunId, as_json: Json = False) -> None:
    """Wait until a run ends; the exit code says how: 0 done, 1 failed, cancelled or held."""
    settings = find_settings(run_id)
    with run_of(settings, run_id) as run:
        status.read(run)  # a wrong id, or a Redis that is not there, is said at once
        last = display.follow(lambda: patient_read(run), quiet=as_json)
    if as_json:
        put_json(last.summary())
    else:
        put(display.block(last))
    raise typer.Exit(last.exit_code)


def patient_read(run: Run) -> Status:
    """A run's status, however long Redis is away."""
    since = None
    while True:
        try:
            return status.read(run)
        except AuthenticationError:
            raise  # no waiting fixes that
        except OUTAGES:
            if since is None:
                since = time.monotonic()
                say("Redis is out of reach: waiting for it")
            time.sleep(1.0)


@app.command(
    epilog="Examples:\n\n  imece failures nightly --full\n\n"
    "  imece failures nightly --json | jq .file"
)
def failures(
    run_id: RunId,
    full: Annotated[
        bool, typer.Option("--full", help="The whole reason, and what the processor printed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show which files failed, how often they were tried, and why."""
    settings = find_settings(run_id)
    with run_of(settings, run_id) as run:
        if run.state() is None:
            raise run.missing()
        for name, failure in sorted(run.failures(), key=lambda item: item[0]):
            if as_json:
                put_json(display.failure_entry(name, failure))
                continue
            put(display.failure(name, failure))
            if full:
                for title, text in (("reason", failure.reason), ("printed", failure.output)):
                    for line in text.splitlines():
                        put(f"    {title}: {line}")


@app.command()
def retry(run_id: RunId, as_json: Json = False) -> None:
    """Process the failed files of an ended run again, as its next round."""
    go_on(find_settings(run_id), run_id, as_json)


@app.command(epilog="Examples:\n\n  imece resume nightly\n\n  imece resume -n imece")
def resume(
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run that is held or cancelled.", parser=given_run),
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Continue a run that is held or cancelled; without RUN, end every pause of the workers.

    The run's next round has the files that are left and those that failed. The workers are those
    of a cluster.
    """
    if run_id is not None:
        go_on(find_settings(run_id), run_id, as_json)
        return
    from imece_producer.cluster import commands

    commands.resume(load(kube_context=context, kube_namespace=namespace), as_json)


def go_on(settings: Settings, run_id: str, as_json: bool) -> None:
    """Enqueues the files of a run that failed, or that no worker has come to."""
    from imece_producer.enqueue import Producer

    with run_of(settings, run_id) as run:
        again = Producer(run.redis, settings).again(run)
        if as_json:
            put_json({"requeued": again, **status.read(run).summary()})
        else:
            put(f"run {run_id}: {display.count(again, 'file')} in the queue again")


@app.command()
def cancel(run_id: RunId, as_json: Json = False) -> None:
    """Start no new files; what is done stays. `imece resume RUN` continues the run."""
    from imece.run import dead_workers

    settings = find_settings(run_id)
    with run_of(settings, run_id) as run:
        parameters = run.readable_parameters()
        run.cancel(settings.result_ttl)
        dead_workers.clear_output(run, parameters)
        if as_json:
            put_json({"run": run_id, "state": run.state()})
        else:
            put(f"run {run_id} is cancelled: files in hand are finished, no other is started")


@app.command()
def delete(run_id: RunId) -> None:
    """Remove an ended run from Redis. Its outputs stay."""
    from imece.run import dead_workers

    settings = find_settings(run_id)
    with run_of(settings, run_id) as run:
        parameters = run.readable_parameters()
        run.delete()
        dead_workers.clear_output(run, parameters)
    put(f"run {run_id} is deleted; its outputs are where they were")
