"""`imece redo`: have outputs made again."""

import shlex
from typing import Annotated

import typer

from imece import commandline, names
from imece.commandline import given
from imece.errors import UsageError
from imece.files.listing import Listing
from imece.files.rows import Entry
from imece.settings import Settings, load
from imece.version import Version
from imece_producer import outputs
from imece_producer import redo as marks
from imece_producer.cli.app import (
    Command,
    Json,
    Processor,
    Shell,
    Stdout,
    app,
    find,
    processing,
    run_of,
)
from imece_producer.cli.ledger import Where, place_of, tell
from imece_producer.display import count, enqueued, put, put_json, say


@app.command(
    epilog=commandline.examples(
        "imece redo /data/out --glob '2026-11/*.csv'",
        "imece redo nightly --made-by 3f2a",
        "imece redo out --stale --processor mymodule:convert",
    )
)
def redo(
    where: Where,
    made_by: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Made by this code (its fingerprint, or the beginning), processor or image. "
            "`imece verify` lists them.",
            parser=given,
        ),
    ] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Made by another version than there is now.")
    ] = False,
    glob: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Inputs of such names. Repeatable.", parser=given),
    ] = None,
    processor: Processor = None,
    command: Command = None,
    shell: Shell = None,
    stdout: Stdout = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which, and change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Have outputs made again, by what the ledger says of them.

    Outputs have to meet all conditions that are given. They stay as they are until their files are
    processed. With the id of a run on a server, a next round of it begins with these files.
    Otherwise the next call of `imece enqueue` or `imece local` makes them again.
    """
    if not (made_by or stale or glob):
        raise UsageError("which outputs? --made-by, --stale or --glob")
    output, run_id = place_of(where)
    now = None
    if stale:
        now = version_now(run_id, load(**processing(processor, command, shell, stdout)))
    found, flaws = outputs.entries(output)
    tell(flaws)
    chosen = marks.chosen(found.values(), made_by, now, glob or [])
    if not dry_run:
        marks.take_back(output, chosen)
    if as_json:
        put_json({"redo": [names.shown(entry.name) for entry in chosen]})
    else:
        put(f"{count(len(chosen), 'output')} {'would' if dry_run else 'will'} be made again")
    if chosen and not dry_run:
        begin(run_id, chosen, as_json)


def version_now(run_id: str | None, settings: Settings) -> Version:
    """That of the processor that is named here; else, of the workers of the run."""
    from imece_producer import versions

    now = versions.here(settings)
    if now is None and run_id is not None and (place := find(run_id)).record is None:
        with run_of(place.settings, run_id) as run:
            now = versions.known(run.redis, settings, run.parameters().processor)
    if now is None:
        raise UsageError("--stale: name what processes a file now: --processor or --command")
    return now


def begin(run_id: str | None, chosen: list[Entry], as_json: bool) -> None:
    """The next round of a run on a server; else how to begin one."""
    from imece_producer.enqueue import Producer

    place = find(run_id) if run_id is not None else None
    if run_id is None or place is None:
        say("the next call of `imece enqueue` or `imece local` with this directory does it")
    elif place.record is not None:
        say(f"to begin, call the same again:\n  {shlex.join(['imece', *place.record.call])}")
    else:
        with run_of(place.settings, run_id) as run:
            listed = Listing([entry.name for entry in chosen])
            how = Producer(run.redis, place.settings, say).enqueue(
                run_id, run.parameters(), lambda: listed
            )
            if not as_json:
                put(enqueued(how))
