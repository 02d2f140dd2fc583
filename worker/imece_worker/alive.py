"""`python -P -m imece_worker.alive [SECONDS]`: whether the worker of this container lives.

For a liveness probe: exit code 0 if the heartbeat file is no older than that, otherwise 1 and the
reason. Every pod starts it again and again. So it imports very little, and reads its one setting
from the environment alone.
"""

import os
import sys
import time

OLDEST = 60.0
"""Seconds. A worker touches the file every second; every few if Redis does not answer; if no name
server does either, it may take half a minute."""


def main(arguments: list[str]) -> int:
    """Exit codes: 0 it lives, 1 it does not."""
    path = os.environ.get("IMECE_HEARTBEAT_FILE")
    if not path:
        return _say("IMECE_HEARTBEAT_FILE is not set")
    oldest = float(arguments[0]) if arguments else OLDEST
    try:
        age = time.time() - os.stat(path).st_mtime
    except OSError as error:
        return _say(f"{path}: {error.strerror}")
    return 0 if age <= oldest else _say(f"no sign of life for {age:.0f} s")


def _say(flaw: str) -> int:
    print(flaw)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
