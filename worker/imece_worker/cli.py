"""`imece-worker`, before anything that takes long: it listens to signals from its first moments on.

The first process of a container is else deaf to them, and would take a job after it was asked to
stop; any other would end with what looks like a failure.
"""

from imece_worker import handover, stops


def main(arguments: list[str] | None = None) -> int:
    """See imece_worker/command.py."""
    stops.leave_with(0)
    if arguments is None:
        handover.start_anew()
    from imece_worker import command  # takes a third of a second

    return command.main(arguments)
