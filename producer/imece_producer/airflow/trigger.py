"""Waiting for a run in the triggerer, where it costs no worker slot."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from imece.connection import connect_async, reachable
from imece.errors import ImeceError, LoginError, ServiceError
from imece.run import status
from imece.run.status import Status
from imece.run.store import attach_async, cancel_async
from imece.settings import Settings
from imece_producer import display
from imece_producer.airflow.connection import settings_of

LOG_PAUSE = 5.0
"""Seconds between two lines of progress at least; or a hundredth of the time waited, if more."""

SHORTEST_WAIT = 5.0
"""Seconds a trigger waits at least. Airflow's scheduler must first hear that its task was deferred.
Else it marks the task as failed when it goes on ("finished with state success, but the task
instance's state attribute is running"), and the next try is one more round."""

KILL_TIMEOUT = 1.0
"""Seconds the write of a cancel may take: a triggerer has not much longer for it."""


class ImeceRunTrigger(BaseTrigger):
    """Ends when a run has ended or waits for a person:
    `{"run": id, "state": "done" | "failed" | "cancelled" | "held"}`, or
    `{"run": id, "error": why}`.

    Args:
        run_id, queue: the run's, and its queue.
        redis_conn_id: the Airflow connection; None: Redis as the environment names it.
        generation: the run's, as the task attached to it; see `imece.run.Run.attach`.
        poll_interval: seconds between two looks at the run.
        unknown: what another version of imece would say; both run while one is rolled out.
    """

    def __init__(
        self,
        run_id: str,
        queue: str,
        redis_conn_id: str | None = None,
        generation: str = "",
        poll_interval: float = 2.0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        self.run_id = run_id
        self.queue = queue
        self.redis_conn_id = redis_conn_id
        self.generation = generation
        self.poll_interval = poll_interval
        self._settings: Settings | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """No credential is in it."""
        arguments = {
            "run_id": self.run_id,
            "queue": self.queue,
            "redis_conn_id": self.redis_conn_id,
            "generation": self.generation,
            "poll_interval": self.poll_interval,
        }
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Looks at the run until it has ended, however long Redis is away."""
        earliest = time.monotonic() + SHORTEST_WAIT
        try:
            last = await self._wait()
        except ImeceError as error:
            event = {"run": self.run_id, "error": str(error)}
        else:
            event = {"run": self.run_id, "state": last.state}
        await asyncio.sleep(max(0.0, earliest - time.monotonic()))
        yield TriggerEvent(event)

    async def _wait(self) -> Status:
        settings = await self._find_settings()
        report = Report(self.log.info)
        attached = False
        async with aclosing(connect_async(settings, retries=0)) as redis:
            while True:
                try:
                    with reachable(settings):
                        if not attached:
                            # A triggerer that took this over from another moves it on again, so
                            # that a cancel by the other one is void.
                            mine = await attach_async(redis, self.run_id)
                            self.generation, attached = mine or self.generation, True
                        now = await status.read_async(redis, self.run_id)
                except LoginError:
                    raise
                except ServiceError as error:
                    report.outage(error)
                else:
                    report.progress(now)
                    if now.has_stopped:
                        return now
                await asyncio.sleep(self.poll_interval)

    async def _find_settings(self) -> Settings:
        if self._settings is None:
            connection = None
            if self.redis_conn_id is not None:
                connection = await BaseHook.aget_connection(self.redis_conn_id)
            self._settings = settings_of(connection)
        return self._settings

    async def on_kill(self) -> None:
        """The task was cleared, or marked as failed or succeeded, or its DAG run timed out: which
        of them, nobody says. So the run is cancelled: a task that was cleared goes on with it, and
        begins no file a second time."""
        settings = await self._find_settings()
        async with aclosing(connect_async(settings, retries=0, timeout=KILL_TIMEOUT)) as redis:
            answer = await cancel_async(
                redis,
                self.run_id,
                self.queue,
                settings.result_ttl,
                self.generation,
            )
        if answer == "cancelled":
            self.log.info(
                "run %s is cancelled; a task that is cleared goes on with it", self.run_id
            )


class Report:
    """Says how far a run is, when that has changed and not too often.

    Args:
        say: takes a line, as `logging.Logger.info` does.
    """

    def __init__(self, say: Any) -> None:
        self._say = say
        self._began = time.monotonic()
        self._said = ("", float("-inf"))
        self._away = False

    def progress(self, now: Status) -> None:
        if self._away:
            self._say("Redis is back")
            self._away = False
        line = display.line(now) + (
            f"; reason: {now.blocking_reason}" if now.blocking_reason else ""
        )
        time_now = time.monotonic()
        pause = max(LOG_PAUSE, (time_now - self._began) / 100)
        if line != self._said[0] and (now.has_stopped or time_now - self._said[1] >= pause):
            self._say("%s", line)
            self._said = (line, time_now)

    def outage(self, error: Exception) -> None:
        if not self._away:
            self._say("%s", f"{error}. Waiting for it; workers go on meanwhile")
            self._away = True
