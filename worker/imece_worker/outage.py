"""Whether Redis is away, and when to ask it again."""

import logging
import random
import time

from imece_worker import log

FIRST, LONGEST = 0.25, 5.0
"""Seconds: the first pause between two tries, and the longest; each is at most."""


class Backoff:
    """Pauses between tries that fail: twice as long each time, and of random length ("full
    jitter"), so that many workers do not come back all at once."""

    def __init__(self, first: float = FIRST, longest: float = LONGEST) -> None:
        self._first, self._longest = first, longest
        self._bound = first

    def pause(self) -> float:
        """Seconds to wait before the next try."""
        pause = random.uniform(0, self._bound)  # noqa: S311 - nothing to guess
        self._bound = min(2 * self._bound, self._longest)
        return pause

    def reset(self) -> None:
        """A try has succeeded."""
        self._bound = self._first


class Outage:
    """What one worker knows of Redis being away; its log has one line for each end of it.

    Args:
        lease: seconds. When Redis is back, others wait as long before they take a worker for dead
            that they have not heard of; so it must ask well before.
    """

    def __init__(self, lease: float) -> None:
        self._backoff = Backoff(longest=min(LONGEST, lease / 3))
        self._since: float | None = None
        self.ask_at = float("-inf")
        """When Redis may be asked again, on the monotonic clock."""

    def noted(self, error: Exception) -> None:
        """Redis has not answered."""
        now = time.monotonic()
        self.ask_at = now + self._backoff.pause()
        if self._since is None:
            self._since = now
            log.event("redis out of reach", logging.WARNING, error=str(error))

    def over(self) -> None:
        """Redis has answered."""
        if self._since is None:
            return
        log.event("redis is back", seconds=time.monotonic() - self._since)
        self._since = None
        self.ask_at = float("-inf")
        self._backoff.reset()

    def left(self) -> float:
        """Seconds to wait before Redis is asked again."""
        return max(0.0, self.ask_at - time.monotonic())

    def lasted(self) -> float:
        """Seconds since it began; 0 if there is none."""
        return 0.0 if self._since is None else time.monotonic() - self._since
