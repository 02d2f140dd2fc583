"""When a file that failed is tried again: one rule for all workers, on the server's clock."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

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


def next_try(tries: int, parameters: Parameters, clock: ServerClock) -> PendingRetry | None:
    """What a file is owed after `tries` failed tries; None: quarantine."""
    if tries > parameters.retries:
        return None
    return PendingRetry(tries, clock.now() + pause(tries, parameters))


def taken_over(
    retries: Mapping[int, PendingRetry], parameters: Parameters, clock: ServerClock
) -> dict[int, PendingRetry]:
    """The retries of another worker. None waits longer than its pause: the other clock may have
    been wrong, or the server's may have been set back since."""
    now = clock.now()
    return {
        index: PendingRetry(entry.tries, min(entry.due, now + pause(entry.tries, parameters)))
        for index, entry in retries.items()
    }
