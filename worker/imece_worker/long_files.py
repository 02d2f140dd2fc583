"""What a worker says of a file that takes long: in its log, in its metrics, and to Redis with the
next sign of life."""

import logging

from imece import names
from imece.run.claim import Claim, Claimed, CurrentFile
from imece_worker import log
from imece_worker.progress import Progress
from imece_worker.statistics import WorkerStatistics

LONG = 1.0
"""Seconds from which on a file takes long."""

LOGGED_FROM = 10.0
"""Seconds from which on the log tells of it, and again whenever the time has doubled; before, only
at the level debug: many runs have nothing but files of some seconds."""


class LongFiles:
    """Those of one execution."""

    def __init__(
        self, progress: Progress, statistics: WorkerStatistics, lease: Claim, claimed: Claimed
    ) -> None:
        self._progress = progress
        self._statistics = statistics
        self._run = lease.reference.run
        self._limit = claimed.parameters.timeout
        self._told: CurrentFile | None = None

    def current(self) -> CurrentFile | None:
        """The current file, if it takes long."""
        found = self._progress.current_file()
        return found if found is not None and found.seconds >= LONG else None

    def look(self) -> None:
        """At each sign of life."""
        found, told = self.current(), self._told
        self._statistics.at(found)
        if found is None:
            self._told = None
            return
        again = told is not None and told.name == found.name and told.seconds <= found.seconds
        due = max(2 * told.seconds, LOGGED_FROM) if told is not None and again else LONG
        if found.seconds >= due:
            self._told = found
            level = logging.INFO if found.seconds >= LOGGED_FROM else logging.DEBUG
            self._log("file takes long", found, level)

    def tell_of_stop(self) -> None:
        """Which file the worker finishes before it stops."""
        if (found := self._progress.current_file()) is not None:
            left = max(0.0, self._limit - found.seconds)
            self._log("stopping after the current file", found, at_most=left)

    def _log(
        self, event: str, found: CurrentFile, level: int = logging.INFO, **more: float
    ) -> None:
        file, took = names.shown(found.name), found.seconds
        log.event(event, level, run=self._run, file=file, seconds=took, **more)
