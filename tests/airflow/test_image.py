"""The pod that builds an image: what it asks for, its scripts, and what comes of it."""

import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
import yaml
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client import ApiException
from kubernetes.client import models as k8s

from imece_producer.airflow import ImeceImageOperator
from imece_producer.airflow.image import BUILD, CLONE, by_digest
from tests.airflow.conftest import dag_named, rendered
from tests.conftest import ROOT

DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = "registry.example.com/team/imece-worker"


def image_task(**params: Any) -> ImeceImageOperator:
    dag = dag_named("build_worker_image")
    values = {name: param.value for name, param in dag.params.items()}
    task: ImeceImageOperator = rendered(dag, "build", values | params)
    return task


def pod(**params: Any) -> dict[str, Any]:
    made: dict[str, Any] = image_task(**params).build_pod_request_obj().to_dict()
    return made


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"] if one["value"] is not None}


@pytest.mark.usefixtures("kubernetes")
def test_an_image_is_built_without_root_with_credentials_from_secrets() -> None:
    spec = pod(git_secret="git", ca_config_map="our-ca", pull_secret="pull", ref="1.10")["spec"]
    [clone], [build] = spec["init_containers"], spec["containers"]
    assert environment(clone) == {
        "GIT_TERMINAL_PROMPT": "0",
        "SOURCE": "/workspace/source",
        "REPOSITORY": "https://git.example.com/team/processor.git",
        "REF": "1.10",
        "CA": "/ca/ca.crt",
    }
    assert clone["command"][:4] == ["sh", "-euc", CLONE, "clone"]
    assert clone["command"][4] == "-c"
    secrets = [one["value_from"] for one in clone["env"] if one["value_from"]]
    assert {one["secret_key_ref"]["name"] for one in secrets} == {"git"}
    assert build["command"] == ["sh", "-euc", BUILD, "build"]
    assert build["args"][-1] == f"type=image,name={IMAGE}:latest,push=true"
    assert "id=ca,src=/ca/ca.crt" in build["args"]
    assert environment(build)["DOCKER_CONFIG"] == "/run/secrets/registry"
    assert environment(build)["SSL_CERT_DIR"] == "/ca"
    volumes = {one["name"]: one for one in spec["volumes"]}
    assert volumes["registry"]["secret"]["secret_name"] == "registry-credentials"
    assert volumes["ca"]["config_map"]["name"] == "our-ca"
    assert spec["image_pull_secrets"] == [{"name": "pull"}]
    assert spec["security_context"]["run_as_user"] == 1000
    assert not any(one["security_context"].get("privileged") for one in (clone, build))


@pytest.mark.usefixtures("kubernetes")
def test_an_image_without_credentials_or_ca_asks_for_none() -> None:
    spec = pod(registry_secret=None)["spec"]
    assert {one["name"] for one in spec["volumes"]} == {"tmp", "workspace", "buildkit"}
    assert len(spec["init_containers"][0]["command"]) == 4
    assert "CA" not in environment(spec["init_containers"][0])
    assert "--secret" not in spec["containers"][0]["args"]


@pytest.mark.usefixtures("kubernetes")
def test_place_resources_arguments_commit_and_cache_are_params() -> None:
    made = pod(
        namespace="builds",
        service_account="builder",
        cpu="3",
        memory="8Gi",
        storage="30Gi",
        build_arguments=["BASE=python:3.13", "EMPTY="],
        commit="c" * 40,
        cache=f"{IMAGE}:cache",
    )
    spec = made["spec"]
    [clone], [build] = spec["init_containers"], spec["containers"]
    assert made["metadata"]["namespace"] == "builds"
    assert spec["service_account_name"] == "builder"
    wanted = {"cpu": "3", "memory": "8Gi", "ephemeral-storage": "30Gi"}
    for container in (clone, build):
        assert container["resources"]["requests"] == container["resources"]["limits"] == wanted
    assert environment(clone)["REF"] == "c" * 40
    said = " ".join(build["args"])
    assert "--opt build-arg:BASE=python:3.13 --opt build-arg:EMPTY=" in said
    assert f"--import-cache type=registry,ref={IMAGE}:cache" in said
    assert f"--export-cache type=registry,ref={IMAGE}:cache,mode=max" in said
    plain = pod(namespace=None, service_account=None)
    assert plain["metadata"]["namespace"] == "imece"  # the connection's
    assert plain["spec"]["service_account_name"] is None


def test_the_start_up_timeout_is_a_param() -> None:
    assert image_task(startup_timeout=42).startup_timeout == "42"


# What comes of it


class Pushed:
    """Stands for a task instance: what it was told to keep."""

    def __init__(self) -> None:
        self.value: Any = None

    def xcom_push(self, key: str, value: Any) -> None:
        assert key == "return_value"
        self.value = value


