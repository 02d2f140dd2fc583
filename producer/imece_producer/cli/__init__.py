"""The command line `imece`, a module for each group of commands."""

import gc
import io
import os
import signal
import sys
from typing import NoReturn

from imece import names
from imece.errors import BY_SIGNAL, ImeceError

from imece_producer.cli import enqueue, runs, cluster, doctor, local  # isort: skip
from imece_producer.cli.app import app
from imece_producer.display import say

__all__ = ["app", "cluster", "doctor", "enqueue", "local", "main", "runs"]


def main() -> NoReturn:
    """The entry point: what is meant for people becomes one line and an exit code."""
    gc.freeze()  # what is imported stays: no need to look at it each time memory is tidied
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for paths that are not UTF-8
    try:
        app(prog_name="imece")
    except ImeceError as error:
        say(f"imece: {names.printable(str(error))}")
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
