"""What `imece enqueue` and `imece local` can be told, and what that asks of a run."""

import math
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imece import names
from imece.errors import UsageError
from imece.run.cursor import MOST_FILES
from imece.run.manifest import MOST_BUCKETS
from imece.run.store import Parameters, text_path
from imece.settings import Settings

if TYPE_CHECKING:
    from imece.files.listing import Listing


def given(text: str) -> str:
    """What somebody has written. It is not empty, as an unset variable of a shell is."""
    if not text.strip():
        raise typer.BadParameter("it is empty")
    return text


def given_path(text: str) -> Path:
    return Path(given(text))


def given_run(text: str) -> str:
    """The id of the run that somebody calls so."""
    return names.slug(given(text))


In = Annotated[
    Path,
    typer.Argument(
        metavar="IN", help="The input directory.", show_default=False, parser=given_path
    ),
]
Out = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help="The output directory. - if the processor keeps what it makes elsewhere.",
        show_default=False,
        parser=given,
    ),
]
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
GivenRunId = Annotated[
    str | None,
    typer.Option(
        "--run-id",
        metavar="TEXT",
        help="Name the run. The same id again attaches to it. [default: made]",
        parser=given,
    ),
]
Buckets = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_BUCKETS, help="Buckets to group by. [default: chosen from the count]"
    ),
]
FilesPerJob = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_FILES, help="Most files in a bucket job. [default: chosen]"),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Take only these, globs as in .gitignore: '*.csv', '/2026/**'. Repeatable.",
        parser=given,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Leave these out. Repeatable.", parser=given),
]
Hidden = Annotated[
    bool, typer.Option("--hidden", help="Take hidden files, too (never those named .imece-…).")
]
FromFile = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Take the names from this file (- is standard input), one a line.",
        parser=given,
    ),
]
Null = Annotated[bool, typer.Option("--null", "-0", help="Names in --from-file end in NUL.")]
Suffix = Annotated[
    str | None, typer.Option(help="The outputs' ending in place of the inputs': .json")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Process files whose output is as new as they are, too.")
]
Retries = Annotated[
    int | None, typer.Option(min=0, max=100, help="Tries after the first. [IMECE_RETRIES]")
]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds a try of a file may take. [IMECE_FILE_TIMEOUT]")
]


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
    timeout: float | None,
) -> Parameters:
    from imece.files.listing import check_directories

    output = None if target == "-" else Path(target).absolute()
    check_directories(source, output)
    if suffix is not None and ("/" in suffix or "\0" in suffix or not suffix.startswith(".")):
        raise UsageError(f"--suffix '{names.printable(suffix)}': takes an ending like .json")
    if timeout is not None and not 0 < timeout < math.inf:
        raise UsageError(f"--timeout {timeout}: takes seconds, more than 0")
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
        timeout=timeout or settings.file_timeout,
        queue=settings.queue,
    )
    if buckets is not None and buckets > MOST_BUCKETS:  # of Airflow's operator; here typer has it
        raise UsageError(f"buckets {buckets}: {MOST_BUCKETS} at the most")
    if flaw := parameters.flaw():  # what workers would refuse
        raise UsageError(names.printable(flaw))
    return parameters


def list_files(parameters: Parameters, from_file: str | None, null: bool) -> "Listing":
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