def ended(message: str | None) -> k8s.V1Pod:
    """A pod whose build has ended and left this."""
    state = k8s.V1ContainerState(terminated=k8s.V1ContainerStateTerminated(exit_code=0))
    state.terminated.message = message
    container = k8s.V1ContainerStatus(
        name="base", image="image", image_id="", ready=False, restart_count=0, state=state
    )
    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(name="pod", namespace="imece"),
        status=k8s.V1PodStatus(phase="Succeeded", container_statuses=[container]),
    )


@pytest.mark.usefixtures("kubernetes")
@pytest.mark.parametrize("deferrable", [True, False])
def test_the_xcom_is_the_image_by_its_digest(
    monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    def run(task: ImeceImageOperator, *arguments: Any) -> None:
        metadata = {"containerimage.digest": DIGEST, "image.name": f"{IMAGE}:latest"}
        task.cleanup(ended(None), ended(json.dumps(metadata)))

    cleaned: list[k8s.V1Pod] = []
    monkeypatch.setattr(KubernetesPodOperator, "execute", run)
    monkeypatch.setattr(KubernetesPodOperator, "trigger_reentry", run)
    monkeypatch.setattr(
        KubernetesPodOperator, "cleanup", lambda task, local, remote: cleaned.append(remote)
    )
    task, told = image_task(), Pushed()
    if deferrable:
        task.trigger_reentry({"ti": told}, {"status": "success"})
    else:
        task.execute({"ti": told})
    assert told.value == f"{IMAGE}@{DIGEST}"
    assert len(cleaned) == 1


@pytest.mark.usefixtures("kubernetes")
def test_a_build_whose_digest_nobody_has_read_is_no_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(KubernetesPodOperator, "trigger_reentry", lambda *arguments: None)
    with pytest.raises(AirflowException, match="its pod went before its digest was read"):
        image_task().trigger_reentry({"ti": Pushed()}, {"status": "success"})


def test_a_digest_is_rolled_out_without_a_build() -> None:
    told = Pushed()
    image_task(digest=DIGEST).execute({"ti": told})
    assert told.value == f"{IMAGE}@{DIGEST}"
    roll_out = dag_named("build_worker_image").get_task("roll_out")
    assert str(roll_out.image) == str(dag_named("build_worker_image").get_task("build").output)
    assert roll_out.upstream_task_ids == {"build"}


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("r.example/a/b:1", "r.example/a/b"),
        ("r.example:5000/a/b", "r.example:5000/a/b"),
        ("r.example:5000/a/b:1", "r.example:5000/a/b"),
        ("b:1@sha256:00", "b"),
    ],
)
def test_an_image_by_its_digest_has_no_tag(image: str, name: str) -> None:
    assert by_digest(image, DIGEST) == f"{name}@{DIGEST}"


# What a cluster says


@pytest.mark.usefixtures("kubernetes")
@pytest.mark.parametrize(
    ("said", "kind", "remedy"),
    [
        ('violates PodSecurity "restricted:latest"', AirflowFailException, "deploy/build/plain"),
        (
            "unable to validate against any security context constraint",
            AirflowFailException,
            "deploy/build/openshift",
        ),
        ("exceeded quota: team, requested: memory=4Gi", AirflowException, ""),
        ('User "x" cannot create resource "pods"', AirflowFailException, ""),
    ],
)
def test_a_pod_that_is_refused_is_a_sentence_that_says_what_helps(
    monkeypatch: pytest.MonkeyPatch, said: str, kind: type[Exception], remedy: str
) -> None:
    def refuse(*arguments: Any) -> None:
        error = ApiException(status=403, reason="Forbidden")
        error.body = json.dumps({"kind": "Status", "message": f'pods "x" is forbidden: {said}'})
        raise error

    monkeypatch.setattr(KubernetesPodOperator, "get_or_create_pod", refuse)
    task = image_task()
    with pytest.raises(kind) as caught:
        task.get_or_create_pod(task.build_pod_request_obj(), {})
    assert type(caught.value) is kind
    assert f'namespace imece-build refuses the pod: pods "x" is forbidden: {said}' in str(
        caught.value
    )
    assert remedy in str(caught.value)
    assert ("deploy/build" in str(caught.value)) == bool(remedy)


