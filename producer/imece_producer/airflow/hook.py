"""Redis, and the runs in it, for tasks of your own."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from imece import names
from imece.connection import connect
from imece.run import status
from imece.run.store import Run
from imece.settings import Settings
from imece_producer import display
from imece_producer.airflow.connection import airflow_errors, settings_of

if TYPE_CHECKING:
    from redis import Redis


class ImeceHook(BaseHook):
    """Asks about runs, and cancels them.

    Args:
        redis_conn_id: the Airflow connection; None: Redis as IMECE_REDIS_... name it.
        run_queue: the queue of the runs; None: IMECE_QUEUE.
    """

    conn_name_attr = "redis_conn_id"
    default_conn_name = "imece_redis"
    conn_type = "redis"
    hook_name = "imece"

    def __init__(
        self,
        redis_conn_id: str | None = default_conn_name,
        run_queue: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.redis_conn_id = redis_conn_id
        self.run_queue = run_queue

    @cached_property
    def settings(self) -> Settings:
        """imece's settings, with Redis as the connection names it."""
        with airflow_errors():
            connection = self.get_connection(self.redis_conn_id) if self.redis_conn_id else None
            return settings_of(connection, queue=self.run_queue)

    def get_conn(self) -> "Redis":
        """A client for Redis. Close it after use."""
        return connect(self.settings)

    def status(self, run_id: str) -> dict[str, Any]:
        """A run's state and figures, as `imece status --json` has them."""
        with self._run(run_id) as run:
            return status.read(run).summary()

    def failures(self, run_id: str) -> list[dict[str, Any]]:
        """The files that failed, each with its reason, as `imece failures --json` has them."""
        with self._run(run_id) as run:
            found = sorted(run.failures(), key=lambda one: one[0])
            return [display.failure_entry(name, failure) for name, failure in found]

    def cancel(self, run_id: str) -> None:
        """Cancels a run, as `imece cancel` does. Workers finish their current files."""
        with self._run(run_id) as run:
            run.cancel(self.settings.result_ttl)

    @contextmanager
    def _run(self, run_id: str) -> Iterator[Run]:
        settings = self.settings
        with airflow_errors(settings, self.redis_conn_id), closing(self.get_conn()) as redis:
            yield Run(redis, settings.queue, names.slug(str(run_id)))
