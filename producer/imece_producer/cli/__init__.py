"""The command line `imece`, a module for each group of commands."""

import gc
from typing import NoReturn

from imece import commandline

from imece_producer.cli import enqueue, runs, cluster, doctor, local  # isort: skip
from imece_producer.cli.app import app

__all__ = ["app", "cluster", "doctor", "enqueue", "local", "main", "runs"]


def main() -> NoReturn:
    """The entry point."""
    gc.freeze()  # what is imported stays: no need to look at it each time memory is tidied
    commandline.run(app, "imece")
