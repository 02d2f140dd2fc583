"""Pods: for a static bucket, and for building a worker image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import models as k8s

from imece_producer.airflow import fields
from imece_producer.airflow.connection import airflow_errors
from imece_producer.airflow.deferring import is_deferrable

if TYPE_CHECKING:
    from airflow.sdk import Context

CA, CA_KEY = "/ca", "ca.crt"
SOURCE = "/workspace/source"
CREDENTIALS = "/run/secrets/registry"

CREDENTIAL_HELPER = '!f() { echo "username=$GIT_USERNAME"; echo "password=$GIT_PASSWORD"; }; f'
"""Hands git what the Secret holds (gitcredentials(7)); neither is ever an argument."""


class ImecePodOperator(KubernetesPodOperator):
    """A pod with no more rights than it needs: no root, nothing writable but what is mounted and
    /tmp, no token of the cluster. One that is in the way of the templates of its base is fixed:
    start-up timeout and pull secret may be params.

    Args:
        pull_secret: the Secret to pull the image with; empty: none.
        startup_timeout: seconds until the pod must have started.
        deferrable: wait in the triggerer; see `is_deferrable`.
    """

    template_fields: Sequence[str] = (
        *KubernetesPodOperator.template_fields,
        "pull_secret",
        "startup_timeout",
    )

    def __init__(
        self,
        *,
        kubernetes_conn_id: str | None = "imece_kubernetes",
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
        self.pull_secret = pull_secret
        self.startup_timeout = startup_timeout

    def execute(self, context: "Context") -> Any:
        with airflow_errors():
            self.startup_timeout_seconds = fields.whole(self.startup_timeout, "startup_timeout")
        return super().execute(context)

    def build_pod_request_obj(self, context: "Context | None" = None, **kwargs: Any) -> k8s.V1Pod:
        pod = super().build_pod_request_obj(context, **kwargs)
        if (secret := fields.words(self.pull_secret)) is not None:
            pod.spec.image_pull_secrets = [k8s.V1LocalObjectReference(name=secret)]
        return pod


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


class ImeceImageOperator(ImecePodOperator):
    """Clones a repository, builds its image and pushes it, with BuildKit, without root.

    The pod clones in an init container and builds in memory that it has to itself. BuildKit without
    root needs a user namespace: it runs as user 1000, and neither seccomp nor AppArmor may be in
    its way. It is given no rights of the host or the cluster.

    Args:
        repository: an HTTPS address of a git repository.
        ref: a branch or a tag.
        directory, dockerfile: the build context in it, and the file in that.
        target_image: with tag; the XCom is the same name.
        registry_secret: a Secret of type kubernetes.io/dockerconfigjson; empty: push without login.
        git_secret: a Secret of type kubernetes.io/basic-auth; empty: clone without login.
        ca_config_map: a ConfigMap with `ca.crt`, the CA of git host and registry; the build gets it
            as the secret `ca`. Empty: only public ones.
        git_image: an image with git, for the init container.
    """

    template_fields: Sequence[str] = (
        *ImecePodOperator.template_fields,
        "repository", "ref", "directory", "dockerfile", "target_image", "registry_secret",
        "git_secret", "ca_config_map", "git_image",
    )  # fmt: skip
    ui_color = "#e6dcf0"

    def __init__(
        self,
        *,
        repository: str,
        target_image: str,
        ref: str = "main",
        directory: str = ".",
        dockerfile: str = "Dockerfile",
        registry_secret: str | None = None,
        git_secret: str | None = None,
        ca_config_map: str | None = None,
        image: str = "docker.io/moby/buildkit:v0.23.2-rootless",
        git_image: str = "docker.io/alpine/git:2.49.1",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image=image,
            security_context=k8s.V1PodSecurityContext(
                run_as_non_root=True, run_as_user=1000, run_as_group=1000, fs_group=1000
            ),
            container_security_context=k8s.V1SecurityContext(
                # newuidmap has to become another user; the rest stays as it is.
                allow_privilege_escalation=True,
                seccomp_profile=k8s.V1SeccompProfile(type="Unconfined"),
                app_armor_profile=k8s.V1AppArmorProfile(type="Unconfined"),
            ),
            **kwargs,
        )
        self.repository = repository
        self.target_image = target_image
        self.ref = ref
        self.directory = directory
        self.dockerfile = dockerfile
        self.registry_secret = registry_secret
        self.git_secret = git_secret
        self.ca_config_map = ca_config_map
        self.git_image = git_image

    def execute(self, context: "Context") -> Any:
        super().execute(context)
        return self.target_image

    def execute_complete(self, context: "Context", **kwargs: Any) -> Any:
        super().execute_complete(context, **kwargs)
        return self.target_image

    def build_pod_request_obj(self, context: "Context | None" = None, **kwargs: Any) -> k8s.V1Pod:
        pod = super().build_pod_request_obj(context, **kwargs)
        build, volumes = pod.spec.containers[0], pod.spec.volumes
        ca_mounts, ca = [], fields.words(self.ca_config_map)
        for name in ("workspace", "buildkit"):
            volumes.append(k8s.V1Volume(name=name, empty_dir=k8s.V1EmptyDirVolumeSource()))
        if ca is not None:
            volumes.append(k8s.V1Volume(name="ca", config_map=k8s.V1ConfigMapVolumeSource(name=ca)))
            ca_mounts = [k8s.V1VolumeMount(name="ca", mount_path=CA, read_only=True)]
        workspace = k8s.V1VolumeMount(name="workspace", mount_path="/workspace")
        pod.spec.init_containers = [self._clone([workspace, *ca_mounts], ca is not None)]
        build.command = ["buildctl-daemonless.sh"]
        build.args = self._build_arguments(ca is not None)
        build.env = [*(build.env or []), *self._build_environment(ca is not None)]
        build.volume_mounts += [
            workspace,
            k8s.V1VolumeMount(name="buildkit", mount_path="/home/user/.local/share/buildkit"),
            *ca_mounts,
        ]
        if (secret := fields.words(self.registry_secret)) is not None:
            item = k8s.V1KeyToPath(key=".dockerconfigjson", path="config.json")
            source = k8s.V1SecretVolumeSource(secret_name=secret, items=[item])
            volumes.append(k8s.V1Volume(name="registry", secret=source))
            build.volume_mounts.append(
                k8s.V1VolumeMount(name="registry", mount_path=CREDENTIALS, read_only=True)
            )
            build.env.append(k8s.V1EnvVar(name="DOCKER_CONFIG", value=CREDENTIALS))
        return pod

    def _clone(self, mounts: list[k8s.V1VolumeMount], with_ca: bool) -> k8s.V1Container:
        env = [k8s.V1EnvVar(name="GIT_TERMINAL_PROMPT", value="0")]
        options = []
        if with_ca:
            env.append(k8s.V1EnvVar(name="GIT_SSL_CAINFO", value=f"{CA}/{CA_KEY}"))
        if (secret := fields.words(self.git_secret)) is not None:
            options = ["-c", f"credential.helper={CREDENTIAL_HELPER}"]
            for name in ("username", "password"):
                reference = k8s.V1SecretKeySelector(name=secret, key=name)
                source = k8s.V1EnvVarSource(secret_key_ref=reference)
                env.append(k8s.V1EnvVar(name=f"GIT_{name.upper()}", value_from=source))
        clone = ["clone", "--depth", "1", "--branch", str(self.ref), "--", str(self.repository)]
        return k8s.V1Container(
            name="clone",
            image=str(self.git_image),
            command=["git", *options, *clone, SOURCE],
            env=env,
            volume_mounts=mounts,
            security_context=k8s.V1SecurityContext(
                allow_privilege_escalation=False,
                capabilities=k8s.V1Capabilities(drop=["ALL"]),
                read_only_root_filesystem=True,
            ),
        )

    def _build_arguments(self, with_ca: bool) -> list[str]:
        context = f"{SOURCE}/{self.directory}"
        secrets = ["--secret", f"id=ca,src={CA}/{CA_KEY}"] if with_ca else []
        return [
            "build", "--frontend", "dockerfile.v0", "--progress", "plain",
            "--local", f"context={context}", "--local", f"dockerfile={context}",
            "--opt", f"filename={self.dockerfile}", *secrets,
            "--output", f"type=image,name={self.target_image},push=true",
        ]  # fmt: skip

    def _build_environment(self, with_ca: bool) -> list[k8s.V1EnvVar]:
        # Without it BuildKit asks for a process namespace, which only privileged pods may have.
        env = {"BUILDKITD_FLAGS": "--oci-worker-no-process-sandbox"}
        if with_ca:
            env["SSL_CERT_DIR"] = CA  # beside the system's own file (Go's crypto/x509)
        return [k8s.V1EnvVar(name=name, value=value) for name, value in env.items()]
