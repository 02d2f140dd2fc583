"""What all commands share: the settings they go by, the run they mean, their exit codes.

What a command needs for itself is imported in it: `imece status` has to answer at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from imece import commandline, names
from imece.connection import connect, reachable
from imece.errors import RunError
from imece.run.status import Status
from imece.run.store import Run, recent
from imece.settings import Settings, load
from imece_producer.cluster import kubeconfig
from imece_producer.display import say

if TYPE_CHECKING:
    from redis import Redis


app = commandline.new(
    "Turn a folder of files into outputs, in parallel.\n\n"
    "Exit codes: 0 done, 1 some files failed, 2 wrong usage or settings, "
    "3 a service is out of reach."
)


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
    raise typer.Exit(last.exit_code)
