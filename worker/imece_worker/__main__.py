"""`imece-worker`, and `python -m imece_worker`, before anything that takes long: it listens to
signals from its first moments on.

The first process of a container would otherwise not hear them, and would take a job after it was
asked to stop. Any other process would end with what looks like a failure.
"""

import os
import sys
from typing import NoReturn

from imece_worker import handover, stops


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line in imece_worker/command.py.

    Args:
        arguments: given by tests, for a process that is not to start anew.
    """
    words = sys.argv[1:] if arguments is None else arguments
    # A static bucket that is not done must not look like one that is.
    is_static = any(word.partition("=")[0] == "--bucket-id" for word in words)
    stops.leave_with(None if is_static else 0)
    _open_standard_files()
    if arguments is None:
        handover.start_anew()
    from imece import commandline
    from imece_worker.command import app

    commandline.run(app, "imece-worker", words)


def _open_standard_files() -> None:
    """Opens those among 0, 1 and 2 that whoever started us has closed. Otherwise sockets and files
    get these numbers, and other processes take them for where they print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 - open for as long as the process
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115


if __name__ == "__main__":
    main()
