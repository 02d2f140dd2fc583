"""`imece enqueue` and `imece local`, and the options they share."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imece import commandline, names
from imece.commandline import Include, Set, Suffix, given
from imece.errors import UsageError
from imece.files.current import Rules
from imece.run import status
from imece.run.job import MOST_FILES
from imece.run.manifest import MOST_BUCKETS
from imece.run.parameters import Parameters, set_of
from imece.settings import Settings, load
from imece_producer import display
from imece_producer.cli.app import (
    NO_PROCESSOR,
    Command,
    Json,
    Processor,
    Shell,
    Stdout,
    app,
    processing,
    redis_of,
)
from imece_producer.display import put, put_json, say
from imece_producer.request import list_files, made_run_id, parameters_of

if TYPE_CHECKING:
    from imece.files.listing import Listing


class Redo(StrEnum):
    code = "code"


class By(StrEnum):
    time = "time"
    content = "content"


@dataclass(frozen=True)
class Files:
    """What a command can be told of the files: which they are, how they are grouped and tried."""

    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="The input directory.",
            show_default=False,
            parser=lambda text: Path(given(text)),
        ),
    ]
    target: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="The output directory; - if the processor keeps its results elsewhere.",
            show_default=False,
            parser=given,
        ),
    ]
    buckets: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_BUCKETS, help="Buckets to group by. [default: chosen from the count]"
        ),
    ] = None
    files_per_job: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_FILES, help="Most files in a bucket job. [default: chosen]"),
    ] = None
    include: Include = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Do not take these. Repeatable.", parser=given),
    ] = None
    hidden: Annotated[
        bool, typer.Option("--hidden", help="Also take hidden files (never .imece-…).")
    ] = False
    from_file: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Take the names from this file (- is standard input), one a line.",
            parser=given,
        ),
    ] = None
    null: Annotated[bool, typer.Option("--null", "-0", help="Names in --from-file end in NUL.")] = (
        False
    )
    suffix: Suffix = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Process all files, also those that are current.")
    ] = False
    redo: Annotated[
        Redo | None,
        typer.Option(help="Also make outputs again that other code has made: code."),
    ] = None
    by: Annotated[
        By, typer.Option(help="What tells that a file has changed. content: needs --hash before.")
    ] = By.time
    hashes: Annotated[
        bool, typer.Option("--hash", help="Keep hashes of inputs and outputs in the ledger.")
    ] = False
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Take only the first files by name, so many: to try it."),
    ] = None
    require_files: Annotated[
        bool, typer.Option("--require-files", help="Fail (exit code 2) if there are no files.")
    ] = False
    retries: Annotated[
        int | None, typer.Option(min=0, max=100, help="Tries after the first. [IMECE_RETRIES]")
    ] = None
    max_failed: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|PERCENT",
            help="Hold the run if more files than that fail: 100 or 5%. [IMECE_MAX_FAILED]",
            parser=given,
        ),
    ] = None
    timeout: Annotated[
        float | None, typer.Option(help="Seconds a try of a file may take. [IMECE_FILE_TIMEOUT]")
    ] = None
    set: Set = None

    def parameters(self, settings: Settings, processor: str | None = None) -> Parameters:
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        for no_parameter in ("null", "limit", "require_files", "redo", "by"):
            del told[no_parameter]
        told["set"] = set_of(self.set or ())
        return parameters_of(
            settings, told.pop("source"), told.pop("target"), processor=processor, **told
        )

    @property
    def rules(self) -> Rules:
        return Rules(self.redo == Redo.code, self.by == By.content)

    def listing(self, parameters: Parameters) -> "Listing":
        return list_files(parameters, self.from_file, self.null, self.limit, self.require_files)


DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
GivenRunId = Annotated[
    str | None,
    typer.Option(
        "--run-id",
        metavar="TEXT",
        help="Name the run. The same id again attaches to it. [default: made]",
        parser=given,
    ),
]


def with_files(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `Files`; it gets them as its first argument."""
    about_files = inspect.signature(Files).parameters
    source, target, *others = about_files.values()
    own = list(inspect.signature(command).parameters.values())[1:]

    @wraps(command)
    def called(**told: Any) -> None:
        command(Files(**{name: told.pop(name) for name in about_files}), **told)

    together = [one.replace(kind=one.KEYWORD_ONLY) for one in (source, target, *own, *others)]
    called.__signature__ = inspect.Signature(together)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in together}
    return called


