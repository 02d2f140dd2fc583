"""The options and arguments of the commands, each in one place."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imece import names
from imece.commandline import Include, Suffix, given
from imece.run.cursor import MOST_FILES
from imece.run.manifest import MOST_BUCKETS
from imece.run.parameters import Parameters
from imece.settings import Settings
from imece_producer.parameters import list_files, parameters_of

if TYPE_CHECKING:
    from imece.files.listing import Listing


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
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Process files whose output is as new as they are, too.")
]
Retries = Annotated[
    int | None, typer.Option(min=0, max=100, help="Tries after the first. [IMECE_RETRIES]")
]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds a try of a file may take. [IMECE_FILE_TIMEOUT]")
]


@dataclass(frozen=True)
class Files:
    """What `imece enqueue` and `imece local` can be told of the files: which they are, how they are
    grouped and how they are tried."""

    source: In
    target: Out
    buckets: Buckets = None
    files_per_job: FilesPerJob = None
    include: Include = None
    exclude: Exclude = None
    hidden: Hidden = False
    from_file: FromFile = None
    null: Null = False
    suffix: Suffix = None
    overwrite: Overwrite = False
    retries: Retries = None
    timeout: Timeout = None

    def parameters(self, settings: Settings) -> Parameters:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        del given["null"]
        return parameters_of(settings, given.pop("source"), given.pop("target"), **given)

    def listing(self, parameters: Parameters) -> "Listing":
        return list_files(parameters, self.from_file, self.null)


def with_files(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `Files`; it gets them as its first argument."""
    about_files = inspect.signature(Files).parameters
    source, target, *others = about_files.values()
    own = list(inspect.signature(command).parameters.values())[1:]

    @wraps(command)
    def called(**given: Any) -> None:
        command(Files(**{name: given.pop(name) for name in about_files}), **given)

    together = [one.replace(kind=one.KEYWORD_ONLY) for one in (source, target, *own, *others)]
    called.__signature__ = inspect.Signature(together)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in together}
    return called
