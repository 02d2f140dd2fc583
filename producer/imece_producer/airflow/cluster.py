"""Tasks around a run: preflight, the limit of replicas, a rollout, the report."""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.sdk import BaseHook, BaseOperator, Connection

from imece import names
from imece.connection import connect
from imece.errors import SettingsError
from imece.run import status
from imece.run.store import Run
from imece.settings import Settings
from imece_producer import display, doctor
from imece_producer.airflow import fields
from imece_producer.airflow.connection import airflow_errors, settings_of
from imece_producer.cluster import client, rollout, scaling
from imece_producer.cluster.client import Cluster

if TYPE_CHECKING:
    from airflow.sdk import Context

ROLLOUT_PAUSE = 5.0
"""Seconds between two looks at a rollout."""


@contextmanager
def cluster_settings(conn_id: str | None, settings: Settings) -> Iterator[Settings]:
    """The settings, with the cluster as a Kubernetes Connection names it.

    Of the Connection's extra count `kube_config_path` or `kube_config`, `cluster_context` and
    `namespace`; without the first two, a pod's service account (`in_cluster`) or KUBECONFIG.

    Raises:
        SettingsError: the Connection says two things at once.
    """
    given = BaseHook.get_connection(conn_id) if conn_id else None
    extra = _extra(given) if given is not None else {}
    update = {
        "kube_context": extra.get("cluster_context"),
        "kube_namespace": extra.get("namespace"),
    }
    named = {name: value for name, value in update.items() if value}
    with ExitStack() as stack:
        path, text = extra.get("kube_config_path"), extra.get("kube_config")
        if sum(map(bool, (path, text, extra.get("in_cluster")))) > 1:
            raise SettingsError(
                f"Airflow connection {conn_id}: in_cluster, kube_config_path and kube_config "
                "exclude each other",
                "keep one of them",
            )
        if text:
            file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".kubeconfig"))
            file.write(text if isinstance(text, str) else json.dumps(text))
            file.flush()
            path = file.name
        if path:
            # A task is a process of its own: nobody else reads its environment.
            before = os.environ.get("KUBECONFIG")
            os.environ["KUBECONFIG"] = str(path)
            stack.callback(_restore, before)
        yield settings.model_copy(update=named)


def _extra(connection: Connection) -> dict[str, Any]:
    """The extra, whose fields older versions of Airflow have stored under longer names."""
    prefix = "extra__kubernetes__"
    return {name.removeprefix(prefix): value for name, value in connection.extra_dejson.items()}


def _restore(kubeconfig: str | None) -> None:
    if kubeconfig is None:
        os.environ.pop("KUBECONFIG", None)
    else:
        os.environ["KUBECONFIG"] = kubeconfig


@contextmanager
def connected(conn_id: str | None, settings: Settings) -> Iterator[Cluster]:
    """A client for the cluster a Kubernetes Connection names."""
    with cluster_settings(conn_id, settings) as named, client.connect(named) as connection:
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
            given = BaseHook.get_connection(self.redis_conn_id) if self.redis_conn_id else None
            return settings_of(given, **overrides)


class ImecePreflightOperator(ImeceOperator):
    """Looks at all that a run needs, as `imece doctor` does, and says what to fix.

    Args:
        max_replicas, processor: what the tasks after this one will set. With neither, the cluster
            is not looked at.
    """

    template_fields: Sequence[str] = (
        "max_replicas", "processor", "redis_conn_id", "kubernetes_conn_id",
    )  # fmt: skip
    ui_color = "#e8f0d8"

    def __init__(
        self,
        *,
        max_replicas: int | str | None = None,
        processor: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_replicas = max_replicas
        self.processor = processor

    def execute(self, context: "Context") -> None:
        settings = self._settings()
        with airflow_errors(), ExitStack() as stack:
            if fields.words(self.max_replicas) or fields.words(self.processor):
                settings = stack.enter_context(cluster_settings(self.kubernetes_conn_id, settings))
            made = []
            for check in doctor.checks(settings):
                made.append(check)
                text = f"{check.name}: {check.says}" + (f": {check.hint}" if check.hint else "")
                self.log.log(30 if check.verdict == "warn" else 20, "%s", f"{check.verdict} {text}")
        failed = [check for check in made if check.verdict == "fail"]
        if failed:
            told = "; ".join(f"{one.says}: {one.hint}" for one in failed)
            code = doctor.exit_code(made)
            raise (AirflowException if code == 3 else AirflowFailException)(told)


class ImeceScaleOperator(ImeceOperator):
    """Sets the limit of replicas, and the workers' processor. Leaves alone what it is not given.

    Args:
        max_replicas: maxReplicaCount of the ScaledObject.
        processor: IMECE_PROCESSOR of the workers' Deployment, `package.module:function`, which
            must be in their image; another one than before is a rollout.
        rollout_timeout: seconds a rollout may take.
    """

    template_fields: Sequence[str] = (
        "max_replicas", "processor", "redis_conn_id", "kubernetes_conn_id",
    )  # fmt: skip
    ui_color = "#d8e8f0"

    def __init__(
        self,
        *,
        max_replicas: int | str | None = None,
        processor: str | None = None,
        rollout_timeout: float = 600.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_replicas = max_replicas
        self.processor = processor
        self.rollout_timeout = rollout_timeout

    def execute(self, context: "Context") -> None:
        with airflow_errors():
            limit = fields.whole(self.max_replicas, "max_replicas")
            processor = fields.words(self.processor)
            if limit is None and processor is None:
                self.log.info("neither max_replicas nor processor is given: all stays as it is")
                return
            settings = self._settings(processor=processor)
            with connected(self.kubernetes_conn_id, settings) as client:
                if processor is not None:
                    roll_out(client, self.rollout_timeout, self.log.info, processor=processor)
                if limit is not None:
                    before, after = scaling.change(client, limit)
                    self.log.info(
                        "at most %d replicas (it was %d), %d ready",
                        after.limit, before.limit, after.ready,
                    )  # fmt: skip


class ImeceRolloutOperator(ImeceOperator):
    """Sets the image of the workers' Deployment and waits until all pods are of it.

    Args:
        image: with tag or digest.
        rollout_timeout: seconds; a worker that is replaced finishes the file in hand first.
    """

    template_fields: Sequence[str] = ("image", "rollout_timeout", "kubernetes_conn_id")
    ui_color = "#d8e8f0"

    def __init__(self, *, image: str, rollout_timeout: float | str = 600.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image = image
        self.rollout_timeout = rollout_timeout

    def execute(self, context: "Context") -> str:
        with airflow_errors():
            timeout = fields.number(self.rollout_timeout, "rollout_timeout") or 0.0
            with connected(self.kubernetes_conn_id, settings_of(None)) as client:
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


class ImeceReportOperator(ImeceOperator):
    """Writes a run's figures into the task log, and returns them all.

    Args:
        imece_run: the run id, as `run` in the XCom of an `ImeceRunOperator` has it.
    """

    template_fields: Sequence[str] = ("imece_run", "redis_conn_id")
    ui_color = "#f0e8d8"

    def __init__(self, *, imece_run: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.imece_run = imece_run

    def execute(self, context: "Context") -> dict[str, Any]:
        settings = self._settings()
        with airflow_errors(settings, self.redis_conn_id), closing(connect(settings)) as redis:
            run = Run(redis, names.slug(str(self.imece_run)))
            last = status.read(run)
            lines = [display.block(last), *display.summary(last, last.seconds, [])]
            if last.failed:
                lines += display.first_failures(sorted(run.failures(), key=lambda one: one[0]))
        self.log.info("%s", "\n".join(lines))
        return last.summary()
