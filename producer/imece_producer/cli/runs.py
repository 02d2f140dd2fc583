"""`imece status`, `runs`, `wait`, `failures`, `retry`, `resume`, `cancel`, `delete`."""

import time
from typing import TYPE_CHECKING, Annotated

import typer
from redis.exceptions import AuthenticationError

from imece.connection import OUTAGES
from imece.errors import ImeceError, RunError
from imece.run import status
from imece.run.status import Status
from imece.run.store import Run, recent
from imece.settings import Settings, load
from imece_producer import display
from imece_producer.cli.app import app, exit_for, find_settings, redis_of, run_of
from imece_producer.cli.options import (
    Context,
    Json,
    Namespace,
    RunId,
    given_run,
)
from imece_producer.cluster import kubeconfig
from imece_producer.display import put, put_json, say
from imece_producer.follow import follow

if TYPE_CHECKING:
    pass


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
    """How far a run is: files done, failed, left; rate; time left; workers; queue.

    In a pod, or with --context, --namespace or their settings: also the cluster's replicas, and
    what keeps them from working; these even if Redis is out of reach.
    """
    settings = find_settings(run_id, context, namespace)
    named = kubeconfig.is_named(settings)
    if named:
        from imece_producer.cluster import commands as on_cluster
    try:
        with run_of(settings, run_id) as run:
            if watch and not as_json:
                follow(run, lambda: status.read(run))
            while True:
                now = status.read(run)
                workers = on_cluster.look(settings, now) if named else None
                if as_json:
                    told = now.summary()
                    if workers is not None:
                        told["cluster"] = workers
                    put_json(told)
                else:
                    put("\n".join([display.block(now), *display.workers(workers)]))
                if not watch or now.has_stopped:
                    return
                time.sleep(1.0)
    except ImeceError:
        if named:  # what the cluster says may be why; and Redis is seldom reached from outside it
            workers = on_cluster.look(settings)
            if as_json:
                put_json({"cluster": workers})
            else:
                put("\n".join(display.workers(workers)))
        raise


@app.command()
def runs(as_json: Json = False) -> None:
    """All runs, newest first."""
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
        cells = [
            cell.rjust(width) if 2 <= column <= 6 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        put("  ".join(cells).rstrip())


@app.command()
def wait(run_id: RunId, as_json: Json = False) -> None:
    """Wait until a run ends; the exit code says how: 0 done, 1 failed, cancelled or held."""
    settings = find_settings(run_id)
    with run_of(settings, run_id) as run:
        status.read(run)  # a wrong id, or a Redis that is not there, is said at once
        last = wait_for(run) if as_json else follow(run, lambda: patient_read(run))
    if as_json:
        put_json(last.summary())
    else:
        put(display.block(last))
    exit_for(last)


def wait_for(run: Run) -> Status:
    while not (now := patient_read(run)).has_stopped:
        time.sleep(0.5)
    return now


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
    """Which files failed, how often they were tried, and why."""
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
    """Process the failed files of an ended run again. They are the run's next round."""
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
    """Go on with a run that is held or cancelled; without RUN, end every pause of the workers.

    A run goes on with the files that are left and those that failed, as its next round. The workers
    are those of a cluster.
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
            if workers := status.read(run).backlog.workers:
                say(
                    f"(workers keep the code that they have loaded: after a fix, start the "
                    f"{workers:,} again, in a cluster by kubectl rollout restart deployment/"
                    f"{settings.deployment})"
                )


@app.command()
def cancel(run_id: RunId, as_json: Json = False) -> None:
    """Start no new files; what is done stays. To go on: `imece resume RUN`, or enqueue it again."""
    from imece.run import rescue

    settings = find_settings(run_id)
    with run_of(settings, run_id) as run:
        parameters = run.readable_parameters()
        run.cancel(settings.result_ttl)
        rescue.clear_output(run, parameters)
        if as_json:
            put_json({"run": run_id, "state": run.state()})
        else:
            put(f"run {run_id} is cancelled: files in hand are finished, no other is started")


@app.command()
def delete(run_id: RunId) -> None:
    """Forget an ended run. Its outputs stay."""
    from imece.run import rescue

    settings = find_settings(run_id)
    with run_of(settings, run_id) as run:
        parameters = run.readable_parameters()
        run.delete()
        rescue.clear_output(run, parameters)
    put(f"run {run_id} is deleted; its outputs are where they were")
