"""`imece local`."""

import os
from typing import Annotated

import typer

from imece.errors import UsageError
from imece.settings import load
from imece_producer.cli.app import app, run_id_of
from imece_producer.cli.enqueue import show_plan
from imece_producer.cli.options import (
    DryRun,
    Files,
    GivenRunId,
    Json,
    with_files,
)


@app.command(
    epilog="Examples:\n\n  imece local in/ out/ --processor mymodule:convert --suffix .json\n\n"
    "  imece local in/ out/ --command 'convert {input} -resize 50% {output}' --max-replicas 8"
)
@with_files
def local(
    files: Files,
    processor: Annotated[
        str | None, typer.Option(help="package.module:function, called with input and output path.")
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="A program in its place: 'tool --in {input} --out {output}'.")
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
    """Process a folder on this machine, with an embedded server and as many workers as allowed.

    Ctrl-C hands back what is not done; the same call again goes on there.
    """
    from imece_producer.local import run as mode

    settings = load(processor=processor, command=command)
    parameters = files.parameters(settings)
    if dry_run:
        show_plan(files, parameters, as_json)
        return
    if not settings.processor and not settings.command:
        raise UsageError("name what processes a file: --processor module:function or --command '…'")
    raise typer.Exit(
        mode.run_here(
            settings,
            run_id_of(run_id) if run_id else mode.derived_run_id(parameters, settings),
            parameters,
            lambda: files.listing(parameters),
            max_replicas or os.cpu_count() or 1,
            as_json,
        )
    )
