"""What all commands share: their common options, the settings they go by, the run they mean.

What one command needs for itself is imported in it: `imece status` has to answer at once.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imece import commandline, names
from imece.connection import connect, reachable
from imece.errors import ImeceError, RunError, ServiceError
from imece.run.store import Run, recent
from imece.settings import PIPELINE, Settings, load, unknown, workers_of
from imece_producer.cluster import kubeconfig
from imece_producer.display import say

if TYPE_CHECKING:
    from redis import Redis

    from imece_producer.local.record import Record


app = commandline.new(
    "Turn a folder of files into outputs, in parallel.\n\n"
    "Exit codes: 0 done, 1 some files failed, 2 wrong usage or settings, "
    "3 a service is out of reach."
)


@app.callback()
def common(asked_for_version: commandline.Version = False) -> None:
    for sentence in unknown():
        say(f"(warning: {sentence})")


def given_run(text: str) -> str:
    """The id of the run that somebody calls so."""
    return names.slug(commandline.given(text))


def given_pipeline(text: str) -> str:
    """The name of a pipeline; another one would mean the first pipeline's workers."""
    if not re.fullmatch(PIPELINE, text):
        raise typer.BadParameter(f"{text!r} is not the name of a pipeline")
    return text


RunId = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="The run id; `imece runs` lists them.",
        show_default=False,
        parser=given_run,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")]
Processor = Annotated[
    str | None,
    typer.Option(
        help="package.module:function, called with input and output path; or a class; or a name."
    ),
]
Command = Annotated[
    str | None, typer.Option(help="A program in its place: 'tool --in {input} --out {output}'.")
]
Shell = Annotated[
    str | None,
    typer.Option(help="""A text for sh in its place: 'zcat "$1" | wc > "$2"'."""),
]
Stdout = Annotated[
    bool | None,
    typer.Option("--stdout", help="The output is what --command or --shell writes to stdout."),
]
NO_PROCESSOR = (
    "name what processes a file: --processor module:function, --command '…' or --shell '…'"
)


def processing(
    processor: str | None, command: str | None, shell: str | None, stdout: bool | None
) -> dict[str, Any]:
    """These options as settings."""
    return {
        "processor": processor,
        "command": command,
        "shell": shell,
        "command_stdout": stdout or None,
    }


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
Pipeline = Annotated[
    str | None,
    typer.Option(
        "--pipeline",
        metavar="NAME",
        help="Which pipeline of the namespace: its queue's name. [IMECE_QUEUE]",
        show_default=False,
        parser=given_pipeline,
    ),
]


def settings_for(context: str | None, namespace: str | None, pipeline: str | None) -> Settings:
    """The settings, for the cluster and the pipeline that options name."""
    named: dict[str, str] = {}
    if pipeline is not None:
        workers = workers_of(pipeline)
        named = {"queue": pipeline, "deployment": workers, "scaled_object": workers}
    return load(kube_context=context, kube_namespace=namespace, **named)


@dataclass(frozen=True)
class Place:
    """Where a run is.

    Attributes:
        settings: for its server; where it has none, as they are.
        local: the state directory of a local run.
        record: what such a run has left, if no call processes it now.
    """

    settings: Settings
    local: Path | None = None
    record: "Record | None" = None

    def last_words(self) -> "Record | None":
        """What a local run has left that was on a moment ago; None if it is on, or not local."""
        from imece_producer.local import record, state

        if self.local is None or state.is_locked(self.local):
            return None
        return record.read(self.local)


def find(
    run_id: str | None = None,
    context: str | None = None,
    namespace: str | None = None,
    pipeline: str | None = None,
    to_change: bool = False,
    only_on: bool = False,
) -> Place:
    """Where a run is; with no run named, the newest.

    Local runs come first, those that are on before the others; but where settings name a Redis or a
    cluster, that comes before them.

    Args:
        to_change: the run will be changed: so the server that is named must say that it is not
            there.
        only_on: of the local runs only those that are on.
    """
    settings = settings_for(context, namespace, pipeline)
    from imece_producer.local import record, state

    state_dir = settings.state_dir.expanduser()
    live = state.live(state_dir)
    at_server = Place(settings)
    if pipeline is not None or is_server_named(settings):
        if run_id is None or (run_id not in live and record.read(state_dir / run_id) is None):
            return at_server
        if _has(settings, run_id, if_away=to_change):
            return at_server
    if run_id is None and live:
        run_id = max(live, key=lambda one: (state_dir / one / "server.url").stat().st_mtime)
    if run_id in live:
        say(f"(on the local run {run_id})")
        return Place(state.at(settings, live[run_id]), state_dir / run_id)
    if run_id is not None:
        left = record.read(state_dir / run_id)
    elif only_on or _has(settings):
        return at_server
    else:
        ended = record.ended(state_dir)
        left = max(ended, key=lambda one: one.status.created) if ended else None
    if left is None:
        if not is_server_named(settings):
            say(f"(there is no local run{f' {run_id}' if run_id else ''}: this looks in Redis)")
        return at_server
    say(f"(on the local run {left.status.id}, which is not on)")
    return Place(settings, left.directory, left)


def is_server_named(settings: Settings) -> bool:
    """Whether settings say where Redis is, or a cluster."""
    return settings.names_redis or kubeconfig.is_named(settings)


def _has(settings: Settings, run_id: str | None = None, if_away: bool = False) -> bool:
    """Whether the server that settings name has this run, or any; `if_away` if nobody can say."""
    try:
        with redis_of(settings) as redis:
            if run_id is None:
                return bool(recent(redis, settings.queue))
            return Run(redis, settings.queue, run_id).state() is not None
    except ServiceError:
        return if_away
    except ImeceError:
        return False


@contextmanager
def redis_of(settings: Settings) -> Iterator["Redis"]:
    with reachable(settings), connect(settings) as redis:
        yield redis


@contextmanager
def run_of(settings: Settings, run_id: str | None) -> Iterator[Run]:
    """A run, the newest if none is named. What is damaged of it is said in words."""
    with redis_of(settings) as redis:
        if run_id is None:
            if not (ids := recent(redis, settings.queue)):
                raise RunError("there are no runs yet: `imece enqueue IN OUT` makes one")
            run_id = ids[0]
        run = Run(redis, settings.queue, run_id)
        with run.explained():
            yield run