@pytest.mark.usefixtures("kubernetes")
def test_the_manifest_allows_what_the_pod_asks_for_and_no_more() -> None:
    spec = pod(ca_config_map="our-ca")["spec"]
    asked, build = spec["security_context"], spec["containers"][0]["security_context"]
    folder = ROOT / "deploy" / "build"
    scc, role, _ = yaml.safe_load_all((folder / "openshift" / "scc.yaml").read_text())
    assert scc["runAsUser"]["uid"] == asked["run_as_user"] == asked["fs_group"]
    assert scc["allowPrivilegeEscalation"] is build["allow_privilege_escalation"] is True
    assert scc["seccompProfiles"] == [build["seccomp_profile"]["type"].lower()]
    kinds = {
        next(kind for kind, value in one.items() if kind != "name" and value is not None)
        for one in spec["volumes"]
    }
    assert {kind.replace("_m", "M").replace("_d", "D") for kind in kinds} == set(scc["volumes"])
    assert not any(value for name, value in scc.items() if name.startswith("allowHost"))
    assert not scc["allowPrivilegedContainer"]
    namespace = yaml.safe_load((folder / "plain" / "namespace.yaml").read_text())
    # Each of these is forbidden by `baseline`, or by `restricted`.
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    params = dag_named("build_worker_image").params
    assert params["namespace"] == namespace["metadata"]["name"] == role["metadata"]["namespace"]
    [account, *_] = yaml.safe_load_all((folder / "plain" / "serviceaccount.yaml").read_text())
    assert params["service_account"] == account["metadata"]["name"]


# The scripts, run here


class GitHost:
    """Serves repositories by HTTPS, as any git host does, with a certificate of a CA of its own."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca = folder / "ca.crt"
        authority.cert_pem.write_to_path(str(self.ca))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                done = subprocess.run(
                    ["git", "http-backend"],
                    input=self.rfile.read(length),
                    env={
                        **os.environ,
                        "GIT_PROJECT_ROOT": str(folder),
                        "GIT_HTTP_EXPORT_ALL": "1",
                        "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                        "PATH_INFO": parts.path,
                        "QUERY_STRING": parts.query,
                        "REQUEST_METHOD": self.command,
                        "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                        "CONTENT_LENGTH": str(length),
                    },
                    capture_output=True,
                    check=True,
                )
                head, _, body = done.stdout.partition(b"\r\n\r\n")
                self.send_response(200)
                for line in head.decode().splitlines():
                    name, _, value = line.partition(": ")
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"https://localhost:{self._server.server_port}/processor.git"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def git(folder: Path, *arguments: str) -> str:
    person = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    command = ["git", "-C", str(folder), *person, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GitHost]:
    made = GitHost(tmp_path)
    yield made
    made.close()


@pytest.fixture
def commits(host: GitHost, tmp_path: Path) -> list[str]:
    """Two commits on main; the first has the tag 1.0."""
    folder = tmp_path / "processor.git"
    git(tmp_path, "init", "--quiet", "--initial-branch", "main", str(folder))
    made = []
    for number in (1, 2):
        (folder / "Dockerfile").write_text(f"FROM base:{number}\n")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", f"number {number}")
        made.append(git(folder, "rev-parse", "HEAD"))
    git(folder, "tag", "1.0", made[0])
    return made


def clone(host: GitHost, folder: Path, **values: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {"SOURCE": str(folder / "source"), "REPOSITORY": host.address, "CA": str(host.ca)}
    return subprocess.run(
        ["sh", "-euc", CLONE, "clone"],
        env=env | values,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("ref", ["main", "1.0", "commit"])
def test_a_branch_a_tag_and_a_commit_are_cloned(
    host: GitHost, commits: list[str], tmp_path: Path, ref: str
) -> None:
    done = clone(host, tmp_path, REF=commits[0] if ref == "commit" else ref)
    assert done.returncode == 0, done.stderr
    wanted = commits[1 if ref == "main" else 0]
    assert f"building {wanted}" in done.stdout
    assert git(tmp_path / "source", "rev-parse", "HEAD") == wanted


def test_a_private_ca_stands_beside_the_public_ones(
    host: GitHost, commits: list[str], tmp_path: Path
) -> None:
    assert clone(host, tmp_path, REF="main", CA="").returncode != 0  # the public ones alone
    public = next(
        path
        for path in map(Path, ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem"))
        if path.exists()
    )
    other = tmp_path / "other"
    other.mkdir()
    assert clone(host, other, REF="main").returncode == 0
    trusted = (other / "source.crt").read_text()
    assert trusted == public.read_text() + "\n" + host.ca.read_text()


def test_the_build_leaves_its_digest_where_kubernetes_shows_it(tmp_path: Path) -> None:
    stand_in = tmp_path / "buildctl-daemonless.sh"
    stand_in.write_text(
        '#!/bin/sh\nwhile [ "$1" != --metadata-file ]; do shift; done\n'
        f"printf '%s' '{json.dumps({'containerimage.digest': DIGEST}, indent=2)}' >\"$2\"\n"
    )
    stand_in.chmod(0o755)
    script = BUILD.replace("/tmp/", f"{tmp_path}/").replace("/dev/", f"{tmp_path}/")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-euc", script, "build", "build", "--opt", "a b"], env=env, check=True)
    assert DIGEST in (tmp_path / "termination-log").read_text()
