"""Builds an image in a pod, without root, and says which one it is."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException
from kubernetes.client import models as k8s

from imece_producer.airflow import fields
from imece_producer.airflow.pod import ImecePodOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

CA, CA_KEY = "/ca", "ca.crt"
SOURCE = "/workspace/source"
CREDENTIALS = "/run/secrets/registry"

CREDENTIAL_HELPER = '!f() { echo "username=$GIT_USERNAME"; echo "password=$GIT_PASSWORD"; }; f'
"""Hands git what the Secret holds (gitcredentials(7)); neither is ever an argument."""

CLONE = """
if [ -n "${CA:-}" ]; then
  # What git is told to trust is all that it trusts: so the public authorities stand before ours.
  for known in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem
  do
    if [ -r "$known" ]; then cat "$known"; break; fi
  done >"$SOURCE.crt"
  printf '\\n' | cat - "$CA" >>"$SOURCE.crt"
  export GIT_SSL_CAINFO="$SOURCE.crt"
fi
git init --quiet "$SOURCE"
cd "$SOURCE"
git "$@" fetch --quiet --depth 1 -- "$REPOSITORY" "$REF"
git checkout --quiet --detach FETCH_HEAD
git log -1 --format='building %H of %cI: %s'
"""
"""Fetches a branch, a tag or a commit. Its arguments are options of git."""

BUILD = """
buildctl-daemonless.sh "$@" --metadata-file /tmp/metadata.json
cat /tmp/metadata.json >/dev/termination-log
"""
"""Builds, and leaves what was pushed where Kubernetes shows it of a container that has ended."""

DIGEST = re.compile(r'"containerimage\.digest":\s*"(sha256:[0-9a-f]{64})"')


def by_digest(image: str, digest: str) -> str:
    """The name of one image for ever: the repository and the digest, without the tag."""
    repository = image.partition("@")[0]
    if ":" in repository.rpartition("/")[2]:
        repository = repository.rpartition(":")[0]
    return f"{repository}@{digest}"


class ImeceImageOperator(ImecePodOperator):
    """Clones a repository, builds its image and pushes it, with BuildKit, without root. The XCom is
    the image by its digest.

    The pod clones in an init container and builds on the node's disk. BuildKit without root needs a
    user namespace: it runs as user 1000, and neither seccomp nor AppArmor may be in its way.
    `restricted` and `baseline` of Pod Security refuse that, and so does OpenShift's restricted-v2:
    deploy/build has a namespace and a service account for it. It is given no rights of the host or
    the cluster.

    Args:
        repository: an HTTPS address of a git repository.
        ref: a branch or a tag; `commit`: a commit instead, all digits of it.
        directory, dockerfile: the build context in it, and the file in that.
        target_image: with tag.
        build_arguments: NAME=VALUE, a list or one a line.
        cache: an image in a registry to keep the layers in, for the next build; empty: none.
        digest: an image of that name that is there: nothing is built. Empty: it is built.
        registry_secret: a Secret of type kubernetes.io/dockerconfigjson; empty: push without login.
        git_secret: a Secret of type kubernetes.io/basic-auth; empty: clone without login.
        ca_config_map: a ConfigMap with `ca.crt`, the CA of git host or registry, trusted beside the
            public ones; the build gets it as the secret `ca`. Empty: only the public ones.
        git_image: an image with git and a shell, for the init container.
    """

    template_fields: Sequence[str] = (
        *ImecePodOperator.template_fields,
        "repository", "ref", "commit", "directory", "dockerfile", "target_image",
        "build_arguments", "cache", "digest", "registry_secret", "git_secret", "ca_config_map",
        "git_image",
    )  # fmt: skip
    ui_color = "#e6dcf0"

    def __init__(
        self,
        *,
        repository: str,
        target_image: str,
        ref: str = "main",
        commit: str | None = None,
        directory: str = ".",
        dockerfile: str = "Dockerfile",
        build_arguments: Sequence[str] | str | None = None,
        cache: str | None = None,
        digest: str | None = None,
        registry_secret: str | None = None,
        git_secret: str | None = None,
        ca_config_map: str | None = None,
        image: str = "docker.io/moby/buildkit:v0.23.2-rootless",
        git_image: str = "docker.io/alpine/git:2.49.1",
        memory: str | None = "4Gi",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image=image,
            memory=memory,
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
        self.commit = commit
        self.directory = directory
        self.dockerfile = dockerfile
        self.build_arguments = build_arguments
        self.cache = cache
        self.digest = digest
        self.registry_secret = registry_secret
        self.git_secret = git_secret
        self.ca_config_map = ca_config_map
        self.git_image = git_image

    def execute(self, context: "Context") -> None:
        if fields.words(self.digest) is None:
            super().execute(context)
        self._push_name(context)

    def trigger_reentry(self, context: "Context", event: dict[str, Any]) -> None:
        super().trigger_reentry(context, event)
        self._push_name(context)

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """As the base class's. What the build has left is read before the pod is deleted."""
        status = remote_pod.status if remote_pod else None
        for container in (status and status.container_statuses) or ():
            ended = container.state and container.state.terminated
            if container.name == self.base_container_name and ended and ended.message:
                found = DIGEST.search(ended.message)
                self.digest = found[1] if found else None
        super().cleanup(pod, remote_pod, *args, **kwargs)

    def _push_name(self, context: "Context") -> None:
        """Not by returning it: with `do_xcom_push`, its base would read a file from the pod."""
        digest = fields.words(self.digest)
        if digest is None:
            raise AirflowException(
                f"{self.target_image} was built, but its pod went before its digest was read: "
                "clear this task"
            )
        name = by_digest(str(self.target_image), digest)
        self.log.info("the image is %s", name)
        context["ti"].xcom_push(key="return_value", value=name)

    def _remedy(self, why: str) -> str:
        if "PodSecurity" in why or "security context constraint" in why:
            return (
                ". BuildKit without root needs a namespace and a service account of its own: "
                "`kubectl apply -k deploy/build/plain`, on OpenShift "
                "`oc apply -k deploy/build/openshift`; then set both"
            )
        return ""

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
        build.command = ["sh", "-euc", BUILD, "build"]
        build.args = self._build_arguments(ca is not None)
        build.env = [*(build.env or []), *self._build_environment(ca is not None)]
        build.termination_message_policy = "FallbackToLogsOnError"
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
        values = {
            "GIT_TERMINAL_PROMPT": "0",
            "SOURCE": SOURCE,
            "REPOSITORY": str(self.repository),
            "REF": fields.words(self.commit) or str(self.ref),
        }
        if with_ca:
            values["CA"] = f"{CA}/{CA_KEY}"
        env = [k8s.V1EnvVar(name=name, value=value) for name, value in values.items()]
        options = []
        if (secret := fields.words(self.git_secret)) is not None:
            options = ["-c", f"credential.helper={CREDENTIAL_HELPER}"]
            for name in ("username", "password"):
                reference = k8s.V1SecretKeySelector(name=secret, key=name)
                source = k8s.V1EnvVarSource(secret_key_ref=reference)
                env.append(k8s.V1EnvVar(name=f"GIT_{name.upper()}", value_from=source))
        return k8s.V1Container(
            name="clone",
            image=str(self.git_image),
            command=["sh", "-euc", CLONE, "clone", *options],
            env=env,
            resources=self._resources(),
            termination_message_policy="FallbackToLogsOnError",
            volume_mounts=mounts,
            security_context=k8s.V1SecurityContext(
                allow_privilege_escalation=False,
                capabilities=k8s.V1Capabilities(drop=["ALL"]),
                read_only_root_filesystem=True,
            ),
        )

    def _build_arguments(self, with_ca: bool) -> list[str]:
        context = f"{SOURCE}/{self.directory}"
        more = ["--secret", f"id=ca,src={CA}/{CA_KEY}"] if with_ca else []
        for argument in fields.globs(self.build_arguments):
            more += ["--opt", f"build-arg:{argument}"]
        if (cache := fields.words(self.cache)) is not None:
            more += ["--import-cache", f"type=registry,ref={cache}"]
            more += ["--export-cache", f"type=registry,ref={cache},mode=max"]
        return [
            "build", "--frontend", "dockerfile.v0", "--progress", "plain",
            "--local", f"context={context}", "--local", f"dockerfile={context}",
            "--opt", f"filename={self.dockerfile}", *more,
            "--output", f"type=image,name={self.target_image},push=true",
        ]  # fmt: skip

    def _build_environment(self, with_ca: bool) -> list[k8s.V1EnvVar]:
        # Without it BuildKit asks for a process namespace, which only privileged pods may have.
        env = {"BUILDKITD_FLAGS": "--oci-worker-no-process-sandbox"}
        if with_ca:
            env["SSL_CERT_DIR"] = CA  # beside the system's own file (Go's crypto/x509)
        return [k8s.V1EnvVar(name=name, value=value) for name, value in env.items()]
