"""What the command lines of producer and worker share. No other module of `imece` knows typer."""

import io
import os
import signal
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from imece import names
from imece.errors import BY_SIGNAL, ImeceError


def new(text: str) -> typer.Typer:
    """A command line without commands; `text` is its help."""
    return typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help=text,
    )


def examples(*calls: str) -> str:
    """The end of a command's help, to copy: click breaks no line anew after its mark \\b."""
    return "Examples:\n\n\b\n" + "\n".join(calls)


def given(text: str) -> str:
    """What somebody has written. It is not empty, as an unset variable of a shell is."""
    if not text.strip():
        raise typer.BadParameter("it is empty")
    return text


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"imece {version('imece')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Take only these: patterns as in .gitignore, '*.csv', '/2026/**'. Repeatable.",
        parser=given,
    ),
]
Suffix = Annotated[
    str | None, typer.Option(help="The outputs' ending in place of the inputs': .json")
]

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Give the processor a parameter: size=32, mode=fast. The value is JSON, or text. "
        "Repeatable.",
    ),
]


def run(app: typer.Typer, name: str, arguments: list[str] | None = None) -> NoReturn:
    """Runs a command line: what is meant for people becomes one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for paths that are not UTF-8
    try:
        app(arguments, prog_name=name)
    except ImeceError as error:
        print(f"{name}: {names.printable(str(error))}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(BY_SIGNAL + signal.SIGINT)
    finally:
        _flush()
    sys.exit(0)


def _flush() -> None:
    """Hands over what was printed, to whoever still reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
