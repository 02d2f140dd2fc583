"""Waiting for a run in the triggerer, where it costs no worker slot."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from airflow.sdk import Connection
from airflow.triggers.base import BaseTrigger, TriggerEvent

from imece.connection import connect_async, reachable
from imece.errors import ImeceError, ServiceError, SettingsError, TrustError
from imece.run import status
from imece.run.causes import SHOWN, commonest
from imece.run.status import Status
from imece.run.store import ON, attach_async, cancel_async
from imece.settings import Settings
from imece_producer import display
from imece_producer.airflow.connection import (
    cluster_settings,
    find_async,
    in_airflow,
    names_cluster,
    settings_of,
)
from imece_producer.cluster import commands
from imece_producer.display import seconds

LOG_PAUSE = 5.0
"""Seconds between two lines of progress at least; or a hundredth of the time waited, if more."""

SHORTEST_WAIT, LONGEST_WAIT = 5.0, 60.0
"""Seconds a trigger waits at least; the second on a machine however busy. Airflow's scheduler must
first hear that the process of the deferred task has ended. Else it marks the task as failed when it
goes on ("finished with state success, but the task instance's state attribute is queued"), and the
next try is one more round. The busier the machine, the later the scheduler hears it: so the trigger
waits no shorter than the task took to start."""

QUIET = 120.0
"""Seconds without a bucket job in hand after which the log says why; doubled each time."""

KILL_TIMEOUT = 1.0
"""Seconds the write of a cancel may take: a triggerer has not much longer for it."""


class ImeceRunTrigger(BaseTrigger):
    """Ends when a run has ended or waits for a person:
    `{"run": id, "state": "done" | "failed" | "cancelled" | "held"}`, or
    `{"run": id, "error": why, "may_pass": whether another try may help}`.

    Args:
        run_id, queue: the run's, and its queue.
        redis_conn_id: the Airflow connection; None: Redis as the environment names it.
        kubernetes_conn_id: the Airflow connection of the workers' cluster, which is asked why
            nothing moves; None: no cluster is asked.
        generation: the run's, as the task attached to it; see `imece.run.Run.attach`.
        poll_interval: seconds between two looks at the run.
        shortest_wait: seconds it waits at least; within SHORTEST_WAIT and LONGEST_WAIT.
        unknown: what another version of imece would say; both run while one is rolled out.
    """

    def __init__(
        self,
        run_id: str,
        queue: str,
        redis_conn_id: str | None = None,
        kubernetes_conn_id: str | None = None,
        generation: str = "",
        poll_interval: float = 2.0,
        shortest_wait: float = 0.0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        self.run_id = run_id
        self.queue = queue
        self.redis_conn_id = redis_conn_id
        self.kubernetes_conn_id = kubernetes_conn_id
        self.generation = generation
        self.poll_interval = poll_interval
        self.shortest_wait = shortest_wait
        self._settings: Settings | None = None
        self._over = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """No credential is in it."""
        arguments = {
            "run_id": self.run_id,
            "queue": self.queue,
            "redis_conn_id": self.redis_conn_id,
            "kubernetes_conn_id": self.kubernetes_conn_id,
            "generation": self.generation,
            "poll_interval": self.poll_interval,
            "shortest_wait": self.shortest_wait,
        }
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Looks at the run until it has ended, however long Redis is away."""
        wait = min(max(SHORTEST_WAIT, self.shortest_wait), LONGEST_WAIT)
        earliest = time.monotonic() + wait
        # In a task of its own, because a kill is a cancel of this one. Redis-py's awaits can
        # swallow a cancel (Python 3.11), and one in the middle of attaching would leave unknown
        # which generation the kill has to name.
        waiting = asyncio.create_task(self._wait())
        try:
            await asyncio.wait({waiting})
        except asyncio.CancelledError:
            self._over.set()
            await asyncio.wait({waiting}, timeout=KILL_TIMEOUT)
            raise
        finally:
            waiting.cancel()
        await asyncio.sleep(max(0.0, earliest - time.monotonic()))
        yield TriggerEvent(waiting.result())

    async def _wait(self) -> dict[str, Any]:
        try:
            last = await self._follow()
        except ImeceError as error:
            told = in_airflow(str(error), self.redis_conn_id)
            return {"run": self.run_id, "error": told, "may_pass": error.may_pass}
        return {"run": self.run_id, "state": last.state}

    async def _follow(self) -> Status:
        settings = await self._find_settings()
        report, quiet = Report(self.log.info), Quiet()
        attached = False
        async with aclosing(connect_async(settings, retries=0)) as redis:
            while not self._over.is_set():
                try:
                    with reachable(settings):
                        if not attached:
                            # A triggerer that took this over from another moves it on again, so
                            # that a cancel by the other one is void.
                            mine = await attach_async(redis, self.queue, self.run_id)
                            self.generation, attached = mine or self.generation, True
                        now = await status.read_async(redis, self.queue, self.run_id)
                except TrustError:
                    raise
                except ServiceError as error:
                    report.outage(in_airflow(str(error), self.redis_conn_id))
                else:
                    report.progress(now)
                    if now.has_stopped:
                        return now
                    if (lasted := quiet.lasted(now)) is not None:
                        # Kept, so that it is not collected before it is through.
                        self._looking = asyncio.create_task(self._say_why(settings, now, lasted))
                await self._pause()
        raise asyncio.CancelledError

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._over.wait(), self.poll_interval)
        except TimeoutError:
            pass

    async def _say_why(self, settings: Settings, now: Status, lasted: float) -> None:
        """Says what `imece status` would. It only looks: whatever goes wrong is part of the log."""
        try:
            try:
                connection = await find_async(self.kubernetes_conn_id)
            except SettingsError:
                connection = None
            lines = await asyncio.to_thread(
                lambda: list(reasons(settings, now, connection, self.kubernetes_conn_id))
            )
        except Exception as error:  # the wait goes on
            lines = [f"  what keeps them cannot be said: {error}"]
        head = f"no worker has had a bucket job of the queue {self.queue} for {seconds(lasted)}"
        self.log.warning("%s", "\n".join([head, *lines]))

    async def _find_settings(self) -> Settings:
        if self._settings is None:
            self._settings = settings_of(await find_async(self.redis_conn_id))
        return self._settings

    async def on_kill(self) -> None:
        """The task was cleared, or marked as failed or succeeded, or its DAG run timed out: which
        of them, nobody says. So the run is cancelled: a task that was cleared goes on with it, and
        begins no file a second time."""
        settings = await self._find_settings()
        async with aclosing(connect_async(settings, retries=0, timeout=KILL_TIMEOUT)) as redis:
            answer = await cancel_async(
                redis,
                self.queue,
                self.run_id,
                settings.result_ttl,
                self.generation,
            )
        if answer == "cancelled":
            self.log.info(
                "run %s is cancelled; a task that is cleared goes on with it", self.run_id
            )


