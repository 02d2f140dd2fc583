"""`imece-worker`, and `python -m imece_worker`, before anything that takes long: it listens to
signals from its first moments on.

The first process of a container would otherwise not hear them, and would take a job after it was
asked to stop. Any other process would end with what looks like a failure.
"""

import sys

from imece_worker import handover, stops


def main(arguments: list[str] | None = None) -> None:
    """See imece_worker/command.py. Does not come back.

    Args:
        arguments: given by tests, for a process that is not to start anew.
    """
    words = sys.argv[1:] if arguments is None else arguments
    # A static bucket that is not done must not look like one that is.
    is_static = any(word.partition("=")[0] == "--bucket-id" for word in words)
    stops.leave_with(None if is_static else 0)
    if arguments is None:
        handover.start_anew()
    from imece_worker import command

    command.main(words)


if __name__ == "__main__":
    main()
