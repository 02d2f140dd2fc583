"""The way to a cluster, and the one sentence for each way it can be barred: the cause, the fix.

Over real TLS. A server that answers as none should is the stand-in.
"""

import base64
import importlib
import json
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from imece.errors import ServiceError, SettingsError
from imece.settings import load
from imece_producer.cluster import client as module
from imece_producer.cluster import kubeconfig, scaling
from imece_producer.cluster.client import ClusterError, connect
from imece_producer.cluster.rights import READ_DEPLOYMENT, READ_LOG, RIGHTS, Right
from tests.api_server import SCALED_OBJECT, USER, ApiServer
from tests.conftest import ROOT
from tests.kubernetes_stand_in import StandIn


def limit(**settings: Any) -> int:
    """The limit of the cluster the settings and KUBECONFIG name."""
    with connect(load(**settings)) as found:
        return scaling.read(found).limit


def refusal(**settings: Any) -> str:
    """What a person reads when the cluster cannot be had."""
    with pytest.raises(ServiceError) as error:
        limit(**settings)
    return checked(error.value)


def misfit(**settings: Any) -> str:
    """What a person reads when no cluster is configured, or badly."""
    with pytest.raises(SettingsError) as error:
        limit(**settings)
    return checked(error.value)


def checked(error: ServiceError | SettingsError) -> str:
    text = str(error)
    assert error.hint, text
    assert "\n" not in text
    assert "eyJ" not in text  # as every token begins
    return text


def use(monkeypatch: pytest.MonkeyPatch, cluster: ApiServer, tmp_path: Path, **how: Any) -> None:
    """Makes KUBECONFIG name the server in another way."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "other", **how)))


def jwt(expires: float) -> str:
    def part(content: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    return f"{part({'alg': 'none'})}.{part({'exp': expires})}.c2lnbmF0dXJl"


# The way


def test_a_kubeconfig_leads_there_and_it_is_said_by_which_way(cluster: ApiServer) -> None:
    with connect(load()) as found:
        assert scaling.read(found).limit == 20
        assert str(found) == (
            f"namespace imece of {cluster.url}, by the context village of "
            f"{found.access.how.rpartition(' ')[2]}"
        )


def test_the_context_can_be_chosen(cluster: ApiServer, tmp_path: Path) -> None:
    text = misfit(kube_context="town")
    assert "has no context town" in text
    assert text.endswith("it has: village")
    assert limit(kube_context="village") == 20


def test_several_kubeconfigs_count_as_one(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"
    first.write_text("apiVersion: v1\nkind: Config\nclusters: []\nusers: []\ncontexts: []\n")
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'kubeconfig'}")
    assert limit() == 20


def test_without_a_current_context_one_must_be_named(cluster: ApiServer, tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(file.read_text().replace("current-context: village", ""))
    assert "has no current context: name one with --context" in misfit()
    assert limit(kube_context="village") == 20


@pytest.fixture
def pod(cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes this process look like one in a pod; the directory of its service account."""
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text(cluster.token)
    (folder / "namespace").write_text("imece")
    cluster.ca.cert_pem.write_to_path(folder / "ca.crt")
    monkeypatch.setenv("IMECE_SERVICE_ACCOUNT_DIR", str(folder))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
    return folder