def run_id_of(told: str) -> str:
    """The id of the run that somebody calls so; a note if it is another."""
    run_id = names.slug(told)
    if run_id != told:
        say(f"(the run id {names.printable(told)} is written {run_id})")
    return run_id


@app.command(
    epilog=commandline.examples(
        "imece enqueue /data/in /data/out --suffix .json",
        "find . -name '*.csv' -print0 | imece enqueue . /data/out --from-file - -0",
    )
)
@with_files
def enqueue(
    files: Files,
    processor: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which of the workers' processors.", parser=given),
    ] = None,
    run_id: GivenRunId = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """List a folder, group its files, put them into the queue."""
    settings = load()
    parameters = files.parameters(settings, processor)
    name = run_id_of(run_id) if run_id else made_run_id(files.source)
    from imece_producer.enqueue import Producer

    if dry_run:
        show_plan(settings, files, parameters, as_json)
        return
    with redis_of(settings) as redis:
        producer = Producer(redis, settings, say)
        enqueued = producer.enqueue(
            name, parameters, lambda: files.listing(parameters), files.rules
        )
        if as_json:
            made = enqueued.plan.summary() if enqueued.plan is not None else None
            put_json({"how": enqueued.how, "plan": made, **status.read(enqueued.run).summary()})
            return
        put(display.enqueued(enqueued))
        if enqueued.plan is None or enqueued.plan.files or enqueued.plan.in_hand:
            put(f"`imece status {name} --watch` shows how far it is")


def show_plan(settings: Settings, files: Files, parameters: Parameters, as_json: bool) -> None:
    """For --dry-run."""
    from imece_producer import plan, versions

    version = versions.here(settings, parameters.processor)
    comparer = plan.comparer(parameters, version, files.rules)
    made = plan.without_run(parameters, files.listing(parameters), comparer)
    if as_json:
        put_json(made.summary())
    else:
        put(f"would process {display.plan(made)}" if made.files else display.plan(made))


@app.command(
    epilog=commandline.examples(
        "imece local in/ out/ --processor mymodule:convert --suffix .json",
        "imece local in/ out/ -j 8 --command 'convert {input} -resize 50% {output}'",
    )
)
@with_files
def local(
    files: Files,
    processor: Processor = None,
    command: Command = None,
    shell: Shell = None,
    stdout: Stdout = None,
    batch: Annotated[
        int | None,
        typer.Option(min=2, max=100, help="Files that a class gets at a time. [IMECE_BATCH]"),
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            "--max-replicas", "-j", min=1, help="Most workers at a time. [default: one a core]"
        ),
    ] = None,
    run_id: GivenRunId = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Process a folder on this machine.

    With an embedded server, and workers of its own.

    Ctrl-C gives back what is not done; the same call again continues there.
    """
    from imece_producer import processor as ours
    from imece_producer.local import run as mode

    settings = load(**processing(processor, command, shell, stdout), batch=batch)
    parameters = files.parameters(settings)
    if settings.command_stdout and parameters.output is None:
        raise UsageError("--stdout needs an output directory in place of -")
    if settings.processing:
        ours.check_set(settings, parameters)
    elif not dry_run:
        raise UsageError(NO_PROCESSOR)
    if dry_run:
        show_plan(settings, files, parameters, as_json)
        return
    code = mode.run_here(
        settings,
        run_id_of(run_id) if run_id else mode.derived_run_id(parameters, settings),
        parameters,
        lambda: files.listing(parameters),
        files.rules,
        max_replicas or os.cpu_count() or 1,
        as_json,
    )
    raise typer.Exit(code)
