"""What is asked of a run: from options and settings to its parameters, its files and its id."""

import math
import re
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imece import names
from imece.errors import ListingError, UsageError
from imece.run.manifest import MOST_BUCKETS
from imece.run.parameters import PROCESSOR_NAME, Parameters, max_failed_flaw, text_path
from imece.settings import Settings

if TYPE_CHECKING:
    from imece.files.listing import Listing


def parameters_of(
    settings: Settings,
    source: Path,
    target: str,
    *,
    suffix: str | None,
    overwrite: bool,
    from_file: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
    hidden: bool,
    buckets: int | None,
    files_per_job: int | None,
    retries: int | None,
    max_failed: str | None,
    timeout: float | None,
    hashes: bool = False,
    set: Mapping[str, Any] | None = None,
    processor: str | None = None,
) -> Parameters:
    from imece.files.listing import check_directories

    output = None if target == "-" else Path(target).absolute()
    check_directories(source, output)
    if suffix is not None and ("/" in suffix or "\0" in suffix or not suffix.startswith(".")):
        raise UsageError(f"--suffix '{names.printable(suffix)}': takes an ending like .json")
    if timeout is not None and not 0 < timeout < math.inf:
        raise UsageError(f"--timeout {timeout}: takes seconds, more than 0")
    if processor is not None and not re.fullmatch(PROCESSOR_NAME, processor):
        raise UsageError(
            f"--processor {names.printable(processor)}: takes the name of a processor that the "
            "workers have by IMECE_PROCESSORS, or by an entry point; the queue names no code"
        )
    if max_failed is not None and (flaw := max_failed_flaw(max_failed)):
        raise UsageError(f"--max-failed {flaw}")
    parameters = Parameters(
        input=text_path(source.absolute()),
        output=text_path(output) if output is not None else None,
        suffix=suffix,
        overwrite=overwrite,
        source="list" if from_file else "directory",
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        hidden=hidden,
        buckets=buckets,
        files_per_job=files_per_job or settings.files_per_job,
        retries=settings.retries if retries is None else retries,
        retry_pause=settings.retry_pause,
        max_failed=max_failed or settings.max_failed,
        all_tries=retries is not None or settings.wants_all_tries,
        timeout=timeout or settings.file_timeout,
        hashes=hashes and output is not None,
        set=dict(set or {}),
        processor=processor,
    )
    if buckets is not None and buckets > MOST_BUCKETS:  # of Airflow's operator; here typer has it
        raise UsageError(f"buckets {buckets}: at most {MOST_BUCKETS}")
    if flaw := parameters.flaw():  # what workers would refuse
        raise UsageError(names.printable(flaw))
    return parameters


def list_files(
    parameters: Parameters,
    from_file: str | None = None,
    null: bool = False,
    limit: int | None = None,
    require_files: bool = False,
) -> "Listing":
    """The files of a run.

    Args:
        null: the names in `from_file` end in NUL.
        limit: take the first files by name only, so many.

    Raises:
        ListingError: they cannot be listed; with `require_files`, there are none.
    """
    found = _listed(parameters, from_file, null)
    if limit is not None:
        found.limit(limit)
    if require_files and not found.files:
        raise ListingError(found.nothing(parameters.input_path))
    return found


def _listed(parameters: Parameters, from_file: str | None, null: bool) -> "Listing":
    from imece.files import listing

    root = parameters.input_path
    if from_file is None:
        return listing.walk(root, parameters.include, parameters.exclude, parameters.hidden)
    separator = b"\0" if null else b"\n"
    if from_file == "-":
        return listing.read_names(sys.stdin.buffer, root, separator)
    try:
        with Path(from_file).open("rb") as stream:
            return listing.read_names(stream, root, separator)
    except OSError as error:
        raise UsageError(f"--from-file {from_file}: {error.strerror}") from None


def made_run_id(source: Path) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = names.plain(source.resolve().name[:30])
    return names.slug(f"{name}-{stamp}-{secrets.token_hex(2)}".lstrip("-"))
