"""A look at all that a run will use, before it is enqueued."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from imece.errors import ImeceError, SettingsError
from imece.files.listing import check_directories
from imece.settings import Settings
from imece_producer.airflow import fields
from imece_producer.airflow.cluster import ImeceOperator
from imece_producer.airflow.connection import (
    airflow_errors,
    cluster_settings,
    find,
    in_airflow,
    names_cluster,
)
from imece_producer.doctor import report
from imece_producer.doctor.check import Check, failed
from imece_producer.doctor.redis import of_redis

if TYPE_CHECKING:
    from airflow.sdk import Context


class ImecePreflightOperator(ImeceOperator):
    """Looks at what a run will use, as `imece doctor` does, and says what to fix: Redis, the
    directories, and the cluster.

    Args:
        input_dir, output_dir: of the run; None is not looked at.
        run_queue: the run's queue; None: IMECE_QUEUE.
        max_replicas, processor: what the tasks after this one will set. With neither, what is wrong
            with the cluster is a warning; and it is not looked at where the connection names none.
    """

    template_fields: Sequence[str] = (
        "input_dir", "output_dir", "run_queue", "max_replicas", "processor", "redis_conn_id",
        "kubernetes_conn_id",
    )  # fmt: skip
    ui_color = "#e8f0d8"

    def __init__(
        self,
        *,
        input_dir: str | None = None,
        output_dir: str | None = None,
        run_queue: str | None = None,
        max_replicas: int | str | None = None,
        processor: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.input_dir = input_dir
        self.output_dir = output_dir
        self.run_queue = run_queue
        self.max_replicas = max_replicas
        self.processor = processor

    def execute(self, context: "Context") -> None:
        settings = self._settings(queue=fields.words(self.run_queue))
        made = []
        with airflow_errors():
            for check in self._checks(settings):
                made.append(check)
                level = logging.INFO if check.verdict == "ok" else logging.WARNING
                self.log.log(level, "%s", f"{check.verdict} {check.name}: {self._told(check)}")
        wrong = [check for check in made if check.verdict == "fail"]
        if wrong:
            passes = all(check.may_pass for check in wrong)
            kind = AirflowException if passes else AirflowFailException
            raise kind("; ".join(map(self._told, wrong)))

    def _told(self, check: Check) -> str:
        text = f"{check.says}: {check.hint}" if check.hint else check.says
        return in_airflow(text, self.redis_conn_id, self.kubernetes_conn_id)

    def _checks(self, settings: Settings) -> Iterator[Check]:
        yield from of_redis(settings)
        yield from self._of_directories()
        needed = bool(fields.words(self.max_replicas) or fields.processor(self.processor))
        yield from report.softened(self._of_cluster(settings, needed), not needed)

    def _of_directories(self) -> Iterator[Check]:
        """Whether the input can be listed here, which the run will do. The output is the workers'
        alone: here it takes the list of failed files."""
        source, target = fields.words(self.input_dir), fields.words(self.output_dir)
        output = Path(target) if target not in (None, "-") else None
        if source is not None:
            try:
                check_directories(Path(source), output)
            except ImeceError as error:
                yield failed("directories", error)
                return
        yield from report.of_directories(Path(source) if source is not None else None, None)
        yield from report.softened(report.of_directories(None, output), True)

    def _of_cluster(self, settings: Settings, needed: bool) -> Iterator[Check]:
        try:
            connection = find(self.kubernetes_conn_id)
            if needed or names_cluster(connection):
                with cluster_settings(connection, settings) as named:
                    yield from report.of_cluster(named)
        except SettingsError as error:
            if needed:
                yield failed("cluster", error)
