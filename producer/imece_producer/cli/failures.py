"""`imece failures` and `imece reproduce`."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imece import commandline
from imece.errors import UsageError
from imece.run import causes
from imece.run.causes import Cause
from imece.run.store import Run
from imece.settings import load
from imece_producer import display
from imece_producer.cli.app import (
    NO_PROCESSOR,
    Command,
    Json,
    Processor,
    RunId,
    Shell,
    Stdout,
    app,
    find,
    processing,
    run_of,
)
from imece_producer.display import put, put_json, say

if TYPE_CHECKING:
    from imece_producer.local.record import Record


@app.command(
    epilog=commandline.examples(
        "imece failures nightly --by-cause",
        "imece failures nightly --cause 2 --full",
        "imece failures nightly --json | jq .file",
    )
)
def failures(
    run_id: RunId,
    full: Annotated[
        bool, typer.Option("--full", help="The whole reason, and what the processor printed.")
    ] = False,
    by_cause: Annotated[
        bool, typer.Option("--by-cause", help="What they have in common, and how many have it.")
    ] = False,
    cause: Annotated[
        int | None,
        typer.Option(
            help="Only the files that failed with this cause, by its number.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which files failed, how often they were tried, and why.

    With --by-cause it shows what they have in common. The number of a cause stays the same until
    the run is enqueued again.
    """
    if by_cause and cause is not None:
        raise UsageError("--by-cause shows all causes, --cause the files of one: take one of them")
    place = find(run_id)
    if place.record is not None:
        show_failures(place.record, run_id, by_cause, cause, full, as_json)
        return
    with run_of(place.settings, run_id) as run:
        if run.state() is None:
            raise run.missing()
        show_failures(run, run_id, by_cause, cause, full, as_json)


def show_failures(
    run: "Run | Record",
    run_id: str,
    by_cause: bool,
    cause: int | None,
    full: bool,
    as_json: bool,
) -> None:
    found = run.causes() if by_cause or cause is not None else []
    if by_cause and (ranked := causes.commonest(found)):
        show_causes(ranked, full, as_json)
        return
    failures = [] if by_cause else run.failures()
    if cause is not None:
        causes.check(run_id, found, cause)
        number_of = causes.numbers(found)
        failures = ((name, why) for name, why in failures if number_of(why) == cause)
    failed = sorted(failures, key=lambda item: item[0])
    if not failed:
        say("no file has failed")
    for name, failure in failed:
        if as_json:
            put_json(display.failure_entry(name, failure))
            continue
        put(display.failure(name, failure))
        if full:
            for title, text in (("reason", failure.reason), ("printed", failure.output)):
                for line in text.splitlines():
                    put(f"    {title}: {line}")


def show_causes(ranked: list[Cause], full: bool, as_json: bool) -> None:
    if as_json:
        for one in ranked:
            put_json(one.entry())
        return
    columns = shutil.get_terminal_size((80, 24)).columns
    head, *rows = display.table_of_causes(ranked, columns)
    put(head)
    for row, one in zip(rows, ranked, strict=True):
        put(row)
        if full and one.message:
            put(f"    first: {one.message}")


@app.command(
    epilog=commandline.examples(
        "imece reproduce nightly sub/a.csv --processor mymodule:convert --pdb",
        "imece reproduce nightly sub/a.csv --command 'convert {input} {output}'",
    )
)
def reproduce(
    run_id: RunId,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="The file, as `imece failures` names it, or its path.",
            show_default=False,
            parser=commandline.given,
        ),
    ],
    processor: Processor = None,
    command: Command = None,
    shell: Shell = None,
    stdout: Stdout = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A new directory for what the processor writes. [default: one in reproduce-RUN]",
            show_default=False,
        ),
    ] = None,
    with_debugger: Annotated[
        bool, typer.Option("--pdb", help="Start Python's debugger at an error; no time limit.")
    ] = False,
) -> None:
    """Process one file of a run here, in the foreground.

    With the run's parameters and limits. What the processor prints is shown, and an error with its
    traceback. The run and its output directory stay as they are.

    Exit codes: 0 done, 1 it failed, 2 wrong usage or settings.
    """
    from imece_producer import reproduce as foreground

    settings = load(**processing(processor, command, shell, stdout))
    place = find(run_id)
    if place.record is not None:
        parameters = place.record.status.parameters
    else:
        with run_of(place.settings, run_id) as run:
            parameters = run.parameters()
    if parameters.processor is not None and not (processor or command or shell):
        settings = load(processor=parameters.processor)
    if not settings.processing:
        raise UsageError(NO_PROCESSOR)
    code = foreground.process(settings, run_id, parameters, file, output, with_debugger)
    raise typer.Exit(code)