def test_in_a_pod_the_service_account_leads_there(
    pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with connect(load()) as found:
        assert found.access.in_pod
        assert found.access.how == "this pod's service account"
        assert scaling.read(found).limit == 20


def test_in_a_pod_a_named_context_wins(pod: Path) -> None:
    with connect(load(kube_context="village")) as found:
        assert not found.access.in_pod
        assert scaling.read(found).limit == 20


def test_a_pod_with_an_empty_token_says_so(pod: Path) -> None:
    (pod / "token").write_text("")
    text = misfit()
    assert "service account cannot be used" in text
    assert str(pod) in text


def test_a_cluster_is_meant_only_in_a_pod_or_where_a_setting_names_it(
    cluster: ApiServer, request: pytest.FixtureRequest
) -> None:
    assert not kubeconfig.is_named(load())
    assert kubeconfig.is_named(load(kube_context="village"))
    assert kubeconfig.is_named(load(kube_namespace="imece"))
    request.getfixturevalue("pod")
    assert kubeconfig.is_named(load())


def test_the_namespace_is_the_settings_else_the_contexts_else_default(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def namespace(**settings: str) -> str:
        with connect(load(**settings)) as found:
            return found.namespace

    assert namespace(kube_namespace="other") == "other"
    assert namespace() == "imece"
    use(monkeypatch, cluster, tmp_path, namespace=None)
    assert namespace() == "default"


# No way


def test_no_configuration_at_all() -> None:
    text = misfit()
    assert text.startswith("no cluster configuration found: this is not a pod")
    assert "service host/port is not set" in text
    assert "name one in KUBECONFIG" in text


def test_a_pod_whose_environment_was_cleared(pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    text = misfit()
    assert (
        "looks like a pod, but the service host/port is not set (KUBERNETES_SERVICE_HOST)" in text
    )
    assert "cleared the environment" in text


def test_a_pod_without_a_token(pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    (pod / "token").unlink()
    text = misfit()
    assert "a pod without a service account token" in text
    assert "automountServiceAccountToken: true" in text


@pytest.mark.parametrize("content", ["", "}{", "[]", "clusters: 3"])
def test_a_kubeconfig_that_is_none(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "broken"))
    assert str(tmp_path / "broken") in misfit()


def test_a_kubeconfig_that_names_a_file_that_is_gone(cluster: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig.ca").unlink()
    text = misfit()
    assert "kubeconfig.ca" in text
    assert "kubectl --context village get pods" in text


# Programs that log in


def plugin(folder: Path, *lines: str) -> dict[str, Any]:
    """A user who logs in by a program."""
    program = folder / "log-in"
    program.write_text("\n".join([f"#!{sys.executable}", "import sys", *lines]))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"command": str(program), "apiVersion": version, "interactiveMode": "Never"}}


def test_a_program_may_fetch_the_token(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": cluster.token},
    }
    user = plugin(tmp_path, f"print({json.dumps(answer)!r})")
    use(monkeypatch, cluster, tmp_path, user=user)
    assert limit() == 20


def test_a_program_that_is_not_installed(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = plugin(tmp_path)
    user["exec"]["command"] = "some-cloud-auth"
    use(monkeypatch, cluster, tmp_path, user=user)
    text = misfit()
    assert "logs in by the program some-cloud-auth, which is not here: install" in text
    user["exec"]["installHint"] = "get it from\nthe cloud"
    use(monkeypatch, cluster, tmp_path, user=user)
    assert misfit().endswith("which is not here: get it from the cloud")


def test_a_program_that_fails(
    cluster: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    user = plugin(tmp_path, "sys.exit('your session has ended')")
    use(monkeypatch, cluster, tmp_path, user=user)
    text = misfit()
    assert "failed (exec: process returned 1. your session has ended)" in text
    assert "log in again" in text
    assert capfd.readouterr() == ("", "")


# Not let in


def test_a_token_that_has_expired_says_since_when(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = jwt(time.time() - 3 * 3600 - 30)
    use(monkeypatch, cluster, tmp_path, user={"token": token})
    text = refusal()
    assert "the token has expired 3 h 00 min ago" in text
    assert "(401): log in again" in text
    assert token not in text


@pytest.mark.parametrize("token", ["sha256~opaque", jwt(4e9), "a.b.c", ".."])
def test_any_other_token_that_is_not_accepted(
    token: str, cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cluster, tmp_path, user={"token": token})
    text = refusal()
    assert "its token is not valid, or no longer (401): log in again" in text
    assert token not in text


@pytest.mark.parametrize("token", ["a line's end\n", "two\nlines", "snow☃"])
def test_a_token_that_cannot_be_one_is_not_shown(
    token: str, cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library would raise an error with the token in it."""
    (tmp_path / "token").write_text(token)
    use(monkeypatch, cluster, tmp_path, user={"tokenFile": str(tmp_path / "token")})
    text = misfit()
    assert "has a line break, or a character that no token has: write it anew" in text
    assert "snow" not in text


def test_no_token_at_all(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cluster, tmp_path, user={})
    said = "there is no token; a client certificate, if there is one, may have expired (403)"
    assert said in refusal()
    with connect(load()) as found, pytest.raises(ClusterError, match="there is no token"):
        found.has_right(READ_LOG)


def test_a_pods_token_that_is_not_accepted(pod: Path) -> None:
    (pod / "token").write_text("revoked")
    text = refusal()
    assert "does not accept this pod's service account" in text
    assert "delete the pod" in text


def test_a_missing_right_is_named_with_the_role_that_grants_it(cluster: ApiServer) -> None:
    cluster.forbid(str(READ_DEPLOYMENT))
    text = refusal()
    assert f"no right to get deployments.apps in namespace imece for {USER}" in text
    assert "Role imece-producer" in text


# TLS


def test_a_private_ca_can_be_named_without_touching_the_kubeconfig(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cluster, tmp_path, trusted=False)
    text = refusal()
    assert "certificate verify failed (" in text
    assert text.endswith("name the file with its CA in IMECE_KUBE_CA_FILE")
    ca = tmp_path / "our-ca.pem"
    with pytest.raises(SettingsError, match=f"there is no file {ca}"):
        limit(kube_ca_file=ca)
    ca.write_text("no certificate")
    assert f"IMECE_KUBE_CA_FILE: {ca} holds no certificate" in misfit(kube_ca_file=ca)
    cluster.ca.cert_pem.write_to_path(ca)
    assert limit(kube_ca_file=ca) == 20


def test_a_named_ca_is_checked_even_where_the_kubeconfig_would_not(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.kubeconfig(tmp_path / "careless", trusted=False)
    file.write_text(
        file.read_text().replace("server:", "insecure-skip-tls-verify: true\n    server:")
    )
    monkeypatch.setenv("KUBECONFIG", str(file))
    other = tmp_path / "other-ca.pem"
    trustme.CA().cert_pem.write_to_path(other)
    assert "certificate verify failed" in refusal(kube_ca_file=other)


@contextmanager
def at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: StandIn, **how: Any
) -> Iterator[StandIn]:
    made.deploy()
    use(monkeypatch, made, tmp_path, **how)
    try:
        yield made
    finally:
        made.close()


def test_a_certificate_that_has_expired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with at(monkeypatch, tmp_path, StandIn(until=datetime(2021, 1, 1))):
        text = refusal()
    assert "certificate verify failed (certificate has expired): check this machine's clock" in text


def test_a_certificate_for_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with at(monkeypatch, tmp_path, StandIn("kubernetes.example")):
        text = refusal()
    assert "ostname mismatch" in text
    assert "must be a name that is in the certificate" in text


def test_a_server_that_speaks_no_tls(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer_plainly(listening: socket.socket) -> None:
        for _ in range(module.TRIES):
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer_plainly, args=(listening,), daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        use(monkeypatch, cluster, tmp_path, server=f"https://localhost:{port}")
        text = refusal()
        thread.join()
    assert "does not speak TLS as it should" in text


# Out of reach


def test_a_port_where_nobody_listens(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    use(monkeypatch, cluster, tmp_path, server=f"https://localhost:{port}")
    assert f"https://localhost:{port} refuses the connection: check that" in refusal()


def test_a_name_that_nobody_knows(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cluster, tmp_path, server="https://kubernetes.invalid:6443")
    assert "the name kubernetes.invalid is not known here: check the kubeconfig's" in refusal()


def test_a_server_that_takes_connections_and_says_nothing(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT", 0.2)
    monkeypatch.setattr(module, "READ", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        use(monkeypatch, cluster, tmp_path, server=f"https://localhost:{port}")
        importlib.import_module("kubernetes.client.api.core_v1_api")  # its seconds do not count
        began = time.monotonic()
        assert "does not answer in time" in refusal()
    assert time.monotonic() - began < 5


def test_a_server_that_never_finishes_an_answer(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ", 0.2)
    over = threading.Event()
    stand_in.before = lambda: over.wait(10)
    try:
        assert "does not answer in time" in refusal()
    finally:
        over.set()
    assert len(stand_in.asked) <= module.TRIES


def test_a_server_that_is_busy_is_asked_again_but_not_for_ever(stand_in: StandIn) -> None:
    asked = []

    def busy_once() -> None:
        asked.append(1)
        stand_in.answers.clear()
        if len(asked) == 1:
            stand_in.answers["get", SCALED_OBJECT] = (503, "overloaded")

    stand_in.before = busy_once
    assert limit() == 20
    stand_in.before = lambda: None
    stand_in.answers["get", SCALED_OBJECT] = (503, "overloaded")
    stand_in.forget()
    text = refusal()
    assert "not able to answer now (503: overloaded): try again" in text
    assert len(stand_in.asked) == module.TRIES


@pytest.mark.parametrize("status", [200, 403, 404])
def test_a_login_page_in_the_way(status: int, stand_in: StandIn) -> None:
    stand_in.answers["get", SCALED_OBJECT] = (status, "<html>log in</html>")
    assert "does not answer as Kubernetes does: a proxy or a login page" in refusal()


# Not there


def test_a_namespace_that_is_not_there_with_those_that_are(cluster: ApiServer) -> None:
    text = refusal(kube_namespace="typo")
    assert "there is no namespace typo in the cluster at" in text
    names = "default, imece, keda, kube-node-lease, kube-public, kube-system, other"
    assert f"there are: {names}: name the right one with --namespace" in text


def test_the_wrong_namespace_says_where_the_object_is(cluster: ApiServer) -> None:
    text = refusal(kube_namespace="other")
    assert (
        "there is no ScaledObject imece-worker in namespace other; there is one in: imece" in text
    )
    assert "--namespace or IMECE_KUBE_NAMESPACE" in text


def test_the_wrong_name_says_which_there_are(cluster: ApiServer) -> None:
    text = refusal(scaled_object="imece-workers")
    assert "no ScaledObject imece-workers in namespace imece; there are: imece-worker" in text
    assert text.endswith("or name another in IMECE_SCALED_OBJECT")
    text = refusal(deployment="x")
    assert "no Deployment x in namespace imece; there are: imece-worker" in text


def test_what_may_not_be_listed_is_not(cluster: ApiServer) -> None:
    cluster.forbid("list scaledobjects.keda.sh", "get namespaces", "list namespaces")
    text = refusal(scaled_object="x")
    assert text.startswith("there is no ScaledObject x in namespace imece: check --namespace")


def test_a_cluster_without_keda(cluster: ApiServer) -> None:
    cluster.remove_keda()
    text = refusal()
    assert "knows no scaledobjects: KEDA is not installed: install KEDA" in text


# Rights


def test_a_right_can_be_asked_for(cluster: ApiServer) -> None:
    cluster.forbid("get pods/log")
    with connect(load()) as found:
        assert [right for right in RIGHTS if not found.has_right(right)] == [READ_LOG]


def test_every_request_names_the_right_it_takes(cluster: ApiServer) -> None:
    """Whoever lacks a right is told its name: so the names must be those that RBAC goes by."""
    cluster.forbid(*map(str, RIGHTS))
    with connect(load()) as found:
        requests: dict[str, Callable[[], object]] = {
            "get scaledobjects.keda.sh": found.scaled_object,
            "patch scaledobjects.keda.sh": lambda: found.change_scaled_object({}),
            "get deployments.apps": found.deployment,
            "patch deployments.apps/scale": lambda: found.change_scale({}),
            "list pods": lambda: found.pods(""),
            "get pods/log": lambda: found.last_log_line("pod", "worker"),
            "list events": lambda: found.warnings("Pod", "pod"),
            "get persistentvolumeclaims": lambda: found.claim("claim"),
            "get horizontalpodautoscalers.autoscaling": lambda: found.autoscaler("hpa"),
        }
        for right, request in requests.items():
            with pytest.raises(ClusterError) as error:
                request()
            assert f"no right to {right} in" in str(error.value)
    listed = "list scaledobjects.keda.sh"  # asked for by the way, when the object is not there
    assert {*requests, listed} == {str(right) for right in RIGHTS}


def test_the_role_in_deploy_grants_every_right_and_no_other() -> None:
    _, role, _ = yaml.safe_load_all((ROOT / "deploy/producer/serviceaccount.yaml").read_text())
    granted = {
        (verb, resource, group)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for group in rule["apiGroups"]
    }

    def needed(right: Right) -> tuple[str, str, str]:
        resource = "/".join(filter(None, (right.resource, right.subresource)))
        return right.verb, resource, right.group

    helpful = {("list", "deployments", "apps")}  # says which names there are, if it may
    assert granted == {needed(right) for right in RIGHTS} | helpful


def test_a_cluster_without_its_client_is_said_with_the_command_that_installs_it(
    tmp_path: Path,
) -> None:
    """In a process in which the package is not there to be found."""
    script = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: "
        "None if name == 'kubernetes' else find(name, *more)\n"
        "from imece_producer.__main__ import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, "pause"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert "pip install 'imece[cluster]'" in ended.stderr
    assert "Traceback" not in ended.stderr
