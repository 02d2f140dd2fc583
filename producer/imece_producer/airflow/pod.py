"""Pods with no more rights than they need; those of static buckets."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from kubernetes.client import ApiException
from kubernetes.client import models as k8s

from imece_producer.airflow import fields
from imece_producer.airflow.connection import airflow_errors
from imece_producer.airflow.deferring import is_deferrable

if TYPE_CHECKING:
    from airflow.sdk import Context


class ImecePodOperator(KubernetesPodOperator):
    """A pod with no more rights than it needs: no root, nothing writable but what is mounted and
    /tmp, no token of the cluster. Namespace, service account, resources, start-up timeout and pull
    secret may be params.

    Args:
        namespace: empty: the connection's.
        service_account: empty: the namespace's own.
        cpu, memory, storage: what each container may take, and gets; a namespace with a
            ResourceQuota refuses pods that do not say so. Storage is that on the node's disk, the
            volumes among it; empty: not said.
        pull_secret: the Secret to pull the image with; empty: none.
        startup_timeout: seconds until the pod must have started.
        deferrable: wait in the triggerer; see `is_deferrable`.
    """

    template_fields: Sequence[str] = (
        *KubernetesPodOperator.template_fields,
        "service_account", "cpu", "memory", "storage", "pull_secret", "startup_timeout",
    )  # fmt: skip

    def __init__(
        self,
        *,
        kubernetes_conn_id: str | None = "imece_kubernetes",
        namespace: str | None = None,
        service_account: str | None = None,
        cpu: str | None = "1",
        memory: str | None = "1Gi",
        storage: str | None = None,
        pull_secret: str | None = None,
        startup_timeout: int | str = 300,
        deferrable: bool | None = None,
        volumes: list[k8s.V1Volume] | None = None,
        volume_mounts: list[k8s.V1VolumeMount] | None = None,
        **kwargs: Any,
    ) -> None:
        given = {
            "automount_service_account_token": False,
            "on_finish_action": "delete_succeeded_pod",
            "log_events_on_failure": True,
            "security_context": k8s.V1PodSecurityContext(
                run_as_non_root=True,
                seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
            ),
            "container_security_context": k8s.V1SecurityContext(
                allow_privilege_escalation=False,
                capabilities=k8s.V1Capabilities(drop=["ALL"]),
                read_only_root_filesystem=True,
            ),
            **kwargs,
        }
        scratch = k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource())
        super().__init__(
            kubernetes_conn_id=kubernetes_conn_id,
            deferrable=is_deferrable(deferrable),
            volumes=[scratch, *(volumes or [])],
            volume_mounts=[
                k8s.V1VolumeMount(name="tmp", mount_path="/tmp"),  # noqa: S108
                *(volume_mounts or []),
            ],
            **given,
        )
        self.namespace = namespace
        self.service_account = service_account
        self.cpu = cpu
        self.memory = memory
        self.storage = storage
        self.pull_secret = pull_secret
        self.startup_timeout = startup_timeout

    def execute(self, context: "Context") -> Any:
        with airflow_errors():
            self.startup_timeout_seconds = fields.whole(self.startup_timeout, "startup_timeout")
        return super().execute(context)

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: "Context") -> k8s.V1Pod:
        try:
            return super().get_or_create_pod(pod_request_obj, context)
        except ApiException as error:
            if error.status != 403:
                raise
            why = _message(error)
            told = f"namespace {pod_request_obj.metadata.namespace} refuses the pod: {why}"
            # A quota that is used up may have room later.
            kind = AirflowException if "exceeded quota" in why else AirflowFailException
            raise kind(f"{told}{self._remedy(why)}") from None

    def _remedy(self, why: str) -> str:
        """What helps a pod that was refused, if that is known."""
        return ""

    def build_pod_request_obj(self, context: "Context | None" = None, **kwargs: Any) -> k8s.V1Pod:
        self.namespace = fields.words(self.namespace)
        pod = super().build_pod_request_obj(context, **kwargs)
        if (account := fields.words(self.service_account)) is not None:
            pod.spec.service_account_name = account
        if self.container_resources is None:
            pod.spec.containers[0].resources = self._resources()
        if (secret := fields.words(self.pull_secret)) is not None:
            pod.spec.image_pull_secrets = [k8s.V1LocalObjectReference(name=secret)]
        return pod

    def _resources(self) -> k8s.V1ResourceRequirements:
        given = {"cpu": self.cpu, "memory": self.memory, "ephemeral-storage": self.storage}
        said = {name: text for name, value in given.items() if (text := fields.words(value))}
        return k8s.V1ResourceRequirements(requests=said, limits=said)


def _message(error: ApiException) -> str:
    """The sentence in the answer of an API server."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def bucket_pods(params: dict[str, Any]) -> list[dict[str, Any]]:
    """What tells the pods of static buckets apart, and what they share: environment and arguments
    of each. They need no Redis.

    Args:
        params: the DAG run's: buckets, input, output, include, suffix, retries, processor.
    """
    count = params["buckets"]
    shared = {
        "bucket_count": str(count),
        "IMECE_INPUT": params["input"],
        "IMECE_OUTPUT": params["output"],
        "IMECE_RETRIES": str(params["retries"]),
    }
    if params["processor"]:
        shared["IMECE_PROCESSOR"] = params["processor"]
    arguments = ["--bucket-id", "$(bucket_id)", "--bucket-count", "$(bucket_count)"]
    for glob in params["include"] or ():
        arguments += ["--include", glob]
    if params["suffix"]:
        arguments += ["--suffix", params["suffix"]]
    return [
        {"env_vars": {"bucket_id": str(number), **shared}, "arguments": arguments}
        for number in range(count)
    ]
