"""A real Kubernetes API server with its etcd, on free ports of this machine (make test-cluster).

As controller-runtime's envtest does it, from the same directory KUBEBUILDER_ASSETS: nothing else
of Kubernetes runs, so objects stay as the tests put them.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trustme
import urllib3

from imece.process import follow_parent
from tests import schemas
from tests.api_server import (
    GRANTED,
    KEDA_VERSION,
    METRIC,
    METRICS,
    NAMESPACE,
    NAMESPACES,
    NODE,
    SCALED_OBJECTS,
    USER,
    ApiServer,
    Handler,
    HttpsServer,
    Object,
)

START = 60.0
"""Seconds that the start may take."""

RBAC = "/apis/rbac.authorization.k8s.io/v1"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CRD = f"{CRDS}/scaledobjects.keda.sh"

AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    # Written before a request is answered, or refused as nobody's.
    "omitStages": ["ResponseComplete"],
    "rules": [
        {"level": "None", "userGroups": ["system:masters"]},  # the tests, and the server itself
        {"level": "Metadata"},
    ],
}


def _open(schema: Any) -> Any:
    """A schema that is kept there, as KEDA's authors have written it."""
    if not isinstance(schema, dict):
        return schema
    return {
        key: _open(value)
        for key, value in schema.items()
        if key != "$comment" and not (key == "additionalProperties" and value is False)
    }


RESOURCE_DEFINITION: Object = {
    "metadata": {
        "name": "scaledobjects.keda.sh",
        "labels": {"app.kubernetes.io/version": KEDA_VERSION},
    },
    "spec": {
        "group": "keda.sh",
        "scope": "Namespaced",
        "names": {
            "kind": "ScaledObject",
            "listKind": "ScaledObjectList",
            "plural": "scaledobjects",
            "singular": "scaledobject",
        },
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": _open(schemas.read("keda-scaledobject"))},
            }
        ],
    },
}
"""KEDA's, as far as tests/schemas keeps it."""


