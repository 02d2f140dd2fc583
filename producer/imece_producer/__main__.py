"""`imece`, and `python -m imece_producer`: errors for people become a line and an exit code.

Here is only what starts at once, so that Ctrl-C ends it quietly while the rest is still imported.
"""

import gc
import io
import os
import signal
import sys
from typing import NoReturn

from imece import names
from imece.errors import BY_SIGNAL, ImeceError


def main() -> NoReturn:
    before = signal.signal(signal.SIGINT, lambda number, frame: os._exit(BY_SIGNAL + number))
    from imece_producer.cli import app  # takes a third of a second
    from imece_producer.display import say

    signal.signal(signal.SIGINT, before)
    gc.freeze()  # what is imported stays: the collector need not look at it
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
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # nobody reads it any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


if __name__ == "__main__":
    main()
