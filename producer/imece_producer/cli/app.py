"""What all commands share: their common options, the settings they go by, the run they mean.

What one command needs for itself is imported in it: `imece status` has to answer at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from imece import names
from imece.connection import connect, reachable
from imece.errors import RunError
from imece.run.store import Run, recent
from imece.settings import Settings, load
from imece_producer.cluster import kubeconfig
from imece_producer.display import say

if TYPE_CHECKING:
    from redis import Redis


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn a folder of files into outputs, in parallel.\n\n"
    "Exit codes: 0 done, 1 some files failed, 2 wrong usage or settings, "
    "3 a service is out of reach.",
)


def given(text: str) -> str:
    """What somebody has written. It must not be empty, as an unset variable of a shell is."""
    if not text.strip():
        raise typer.BadParameter("it is empty")
    return text


def given_run(text: str) -> str:
    """The id of the run that somebody calls so."""
    return names.slug(given(text))


RunId = Annotated[
    str,
    typer.Argument(metavar="RUN", help="The run id.", show_default=False, parser=given_run),
]
Json = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")]
Context = Annotated[
    str | None,
    typer.Option(help="Which context of the kubeconfig. [IMECE_KUBE_CONTEXT]", show_default=False),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        help="The workers' namespace. [IMECE_KUBE_NAMESPACE]",
        show_default=False,
    ),
]


def find_settings(
    run_id: str | None = None, context: str | None = None, namespace: str | None = None
) -> Settings:
    """The settings; if a local run is meant, those of its server.

    A local run is meant if no Redis and no cluster is named, and it is on: under `run_id`; or, with
    no run named, as the only one. So a command that changes a run finds a local one by its id only.
    """
    settings = load(kube_context=context, kube_namespace=namespace)
    is_redis_named = "redis_url" in settings.model_fields_set or settings.redis_sentinels
    if is_redis_named or kubeconfig.is_named(settings):
        return settings
    from imece_producer.local import state

    there = state.live(settings.state_dir.expanduser())
    if run_id is None and len(there) == 1:
        run_id = next(iter(there))
    if run_id in there:
        say(f"(on the local run {run_id})")
        return state.at(settings, there[run_id])
    if run_id is None and there:
        say(f"(several local runs are on: name one: {', '.join(there)})")
    return settings


@contextmanager
def redis_of(settings: Settings) -> Iterator["Redis"]:
    with reachable(settings), connect(settings) as redis:
        yield redis


@contextmanager
def run_of(settings: Settings, run_id: str | None) -> Iterator[Run]:
    """A run, the newest if none is named. What is damaged of it is said in words."""
    with redis_of(settings) as redis:
        if run_id is None:
            if not (ids := recent(redis)):
                raise RunError("there are no runs yet: `imece enqueue IN OUT` makes one")
            run_id = ids[0]
        run = Run(redis, run_id)
        with run.explained():
            yield run
