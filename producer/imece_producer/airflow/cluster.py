"""Tasks around a run: the limit of replicas, a rollout."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import BaseOperator

from imece.connection import connect
from imece.errors import RunError
from imece.run.store import ON, Run, recent
from imece.settings import Settings
from imece_producer.airflow import fields
from imece_producer.airflow.connection import airflow_errors, cluster_settings, find, settings_of
from imece_producer.cluster import client, rollout, scaling
from imece_producer.cluster.client import Cluster

if TYPE_CHECKING:
    from airflow.sdk import Context

ROLLOUT_PAUSE = 5.0
"""Seconds between two looks at a rollout."""


@contextmanager
def connected(conn_id: str | None, settings: Settings) -> Iterator[Cluster]:
    """A client for the cluster a Kubernetes Connection names."""
    with (
        airflow_errors(kubernetes_conn_id=conn_id),
        cluster_settings(find(conn_id), settings) as named,
        client.connect(named) as connection,
    ):
        yield connection


class ImeceOperator(BaseOperator):
    """Base of those that speak to Redis and the cluster.

    Args:
        redis_conn_id: the Airflow connection; None: Redis as IMECE_REDIS_... name it.
        kubernetes_conn_id: the Airflow connection; None: the cluster as IMECE_KUBE_... and
            KUBECONFIG name it.
    """

    def __init__(
        self,
        *,
        redis_conn_id: str | None = "imece_redis",
        kubernetes_conn_id: str | None = "imece_kubernetes",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.redis_conn_id = redis_conn_id
        self.kubernetes_conn_id = kubernetes_conn_id

    def _settings(self, **overrides: Any) -> Settings:
        with airflow_errors():
            return settings_of(find(self.redis_conn_id), **overrides)


class ImeceScaleOperator(ImeceOperator):
    """Sets the limit of replicas, and the workers' processor. Leaves alone what it is not given.

    The processor is not changed while a run of the queue is on: half of its files would be made by
    one, half by the other.

    Args:
        max_replicas: maxReplicaCount of the ScaledObject.
        processor: IMECE_PROCESSOR of the workers' Deployment, `package.module:function`, which
            must be in their image; another one than before is a rollout.
        run_queue: the workers' queue; None: IMECE_QUEUE.
        rollout_timeout: seconds a rollout may take.
    """

    template_fields: Sequence[str] = (
        "max_replicas", "processor", "run_queue", "redis_conn_id", "kubernetes_conn_id",
    )  # fmt: skip
    ui_color = "#d8e8f0"

    def __init__(
        self,
        *,
        max_replicas: int | str | None = None,
        processor: str | None = None,
        run_queue: str | None = None,
        rollout_timeout: float = 600.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_replicas = max_replicas
        self.processor = processor
        self.run_queue = run_queue
        self.rollout_timeout = rollout_timeout

    def execute(self, context: "Context") -> None:
        with airflow_errors():
            limit = fields.whole(self.max_replicas, "max_replicas")
            processor = fields.processor(self.processor)
            if limit is None and processor is None:
                self.log.info("neither max_replicas nor processor is given: all stays as it is")
                return
            settings = self._settings(queue=fields.words(self.run_queue))
            with connected(self.kubernetes_conn_id, settings) as client:
                if processor is not None:
                    roll_out(
                        client, self.rollout_timeout, self.log.info,
                        processor=processor, check=lambda: self._refuse_under_a_run(settings),
                    )  # fmt: skip
                if limit is not None:
                    before, after = scaling.change(client, limit)
                    self.log.info(
                        "at most %d replicas (it was %d), %d ready",
                        after.limit, before.limit, after.ready,
                    )  # fmt: skip

    def _refuse_under_a_run(self, settings: Settings) -> None:
        with airflow_errors(settings, self.redis_conn_id), closing(connect(settings)) as redis:
            for run_id in recent(redis, settings.queue):
                if Run(redis, settings.queue, run_id).state() in ON:
                    raise RunError(
                        f"run {run_id} of the queue {settings.queue} is on: another processor "
                        f"({self.processor}) would process the rest of its files",
                        f"wait for its end, or cancel it (`imece cancel {run_id}`), then clear "
                        "this task",
                    )


class ImeceRolloutOperator(ImeceOperator):
    """Sets the image of the workers' Deployment and waits until all pods are of it.

    Args:
        image: with tag or digest.
        run_queue: the workers' queue; None: IMECE_QUEUE.
        rollout_timeout: seconds; a worker that is replaced finishes the file in hand first.
    """

    template_fields: Sequence[str] = (
        "image", "run_queue", "rollout_timeout", "kubernetes_conn_id",
    )  # fmt: skip
    ui_color = "#d8e8f0"

    def __init__(
        self,
        *,
        image: str,
        run_queue: str | None = None,
        rollout_timeout: float | str = 600.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image = image
        self.run_queue = run_queue
        self.rollout_timeout = rollout_timeout

    def execute(self, context: "Context") -> str:
        with airflow_errors():
            timeout = fields.number(self.rollout_timeout, "rollout_timeout") or 0.0
            settings = settings_of(None, queue=fields.words(self.run_queue))
            with connected(self.kubernetes_conn_id, settings) as client:
                roll_out(client, timeout, self.log.info, image=self.image)
        return self.image


def roll_out(client: Cluster, timeout: float, say: Any, **changes: Any) -> None:
    """Changes the workers' Deployment and waits until it is through.

    Raises:
        AirflowFailException: it is not within `timeout` seconds; says what it waits for.
    """
    changed = rollout.change(client, **changes)
    if changed is None:
        say("the Deployment is so already: nothing to roll out")
        return
    generation, end, said = changed["metadata"]["generation"], time.monotonic() + timeout, ""
    while (left := rollout.left(deployment := client.deployment(), generation)) is not None:
        if left != said:
            say("%s", f"rollout: {left}")
            said = left
        if time.monotonic() >= end:
            name = deployment["metadata"]["name"]
            raise AirflowFailException(
                f"the rollout of {name} is not through after {timeout:g} s: {left}. "
                f"`kubectl describe deployment {name}` and its pods' events say why"
            )
        time.sleep(ROLLOUT_PAUSE)
    say("rollout: all workers are new")
