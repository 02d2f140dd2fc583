"""When a file that failed is tried again: one rule for all workers, on the server's clock."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from imece.run.job import PendingRetry
from imece.run.parameters import Parameters

LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class ServerClock:
    """The server's clock, continued by this machine's monotonic one, which all its processes share.
    The machine's time of day has no effect on it.

    Attributes:
        ahead: by how many seconds the server's clock is ahead of the monotonic one.
    """

    ahead: float

    @classmethod
    def at(cls, now: float) -> "ServerClock":
        """The one that shows this time now, epoch seconds."""
        return cls(now - time.monotonic())

    def now(self) -> float:
        return time.monotonic() + self.ahead


def pause(tries: int, parameters: Parameters) -> float:
    """Seconds a file waits after so many failed tries."""
    doublings = min(tries - 1, 1000)  # a float holds no more
    return float(min(parameters.retry_pause * 2.0**doublings, LONGEST_PAUSE))


def next_try(
    before: PendingRetry | None, error: int, parameters: Parameters, clock: ServerClock
) -> tuple[int, PendingRetry | None]:
    """How often a file has been tried, now that a try of it has failed, and what it is owed.

    Args:
        before: what it was owed until then.
        error: see `PendingRetry`.

    Returns:
        None in place of the second: quarantine.
    """
    tries = before.tries + 1 if before is not None else 1
    in_vain = before is not None and error != 0 and before.error == error
    if tries > parameters.retries or (in_vain and not parameters.all_tries):
        return tries, None
    return tries, PendingRetry(tries, clock.now() + pause(tries, parameters), error)


def taken_over(
    retries: Mapping[int, PendingRetry], parameters: Parameters, clock: ServerClock
) -> dict[int, PendingRetry]:
    """The retries of another worker. None waits longer than its pause: the other clock may have
    been wrong, or the server's may have been set back since."""
    now = clock.now()
    return {
        index: replace(entry, due=min(entry.due, now + pause(entry.tries, parameters)))
        for index, entry in retries.items()
    }
