"""What all executions of one worker share: its signs of life, and what it knows of Redis."""

import logging
import random
import time
from collections.abc import Callable

from imece.errors import SettingsError
from imece.processing import named
from imece.run.claim import Trouble
from imece.settings import Settings, unknown
from imece_worker import log
from imece_worker.interpreter import Interpreter
from imece_worker.statistics import WorkerStatistics
from imece_worker.stops import Wakeup
from imece_worker.storage import CAN_SYNC
from imece_worker.supervisor import Supervisor

FIRST, LONGEST = 0.25, 5.0
"""Seconds: the longest first pause between two tries, and the longest of all."""


class Backoff:
    """Pauses between tries that fail. Their limit doubles each time. Their length is random up to
    it ("full jitter"), so that many workers do not come back all at once."""

    def __init__(self, longest: float = LONGEST) -> None:
        self._longest = longest
        self._bound = FIRST

    def pause(self) -> float:
        """Seconds to wait before the next try."""
        pause = random.uniform(0, self._bound)  # noqa: S311 - nothing to guess
        self._bound = min(2 * self._bound, self._longest)
        return pause

    def reset(self) -> None:
        """A try has succeeded."""
        self._bound = FIRST


class Outage:
    """What one worker knows of Redis being away, or spoilt for all runs. Its log has one line for
    the beginning, and one for the end.

    Args:
        lease: seconds. When Redis is back, others wait this long before they take a silent worker
            for dead. So a worker asks well before that.
    """

    def __init__(self, lease: float) -> None:
        self._backoff = Backoff(min(LONGEST, lease / 3))
        self._since: float | None = None
        self.told = ""
        """What the log has said of it last."""
        self.ask_at = float("-inf")
        """When Redis may be asked again, on the monotonic clock."""

    def noted(self, trouble: Trouble) -> None:
        """Redis has not answered, or has refused."""
        now = time.monotonic()
        self.ask_at = now + self._backoff.pause()
        if self._since is None:
            self._since = now
            self.tell(trouble)

    def tell(self, trouble: Trouble) -> None:
        """Logs what is wrong, once."""
        if trouble.error != self.told:
            self.told = trouble.error
            log.event(trouble.event, logging.WARNING, error=trouble.error)

    def over(self) -> None:
        """Redis has answered."""
        if self._since is None:
            return
        log.event("redis is back", seconds=time.monotonic() - self._since)
        self._since, self.told = None, ""
        self.ask_at = float("-inf")
        self._backoff.reset()

    def left(self) -> float:
        """Seconds to wait before Redis is asked again."""
        return max(0.0, self.ask_at - time.monotonic())

    def lasted(self) -> float:
        """Seconds since it began; 0 if there is none."""
        return 0.0 if self._since is None else time.monotonic() - self._since


class WorkerContext:
    """What one worker has for all its executions.

    Args:
        interpreter: one that is ready.
        name: the worker's.
        alive: shows that the worker lives; called at every sign of life.

    Attributes:
        statistics: told of what Redis has recorded.
        outage: what the worker knows of Redis being away.
    """

    def __init__(
        self,
        settings: Settings,
        interpreter: Interpreter,
        statistics: WorkerStatistics,
        name: str,
        alive: Callable[[], None],
    ) -> None:
        self.settings, self.statistics = settings, statistics
        self.name, self.alive = name, alive
        self.wakeup = Wakeup()
        self.supervisor = Supervisor(interpreter)
        self.outage = Outage(settings.lease)

    def lacks(self, processor: str | None) -> str:
        """Why this worker leaves a run to others that asks for this processor. The run shows it if
        no other worker has a job of it."""
        known = ", ".join(sorted(named(self.settings.processors))) or "none by a name"
        if processor is None:
            return f"the run names no processor, and worker {self.name} has only {known}"
        return f"no worker has the processor {processor}: worker {self.name} has {known}"


def prepare(settings: Settings) -> None:
    """What every worker does first: sets up its log, and tries the heartbeat file.

    The file is not left there. It appears with the first look at the queue: it tells a startup
    probe that the processor has been imported.

    Raises:
        SettingsError: the heartbeat file cannot be touched, or this system cannot do what is set.
    """
    log.set_up(settings)
    for sentence in unknown():
        log.event("unknown setting", logging.WARNING, reason=sentence)
    if settings.sync == "checkpoint" and not CAN_SYNC:
        raise SettingsError("IMECE_SYNC: checkpoint: this system has no syncfs, take off")
    if (path := settings.heartbeat_file) is not None:
        try:
            path.touch()
            path.unlink()
        except OSError as error:
            raise SettingsError(f"IMECE_HEARTBEAT_FILE: {path}: {error.strerror}") from None


def touch_heartbeat_file(settings: Settings) -> None:
    """Shows a liveness probe that the worker's loop goes on."""
    if settings.heartbeat_file is not None:
        try:
            settings.heartbeat_file.touch()
        except OSError as error:  # the probe will tell, if it lasts
            log.event("heartbeat file not touched", logging.WARNING, error=str(error))