class ControlPlane:
    """etcd and kube-apiserver, with KEDA's resource definition and a user of the tests.

    Args:
        assets: the directory with both programs.
        folder: an empty one, for data, logs and keys.
    """

    def __init__(self, assets: Path, folder: Path) -> None:
        self.serves: ApiServer
        """The test's, which says what KEDA and the kubelet answer."""
        self.ca = trustme.CA()
        self.audit = folder / "audit.log"
        self.port = _free_port()
        self._folder = folder
        self._admin = secrets.token_hex()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._others = HttpsServer(_handler(self), self.ca.issue_cert("localhost"))
        store, peers = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
        self._start(
            str(assets / "etcd"),
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={store}",
            f"--advertise-client-urls={store}",
            f"--listen-peer-urls={peers}",
            "--unsafe-no-fsync",
        )
        certificate = self.ca.issue_cert("localhost")
        for name, blob in {
            "ca.crt": self.ca.cert_pem,
            "server.crt": certificate.cert_chain_pems[0],
            "server.key": certificate.private_key_pem,
        }.items():
            blob.write_to_path(folder / name)
        (folder / "audit.json").write_text(json.dumps(AUDIT))
        (folder / "tokens.csv").write_text(f"{self._admin},admin,admin,system:masters\n")
        self._start(
            str(assets / "kube-apiserver"),
            f"--etcd-servers={store}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={folder}",
            f"--tls-cert-file={folder / 'server.crt'}",
            f"--tls-private-key-file={folder / 'server.key'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder / 'server.key'}",
            f"--service-account-signing-key-file={folder / 'server.key'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none",
            # It would keep claims until a controller has seen that no pod mounts them.
            "--disable-admission-plugins=StorageObjectInUseProtection",
            f"--audit-policy-file={folder / 'audit.json'}",
            f"--audit-log-path={self.audit}",
        )
        self._http = urllib3.PoolManager(
            ca_certs=str(folder / "ca.crt"), headers={"Authorization": f"Bearer {self._admin}"}
        )
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        self.wait(lambda: self.asks("/readyz"), "to start", START)
        for name in NAMESPACES:
            self.create("/api/v1/namespaces", {"metadata": {"name": name}})
        self.make_crd()
        accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
        for name in ("default", "someone"):  # pods have the first one
            self.create(accounts, {"metadata": {"name": name}})
        answer = self.request("POST", f"{accounts}/someone/token", {"spec": {}})
        self.token: str = answer["status"]["token"]
        self.granted: frozenset[str] = frozenset()
        group = {"apiGroup": "rbac.authorization.k8s.io"}
        self.create(f"{RBAC}/clusterroles", {"metadata": {"name": "someone"}, "rules": []})
        binding = {
            "metadata": {"name": "someone"},
            "roleRef": {**group, "kind": "ClusterRole", "name": "someone"},
            "subjects": [{"kind": "ServiceAccount", "name": "someone", "namespace": NAMESPACE}],
        }
        self.create(f"{RBAC}/clusterrolebindings", binding)
        self.grant(GRANTED)
        self._serve_metrics()
        self._serve_logs()

    def _serve_metrics(self) -> None:
        """Lets the server pass requests for KEDA's metrics on, as KEDA's APIService does."""
        spec: Object = {
            "type": "ExternalName",
            "externalName": "localhost",
            "ports": [{"port": self._others.port}],
        }
        service = {"metadata": {"name": "metrics"}, "spec": spec}
        self.create("/api/v1/namespaces/keda/services", service)
        group, version = METRICS.split("/")[2:]
        where = {"name": "metrics", "namespace": "keda", "port": self._others.port}
        spec = {
            "group": group,
            "version": version,
            "service": where,
            "insecureSkipTLSVerify": True,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        }
        self.create(
            "/apis/apiregistration.k8s.io/v1/apiservices",
            {"metadata": {"name": f"{version}.{group}"}, "spec": spec},
        )
        self.wait(lambda: self.asks(METRICS), "to know KEDA's metrics")

    def _serve_logs(self) -> None:
        """Lets the server ask for logs, as it asks a node's kubelet."""
        self.create("/api/v1/nodes", {"metadata": {"name": NODE}})
        address = {"type": "InternalIP", "address": "127.0.0.1"}
        kubelet = {"kubeletEndpoint": {"Port": self._others.port}}
        status = {"addresses": [address], "daemonEndpoints": kubelet}
        self.request("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status})

    def make_crd(self) -> None:
        self.create(CRDS, RESOURCE_DEFINITION)
        self.wait(lambda: self.asks(SCALED_OBJECTS), "to know ScaledObjects")

    def grant(self, rights: frozenset[str]) -> None:
        """Gives the tests' user these rights and no others, and waits until it is so."""
        if rights == self.granted:
            return
        rules = [_rule(right) for right in sorted(rights)]
        self.request("PATCH", f"{RBAC}/clusterroles/someone", {"rules": rules})
        for right in rights ^ self.granted:
            self.wait(lambda right=right: self._has(right) == (right in rights), "to see a right")
        self.granted = rights

    def _has(self, right: str) -> bool:
        rule = _rule(right)
        resource, _, subresource = rule["resources"][0].partition("/")
        wanted = {
            "namespace": NAMESPACE,
            "verb": rule["verbs"][0],
            "group": rule["apiGroups"][0],
            "resource": resource,
            "subresource": subresource,
        }
        reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        answer = self.create(reviews, {"spec": {"user": USER, "resourceAttributes": wanted}})
        return bool(answer["status"]["allowed"])

    # Requests, by an admin

    def request(self, method: str, path: str, body: Object | None = None) -> Object:
        """The answer. Any but 200, 201, 202 raises a LookupError with status and text."""
        kind = "merge-patch+json" if method == "PATCH" else "json"
        answer = self._http.request(
            method,
            f"https://localhost:{self.port}{path}",
            body=None if body is None else json.dumps(body),
            headers={**self._http.headers, "Content-Type": f"application/{kind}"},
            retries=False,
            timeout=10.0,
        )
        text = answer.data.decode()
        if answer.status not in (200, 201, 202):
            raise LookupError(answer.status, f"{method} {path}: {text}")
        found: Object = json.loads(text) if text.startswith("{") else {}
        return found

    def create(self, path: str, body: Object) -> Object:
        """Makes an object, unless there is one of this name."""
        try:
            return self.request("POST", path, body)
        except LookupError as error:
            if error.args[0] != 409:
                raise
            return {}

    def delete(self, path: str) -> None:
        """Deletes an object, if it is there."""
        try:
            self.request("DELETE", path, {"gracePeriodSeconds": 0})
        except LookupError as error:
            if error.args[0] != 404:
                raise

    def asks(self, path: str) -> bool:
        """Whether the server answers such a request."""
        with suppress(LookupError, urllib3.exceptions.HTTPError):
            self.request("GET", path)
            return True
        return False

    def wait(self, condition: Any, what: str, timeout: float = 20.0) -> None:
        from tests.conftest import until

        def holds() -> bool:
            for name, process in self._processes.items():
                log = (self._folder / f"{name}.log").read_text()
                assert process.poll() is None, f"{name} has ended: {log[-1000:]}"
            return bool(condition())

        until(holds, f"the API server {what}; see {self._folder}", timeout)

    # Processes

    def _start(self, program: str, *options: str) -> None:
        name = Path(program).name
        log = self._folder / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [program, *options],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                preexec_fn=partial(follow_parent, os.getpid(), signal.SIGKILL),  # noqa: PLW1509
            )
        self._processes[name] = process

    def close(self) -> None:
        for process in reversed(self._processes.values()):
            process.kill()  # nobody reads its data
            process.wait()
        self._others.close()
        self._http.clear()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _rule(right: str) -> Object:
    """A right in words, as a rule of RBAC."""
    verb, _, what = right.partition(" ")
    what, _, subresource = what.partition("/")
    resource, _, group = what.partition(".")
    resource += f"/{subresource}" if subresource else ""
    return {"verbs": [verb], "apiGroups": [group], "resources": [resource]}


def _handler(plane: ControlPlane) -> type[Handler]:
    """KEDA's metrics server and a node's kubelet, as the API server sees them."""
    resources = {"kind": "APIResourceList", "groupVersion": METRICS.removeprefix("/apis/")}

    class Ours(Handler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path == METRIC:
                self.say(*plane.serves.keda.answer())
            elif path == METRICS:
                self.say(200, {**resources, "resources": []})
            elif path.startswith(f"/containerLogs/{NAMESPACE}/"):
                self.say(200, plane.serves.logs.get(path.split("/")[3], ""))
            else:
                self.say(404, "")

    return Ours
