"""`imece export`, `verify`: what the ledger of an output directory says."""

import csv
import os
import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TextIO

import typer

from imece import commandline, names
from imece.errors import RunError, UsageError
from imece.files import beneath
from imece_producer import outputs
from imece_producer.cli.app import Json, app, find, given_run, run_of
from imece_producer.display import count, put, put_json, say
from imece_producer.outputs import Fields, Verdict

MOST_SHOWN = 20

Where = Annotated[
    str,
    typer.Argument(
        metavar="OUT|RUN",
        help="An output directory, or the id of a run that wrote to one.",
        show_default=False,
        parser=commandline.given,
    ),
]


class Format(StrEnum):
    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


@app.command(
    epilog=commandline.examples(
        "imece export /data/out > files.csv",
        "imece export nightly --format parquet --to files.parquet",
    )
)
def export(
    where: Where,
    kind: Annotated[Format, typer.Option("--format", help="How.")] = Format.csv,
    to: Annotated[
        Path | None, typer.Option(help="The file to write. [default: standard output]")
    ] = None,
) -> None:
    """Write the ledger as a table: a row for each file.

    With a run's id, only the files that this run has tried last. docs/reference/ledger.md has the
    columns.
    """
    output, run = place_of(where)
    found, flaws = outputs.entries(output)
    tell(flaws)
    rows = outputs.table(found, run)
    if kind == Format.parquet:
        if to is None:
            raise UsageError("--format parquet: name a file, --to files.parquet")
        write_parquet(rows, to)
    elif to is None:
        write_text(rows, kind, sys.stdout)
    else:
        with to.open("w", encoding="utf-8", newline="") as stream:
            write_text(rows, kind, stream)


def write_text(rows: Iterable[Fields], kind: Format, stream: TextIO) -> None:
    if kind == Format.jsonl:
        for row in rows:
            stream.write(names.json_line(row) + "\n")
        return
    writer = csv.DictWriter(stream, outputs.COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def write_parquet(rows: Iterable[Fields], to: Path) -> None:
    try:
        from pyarrow import Table, parquet
    except ImportError:
        raise UsageError("--format parquet: needs pyarrow: pip install pyarrow") from None
    parquet.write_table(Table.from_pylist(list(rows)), to)


@app.command(epilog=commandline.examples("imece verify /data/out", "imece verify nightly --json"))
def verify(
    where: Where,
    delete_orphans: Annotated[
        bool,
        typer.Option("--delete-orphans", help="Remove outputs whose inputs are gone; asks first."),
    ] = False,
    by_hash: Annotated[
        bool, typer.Option("--hash", help="Read the outputs, too: those made with --hash.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Compare the outputs with the ledger.

    Which are missing; which have changed since they were made, by size and time; and which are
    orphaned: their inputs are gone.

    Exit codes: 0 all are there as they were made; 1 some are not.
    """
    output, _ = place_of(where)
    found, flaws = outputs.entries(output)
    tell(flaws)
    verdict = outputs.verify(output, found, by_hash)
    if as_json:
        put_json(summary(verdict))
    else:
        show(verdict)
    if delete_orphans and verdict.orphaned:
        files = count(len(verdict.orphaned), "output")
        if yes or typer.confirm(f"Remove {files} whose inputs are gone?", err=True):
            remove(output, verdict.orphaned)
            say(f"{files} removed")
    raise typer.Exit(0 if verdict.is_sound and not flaws else 1)


def place_of(where: str) -> tuple[Path, str | None]:
    """The output directory that is meant; and the run, if one is named."""
    if "/" in where or Path(where).is_dir():
        return Path(where), None
    run_id = given_run(where)
    place = find(run_id)
    if place.record is not None:
        parameters = place.record.status.parameters
    else:
        with run_of(place.settings, run_id) as run:
            if run.state() is None:
                raise run.missing()
            parameters = run.parameters()
    if parameters.output_path is None:
        raise RunError(f"run {run_id} makes no outputs, so it has no ledger")
    return place.settings.output or parameters.output_path, run_id


def tell(flaws: list[str]) -> None:
    for flaw in flaws:
        say(f"imece: a part of the ledger cannot be read: {flaw}")


def summary(verdict: Verdict) -> Fields:
    return {
        "sound": verdict.sound,
        "hashed": verdict.hashed,
        **{
            kind: [names.shown(name) for name in getattr(verdict, kind)]
            for kind in ("missing", "changed", "orphaned")
        },
        "versions": [
            {"outputs": files, **version.header()}
            for version, files in verdict.versions.most_common()
        ],
    }


def show(verdict: Verdict) -> None:
    put(f"{count(verdict.sound, 'output')} as made")
    if verdict.hashed:
        put(f"    {verdict.hashed:,} compared by their hashes")
    for version, files in verdict.versions.most_common() if len(verdict.versions) > 1 else ():
        image = f", image {version.image}" if version.image else ""
        put(f"    {files:,} by {version.processor}, code {version.code or 'not known'}{image}")
    for kind, text in (
        ("missing", "missing"),
        ("changed", "changed since they were made"),
        ("orphaned", "orphaned: their inputs are gone"),
    ):
        found = getattr(verdict, kind)
        if not found:
            continue
        put(f"{len(found):,} {text}")
        for name in found[:MOST_SHOWN]:
            put(f"    {names.shown(name)}")
        if len(found) > MOST_SHOWN:
            put(f"    … and {len(found) - MOST_SHOWN:,} more; all of them: --json")
    for source in sorted(verdict.unseen):
        say(f"(whether inputs are gone cannot be said: {source} is not seen from here)")


def remove(output: Path, orphaned: list[bytes]) -> None:
    """Below the output directory, and behind no link."""
    root = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    for name in orphaned:
        directory, _, last = name.rpartition(b"/")
        number = beneath.open_directory(root, directory)
        beneath.remove(last, number)
        os.close(number)
    os.close(root)
