"""`imece scale`, `pause` and `doctor`: what concerns the workers and what they need."""

from pathlib import Path
from typing import Annotated

import typer

from imece import commandline
from imece.errors import UsageError
from imece_producer.cli.app import (
    Context,
    Json,
    Namespace,
    Pipeline,
    app,
    find,
    given_run,
    redis_of,
    settings_for,
)
from imece_producer.cluster import kubeconfig
from imece_producer.display import put, put_json, say


@app.command(epilog=commandline.examples("imece scale 50", "imece scale 50 --min 2 -n imece"))
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
    pipeline: Pipeline = None,
    as_json: Json = False,
) -> None:
    """Change the limit of workers while a run is on. A worker that has a file finishes it.

    It changes the limit of the local run that is on, or that --run names. In a pod, with
    --context, --namespace or their settings, with --pipeline, or with no local run on, it is the
    cluster's.
    """
    settings = settings_for(context, namespace, pipeline)
    from imece_producer.cluster import commands
    from imece_producer.local.scaling import set_limit
    from imece_producer.local.state import at, live, only_live

    state = settings.state_dir.expanduser()
    named = pipeline is not None or kubeconfig.is_named(settings)
    if run_id is None and (named or not live(state)):
        if not named:
            say("(no local run is on: this is for a cluster)")
        commands.scale(settings, replicas, minimum, as_json)
        return
    if minimum is not None or context or namespace or pipeline:
        raise UsageError(
            "--min, --context, --namespace and --pipeline are for a cluster, not for a local run"
        )
    name, url = only_live(state, run_id)
    with redis_of(at(settings, url)) as redis:
        before = set_limit(redis, replicas)
    if as_json:
        put_json({"run": name, "was": {"limit": before}, "is": {"limit": replicas}})
    else:
        put(f"run {name}: at most {replicas} replicas (it was {before})")


@app.command()
def pause(
    scale_in: Annotated[
        bool, typer.Option("--scale-in", help="Only keep idle workers from being stopped.")
    ] = False,
    context: Context = None,
    namespace: Namespace = None,
    pipeline: Pipeline = None,
    as_json: Json = False,
) -> None:
    """Stop the workers of a cluster for a time.

    They finish the current file and give the rest back.

    The jobs in the queue stay there until `imece resume`.
    """
    from imece_producer.cluster import commands

    commands.pause(settings_for(context, namespace, pipeline), scale_in, as_json)


@app.command(epilog=commandline.examples("imece doctor /data/in /data/out -n imece"))
def doctor(
    source: Annotated[
        Path | None, typer.Argument(metavar="[IN]", help="[IMECE_INPUT]", show_default=False)
    ] = None,
    target: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="[IMECE_OUTPUT]", show_default=False)
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
    pipeline: Pipeline = None,
    as_json: Json = False,
) -> None:
    """Check all that a run needs, and say what to do.

    Redis, the cluster, KEDA, the volume claim, clocks, the processor, the directories. Exit code
    0: it works (there may be warnings); 2: settings; 3: a service.
    """
    from imece_producer.doctor import report

    checks = []
    place = find(None, context, namespace, pipeline, only_on=True)
    for check in report.checks(place.settings, source, target):
        checks.append(check)
        if as_json:
            put_json(check.summary())
        else:
            put(check.line())
    raise typer.Exit(report.exit_code(checks))
