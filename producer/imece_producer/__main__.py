"""`imece`, and `python -m imece_producer`.

Here is only what starts at once, so that Ctrl-C ends it quietly while the rest is still imported.
"""

import gc
import os
import signal
from typing import NoReturn

from imece.errors import BY_SIGNAL


def main() -> NoReturn:
    before = signal.signal(signal.SIGINT, lambda number, frame: os._exit(BY_SIGNAL + number))
    from imece import commandline
    from imece_producer.cli import app  # takes a third of a second

    signal.signal(signal.SIGINT, before)
    gc.freeze()  # what is imported stays: the collector need not look at it
    commandline.run(app, "imece")


if __name__ == "__main__":
    main()
