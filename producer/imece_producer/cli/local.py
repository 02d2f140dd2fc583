"""`imece local`."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from imece.errors import UsageError
from imece.settings import load
from imece_producer.cli.app import app, run_id_of
from imece_producer.cli.options import (
    Files,
    GivenRunId,
    Json,
    with_files,
)

if TYPE_CHECKING:
    pass


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
        int | None, typer.Option(min=1, help="Most workers at a time. [default: one a core]")
    ] = None,
    run_id: GivenRunId = None,
    as_json: Json = False,
) -> None:
    """Process a folder on this machine, with an embedded server and as many workers as allowed.

    Ctrl-C hands back what is not done; the same call again goes on there.
    """
    from imece_producer.local import run as mode

    settings = load(processor=processor, command=command)
    if not settings.processor and not settings.command:
        raise UsageError("name what processes a file: --processor module:function or --command '…'")
    parameters = files.parameters(settings)
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
