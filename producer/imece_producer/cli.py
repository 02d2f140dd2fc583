"""The command line `imece`. What it needs for one command only is imported there: `imece status`
has to answer at once."""

import gc
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from redis.exceptions import AuthenticationError

from imece import names
from imece.connection import OUTAGES, connect, reachable
from imece.errors import ImeceError, RunError, UsageError
from imece.run import status
from imece.run.status import Status
from imece.run.store import Run, recent
from imece.settings import Settings, load
from imece_producer import display
from imece_producer.cluster import kubeconfig
from imece_producer.display import put, put_json, say
from imece_producer.options import (
    Buckets,
    Context,
    Exclude,
    FilesPerJob,
    FromFile,
    GivenRunId,
    Hidden,
    In,
    Include,
    Json,
    Namespace,
    Null,
    Out,
    Overwrite,
    Retries,
    RunId,
    Suffix,
    Timeout,
    given_run,
    list_files,
    made_run_id,
    parameters_of,
)

if TYPE_CHECKING:
    from redis import Redis

    from imece.run.store import Parameters


FAILED = 1
INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn a folder of files into outputs, in parallel.\n\n"
    "Exit codes: 0 done, 1 some files failed, 2 wrong usage or settings, "
    "3 a service is out of reach.",
)


def main() -> NoReturn:
    """The entry point: what is meant for people becomes one line and an exit code."""
    gc.freeze()  # what is imported stays: no need to look at it each time memory is tidied
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for paths that are not UTF-8
    try:
        app(prog_name="imece")
    except ImeceError as error:
        say(f"imece: {names.printable(str(error))}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        _flush()
    sys.exit(0)


def _flush() -> None:
    """Hands over what was printed, to whoever still reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def find_settings(
    run_id: str | None = None, context: str | None = None, namespace: str | None = None
) -> Settings:
    """The settings, unless a local run is meant: then those of its server.

    A local run is meant if no Redis and no cluster is named, and it is on: under `run_id`; or, with
    no run named, as the only one. So what changes a run goes to a local one only by its id, and
    `enqueue`, which makes one, never.
    """
    settings = load(kube_context=context, kube_namespace=namespace)
    if is_redis_named(settings) or kubeconfig.is_named(settings):
        return settings
    from imece_producer.local import run

    there = run.live(settings.state_dir.expanduser())
    if run_id is None and len(there) == 1:
        run_id = next(iter(there))
    if run_id in there:
        say(f"(on the local run {run_id})")
        return run.at(settings, there[run_id])
    if run_id is None and there:
        say(f"(several local runs are on: name one: {', '.join(there)})")
    return settings


def is_redis_named(settings: Settings) -> bool:
    return "redis_url" in settings.model_fields_set or bool(settings.redis_sentinels)


def run_id_of(given: str) -> str:
    """The id of the run that somebody calls so; a note if it is another."""
    run_id = names.slug(given)
    if run_id != given:
        say(f"(the run id {names.printable(given)} is written {run_id})")
    return run_id


@contextmanager
def redis_of(settings: Settings) -> Iterator["Redis"]:
    with reachable(settings):
        redis = connect(settings)
        try:
            yield redis
        finally:
            redis.close()


@contextmanager
def run_of(settings: Settings, run_id: str | None) -> Iterator[Run]:
    """A run, the newest if none is named. What is damaged of it is said in words."""
    with redis_of(settings) as redis:
        run = Run(redis, run_id or newest(redis))
        with run.explained():
            yield run


def newest(redis: "Redis") -> str:
    ids = recent(redis)
    if not ids:
        raise RunError("there are no runs yet: `imece enqueue IN OUT` makes one")
    return ids[0]


def exit_for(last: Status) -> NoReturn:
    """How a run went, as an exit code."""
    raise typer.Exit(0 if last.state == "done" else FAILED)


@app.command(
    epilog="Examples:\n\n  imece enqueue /data/in /data/out --suffix .json\n\n"
    "  find . -name '*.csv' -print0 | imece enqueue . /data/out --from-file - -0"
)
def enqueue(
    source: In,
    target: Out,
    run_id: GivenRunId = None,
    buckets: Buckets = None,
    files_per_job: FilesPerJob = None,
    include: Include = None,
    exclude: Exclude = None,
    hidden: Hidden = False,
    from_file: FromFile = None,
    null: Null = False,
    suffix: Suffix = None,
    overwrite: Overwrite = False,
    retries: Retries = None,
    timeout: Timeout = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be enqueued, and do nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List a folder, group it into bucket jobs, put them into the queue."""
    settings = load()
    parameters = parameters_of(
        settings,
        source,
        target,
        suffix=suffix,
        overwrite=overwrite,
        from_file=from_file,
        include=include,
        exclude=exclude,
        hidden=hidden,
        buckets=buckets,
        files_per_job=files_per_job,
        retries=retries,
        timeout=timeout,
    )
    name = run_id_of(run_id) if run_id else made_run_id(source)
    from imece_producer.enqueue import Producer, plan

    if dry_run:
        made = plan(parameters, list_files(parameters, from_file, null))
        counts = {"files": made.files, "buckets": made.shape.buckets, "jobs": made.jobs}
        if as_json:
            put_json(counts)
        else:
            put(f"would enqueue {display.plan(made)}")
        return
    with redis_of(settings) as redis:
        producer = Producer(redis, settings, say)
        enqueued = producer.enqueue(
            name, parameters, lambda: list_files(parameters, from_file, null)
        )
        if as_json:
            put_json({"how": enqueued.how, **status.read(enqueued.run).summary()})
            return
        put(display.enqueued(enqueued))
        put(f"`imece status {name} --watch` shows how far it is")


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
                display.follow(lambda: status.read(run))
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
        last = wait_for(run) if as_json else display.follow(lambda: patient_read(run))
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
    """Start no new files; what is done stays. To go on: `imece resume RUN`, or enqueue it again."""
    settings = find_settings(run_id)
    with run_of(settings, run_id) as run:
        parameters = run.readable_parameters()
        run.cancel(settings.result_ttl)
        clear_output(run, parameters)
        if as_json:
            put_json({"run": run_id, "state": run.state()})
        else:
            put(f"run {run_id} is cancelled: files in hand are finished, no other is started")


def clear_output(run: Run, parameters: "Parameters | None") -> None:
    from imece.run import rescue

    if parameters is not None:
        rescue.clear_output(run, parameters.queue, parameters.output_path)


@app.command()
def delete(run_id: RunId) -> None:
    """Forget an ended run. Its outputs stay."""
    settings = find_settings(run_id)
    with run_of(settings, run_id) as run:
        parameters = run.readable_parameters()
        run.delete()
        clear_output(run, parameters)
    put(f"run {run_id} is deleted; its outputs are where they were")


@app.command(epilog="Examples:\n\n  imece scale 50\n\n  imece scale 50 --min 2 -n imece")
def scale(
    replicas: Annotated[int, typer.Argument(metavar="N", min=0, help="Most workers at a time.")],
    minimum: Annotated[
        int | None, typer.Option("--min", min=0, help="Fewest workers, even with nothing to do.")
    ] = None,
    run_id: Annotated[
        str | None, typer.Option("--run", metavar="TEXT", help="Which local run.", parser=given_run)
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Change the limit of workers while a run is on. No working one is stopped for it.

    Of the local run that is on, or that --run names. In a pod, with --context, --namespace or
    their settings, or with no local run on: of the cluster.
    """
    settings = load(kube_context=context, kube_namespace=namespace)
    from imece_producer.cluster import commands
    from imece_producer.local import run

    state = settings.state_dir.expanduser()
    named = kubeconfig.is_named(settings)
    if run_id is None and (named or not run.live(state)):
        if not named:
            say("(no local run is on: this is for a cluster)")
        commands.scale(settings, replicas, minimum, as_json)
        return
    if minimum is not None or context or namespace:
        raise UsageError("--min, --context and --namespace are for a cluster, not for a local run")
    name, url = run.only_live(state, run_id)
    with redis_of(run.at(settings, url)) as redis:
        before = run.set_limit(redis, replicas)
    if as_json:
        put_json({"run": name, "was": {"limit": before}, "is": {"limit": replicas}})
    else:
        put(f"run {name}: at most {replicas} replicas (it was {before})")


@app.command()
def pause(
    scale_in: Annotated[
        bool, typer.Option("--scale-in", help="Only let no idle worker go.")
    ] = False,
    context: Context = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Hold the cluster's workers: they finish the file in hand, give the rest back, and go.

    What waits in the queue stays there, until `imece resume`.
    """
    from imece_producer.cluster import commands

    commands.pause(load(kube_context=context, kube_namespace=namespace), scale_in, as_json)


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


@app.command(epilog="Examples:\n\n  imece doctor /data/in /data/out -n imece")
def doctor(
    source: Annotated[
        Path | None, typer.Argument(metavar="[IN]", help="[IMECE_INPUT]", show_default=False)
    ] = None,
    target: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="[IMECE_OUTPUT]", show_default=False)
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Look at everything a run needs, and say how to fix what is wrong.

    Redis, the cluster, KEDA, the volume claim, clocks, the processor, the directories. Exit code
    0: it works (there may be warnings); 2: settings; 3: a service.
    """
    from imece_producer import doctor as surgery

    made = []
    for check in surgery.checks(find_settings(None, context, namespace), source, target):
        made.append(check)
        if as_json:
            put_json(check.summary())
        else:
            put(display.check(check))
    raise typer.Exit(surgery.exit_code(made))


@app.command(
    epilog="Examples:\n\n  imece local in/ out/ --processor mymodule:convert --suffix .json\n\n"
    "  imece local in/ out/ --command 'convert {input} -resize 50% {output}' --max-replicas 8"
)
def local(
    source: In,
    target: Out,
    processor: Annotated[
        str | None, typer.Option(help="package.module:function, called with input and output path.")
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="A program in its place: 'tool --in {input} --out {output}'.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Most workers at a time. [default: one a core]")
    ] = None,
    run_id: GivenRunId = None,
    buckets: Buckets = None,
    files_per_job: FilesPerJob = None,
    include: Include = None,
    exclude: Exclude = None,
    hidden: Hidden = False,
    from_file: FromFile = None,
    null: Null = False,
    suffix: Suffix = None,
    overwrite: Overwrite = False,
    retries: Retries = None,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Process a folder on this machine, with an embedded server and as many workers as allowed.

    Ctrl-C hands back what is not done; the same call again goes on there.
    """
    from imece_producer.local import run as mode

    settings = load(processor=processor, command=command)
    if not settings.processor and not settings.command:
        raise UsageError("name what processes a file: --processor module:function or --command '…'")
    parameters = parameters_of(
        settings,
        source,
        target,
        suffix=suffix,
        overwrite=overwrite,
        from_file=from_file,
        include=include,
        exclude=exclude,
        hidden=hidden,
        buckets=buckets,
        files_per_job=files_per_job,
        retries=retries,
        timeout=timeout,
    )
    raise typer.Exit(
        mode.run_here(
            settings,
            run_id_of(run_id) if run_id else mode.derived_run_id(parameters, settings),
            parameters,
            lambda: list_files(parameters, from_file, null),
            max_replicas or os.cpu_count() or 1,
            as_json,
        )
    )


if __name__ == "__main__":
    main()
