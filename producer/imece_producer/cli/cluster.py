"""`imece scale` and `imece pause`."""

from typing import TYPE_CHECKING, Annotated

import typer

from imece.errors import UsageError
from imece.settings import load
from imece_producer.cli.app import app, redis_of
from imece_producer.cli.options import (
    Context,
    Json,
    Namespace,
    given_run,
)
from imece_producer.cluster import kubeconfig
from imece_producer.display import put, put_json, say

if TYPE_CHECKING:
    pass


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
    from imece_producer.local.replicas import set_limit
    from imece_producer.local.state import at, live, only_live

    state = settings.state_dir.expanduser()
    named = kubeconfig.is_named(settings)
    if run_id is None and (named or not live(state)):
        if not named:
            say("(no local run is on: this is for a cluster)")
        commands.scale(settings, replicas, minimum, as_json)
        return
    if minimum is not None or context or namespace:
        raise UsageError("--min, --context and --namespace are for a cluster, not for a local run")
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