def reasons(
    settings: Settings, now: Status, connection: Connection | None, conn_id: str | None
) -> Iterator[str]:
    """Why no worker has a bucket job, line by line, as far as it can be seen from here.

    Args:
        connection: to the workers' cluster, if there is one; `conn_id` is its id.
    """
    if not names_cluster(connection):
        yield f"  workers need this Redis, IMECE_QUEUE={now.queue}, and a processor that loads"
        yield "  see a worker's log, or call `imece doctor` where the workers are"
        if conn_id is not None:
            yield f"  if they are in a cluster: name it in the Airflow connection {conn_id}"
        return
    try:
        with cluster_settings(connection, settings) as named:
            found = commands.look(named, now)
    except ImeceError as error:
        found = {"error": str(error)}
    for line in display.workers(found):
        yield in_airflow(line, kubernetes_conn_id=conn_id)


class Quiet:
    """Notices that a run is on and no worker has a bucket job; less and less often."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._next = QUIET

    def lasted(self, now: Status) -> float | None:
        """Seconds it has lasted, when that is to be said."""
        moment = time.monotonic()
        if now.backlog.in_flight or now.state not in ON:
            self._since, self._next = moment, QUIET
        if moment - self._since < self._next:
            return None
        self._next *= 2
        return moment - self._since


class Report:
    """Says how far a run is, when that has changed and not too often.

    Args:
        say: takes a line, as `logging.Logger.info` does.
    """

    def __init__(self, say: Any) -> None:
        self._say = say
        self._began = time.monotonic()
        self._said = ("", float("-inf"))
        self._causes: list[int] = []
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
            self._said = (line, time_now)
            ranked = [cause.number for cause in commonest(now.causes, SHOWN)]
            causes = display.causes(now.causes) if ranked != self._causes else []
            self._causes = ranked
            self._say("%s", "\n".join([line, *causes]))

    def outage(self, error: str) -> None:
        if not self._away:
            self._say("%s", f"{error}. Waiting for it; workers go on meanwhile")
            self._away = True
