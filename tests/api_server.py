"""An API server for the tests of a cluster, and the objects that they put into it.

There are two, and most tests run against both: the one in kubernetes_stand_in.py, which every
machine can run, and the one in real_api_server.py (make test-cluster). Neither runs anything: no
controller and no kubelet change an object. Where the two differ, the stand-in is wrong.
"""

import itertools
import json
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme
import yaml

from imece_producer.cluster.rights import ASK_KEDA, CHANGE_DEPLOYMENT, RIGHTS

NAMESPACE = "imece"
NAMESPACES = (
    "default",
    NAMESPACE,
    "keda",
    "kube-node-lease",
    "kube-public",
    "kube-system",
    "other",
)
USER = "system:serviceaccount:imece:someone"

GRANTED = frozenset(
    {
        *map(str, (*RIGHTS, CHANGE_DEPLOYMENT, ASK_KEDA)),
        "get customresourcedefinitions.apiextensions.k8s.io",
        "get namespaces",
        "list namespaces",
        "list deployments.apps",
    }
)
"""What the tests' user may do, in all namespaces; whatever else is forbidden."""

DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
SCALED_OBJECTS = f"/apis/keda.sh/v1alpha1/namespaces/{NAMESPACE}/scaledobjects"
AUTOSCALERS = f"/apis/autoscaling/v2/namespaces/{NAMESPACE}/horizontalpodautoscalers"
CLAIMS = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
DEPLOYMENT = f"{DEPLOYMENTS}/imece-worker"
SCALED_OBJECT = f"{SCALED_OBJECTS}/imece-worker"
AUTOSCALER = f"{AUTOSCALERS}/keda-hpa-imece-worker"
METRICS = "/apis/external.metrics.k8s.io/v1beta1"
METRIC = f"{METRICS}/namespaces/{NAMESPACE}/composite-metric"
NODE = "node"
KEDA_VERSION = "2.20.0"

Object = dict[str, Any]


def labels_of(component: str, pipeline: str = "imece") -> dict[str, str]:
    """Those of a pod. Redis belongs to no pipeline."""
    labels = {"app.kubernetes.io/name": "imece", "app.kubernetes.io/component": component}
    return labels if component == "redis" else {**labels, "app.kubernetes.io/instance": pipeline}


def deployment(replicas: int = 0, ready: int = 0) -> Object:
    """The workers' Deployment."""
    labels = labels_of("worker")
    containers = [{"name": "worker", "image": "imece:1"}]
    return {
        "metadata": {"name": "imece-worker"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
        },
        "status": {"replicas": replicas, "readyReplicas": ready} if ready else {},
    }


def scaled_object(queue: str = "imece", **spec: Any) -> Object:
    """KEDA's object for it, ready and active."""
    keys = (f"rq:queue:{queue}", f"rq:queue:{queue}:intermediate", f"rq:wip:{queue}")
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "imece-worker"},
        "spec": {
            "scaleTargetRef": {"name": "imece-worker"},
            "minReplicaCount": 0,
            "maxReplicaCount": 20,
            "triggers": [{"type": "redis", "metadata": {"listName": key}} for key in keys],
            **spec,
        },
        "status": {
            "hpaName": "keda-hpa-imece-worker",
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "ScaledObjectReady", "message": ""},
                {"type": "Active", "status": "True", "reason": "ScalerActive", "message": ""},
                {"type": "Fallback", "status": "False"},
                {"type": "Paused", "status": "False"},
            ],
        },
    }


def autoscaler() -> Object:
    """What KEDA makes of the ScaledObject, while there are workers."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "imece-worker"}
    selector = {"matchLabels": {"scaledobject.keda.sh/name": "imece-worker"}}
    external = {
        "metric": {"name": "composite-metric", "selector": selector},
        "target": {"type": "AverageValue", "averageValue": "1"},
    }
    return {
        "metadata": {"name": "keda-hpa-imece-worker"},
        "spec": {
            "scaleTargetRef": target,
            "maxReplicas": 20,
            "metrics": [{"type": "External", "external": external}],
        },
        "status": {
            "desiredReplicas": 0,
            "conditions": [
                {"type": "AbleToScale", "status": "True", "reason": "ReadyForNewScale"},
                {"type": "ScalingActive", "status": "True", "reason": "ValidMetricFound"},
            ],
        },
    }


def pod(
    name: str = "imece-worker-1",
    phase: str = "Running",
    *,
    component: str = "worker",
    pipeline: str = "imece",
    claims: tuple[str, ...] = (),
    **status: Any,
) -> Object:
    return {
        "metadata": {"name": name, "labels": labels_of(component, pipeline)},
        "spec": {
            "nodeName": NODE,
            "containers": [{"name": "worker", "image": "imece:1"}],
            "volumes": [volume(claim, claim) for claim in claims],
        },
        "status": {"phase": phase, **status},
    }


def volume(name: str, claim: str) -> Object:
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}


class Keda:
    """What KEDA's metrics server answers the autoscaler.

    Attributes:
        counted: how many bucket jobs.
        failure: status and body, in place of that.
        before: called before it answers.
    """

    def __init__(self) -> None:
        self.counted = "0"
        self.failure: tuple[int, str] | None = None
        self.before: Callable[[], object] = lambda: None

    def answer(self) -> tuple[int, Object | str]:
        self.before()
        item = {"metricName": "", "metricLabels": {}, "value": self.counted}
        item["timestamp"] = "2026-01-01T00:00:00Z"
        group = METRICS.removeprefix("/apis/")
        found = {"kind": "ExternalMetricValueList", "apiVersion": group, "items": [item]}
        return self.failure or (200, found)


class ApiServer(ABC):
    """An API server with one namespace to work in.

    Objects are named by their path. An object's status is part of it, although a real server takes
    it apart.

    Attributes:
        keda: what KEDA answers.
        logs: what a pod's container has written, by the pod's name; a kubelet would know it.
    """

    ca: trustme.CA
    port: int
    token: str

    def __init__(self) -> None:
        self.keda = Keda()
        self.logs: dict[str, str] = {}
        self._numbers = itertools.count()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @abstractmethod
    def put(self, path: str, body: Object) -> None:
        """Makes an object, or another in its place."""

    @abstractmethod
    def change(self, path: str, changes: Object) -> None:
        """Applies a JSON merge patch (RFC 7386)."""

    @abstractmethod
    def delete(self, path: str) -> None: ...

    @abstractmethod
    def read(self, path: str) -> Object: ...

    @abstractmethod
    def forbid(self, *rights: str) -> None:
        """Takes rights from the tests' user, as `patch scaledobjects.keda.sh`; all others are
        granted again."""

    @abstractmethod
    def deny_changes(self, status: int, why: str) -> None:
        """Lets admission deny every change of the ScaledObject."""

    @abstractmethod
    def remove_keda(self) -> None:
        """Removes its resource definition, and with it all ScaledObjects."""

    @abstractmethod
    def set_keda_version(self, version: str) -> None: ...

    @property
    @abstractmethod
    def asked(self) -> list[tuple[str, str]]:
        """Verb and path of every request, in order."""

    @abstractmethod
    def forget(self) -> None:
        """Empties `asked`."""

    @abstractmethod
    def close(self) -> None: ...

    def deploy(self, deployed: Object | None = None, scaled: Object | None = None) -> None:
        """What deploy/ makes, and KEDA of it."""
        self.put(DEPLOYMENT, deployed or deployment())
        self.put(SCALED_OBJECT, scaled or scaled_object())
        self.put(AUTOSCALER, autoscaler())

    def add_pipeline(self, name: str) -> tuple[str, str]:
        """The workers of another pipeline; the paths of their Deployment and ScaledObject."""
        for path in (DEPLOYMENT, SCALED_OBJECT):
            found = self.read(path)
            body = {
                key: found[key] for key in ("apiVersion", "kind", "spec", "status") if key in found
            }
            self.put(f"{path}-{name}", body | {"metadata": {"name": f"imece-worker-{name}"}})
        return f"{DEPLOYMENT}-{name}", f"{SCALED_OBJECT}-{name}"

    @property
    def deployed(self) -> Object:
        return self.read(DEPLOYMENT)

    @property
    def scaled(self) -> Object:
        return self.read(SCALED_OBJECT)

    def annotate(self, notes: dict[str, str]) -> None:
        self.change(SCALED_OBJECT, {"metadata": {"annotations": notes}})

    def patched(self) -> list[str]:
        """The paths that were patched."""
        return [path for verb, path in self.asked if verb == "patch"]

    def add_pods(self, *pods: Object) -> None:
        for one in pods:
            self.put(f"{PODS}/{one['metadata']['name']}", one)

    def mount(self, *claims: str) -> None:
        """Lets the workers mount volume claims."""
        volumes = [volume(f"data-{number}", claim) for number, claim in enumerate(claims)]
        self.change(DEPLOYMENT, {"spec": {"template": {"spec": {"volumes": volumes}}}})

    def add_claim(self, name: str, phase: str) -> None:
        """A claim that the workers mount, and no other."""
        spec = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        }
        claim: Object = {"metadata": {"name": name}, "spec": spec, "status": {"phase": phase}}
        self.put(f"{CLAIMS}/{name}", claim)
        self.mount(name)

    def add_warning(self, kind: str, name: str, reason: str, message: str) -> None:
        """An event. Later ones are of a later time."""
        number = next(self._numbers)
        event: Object = {
            "metadata": {"name": f"event-{number}"},
            "involvedObject": {"kind": kind, "name": name, "namespace": NAMESPACE},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": f"2026-01-01T00:00:{number:02d}Z",
        }
        self.put(f"{EVENTS}/event-{number}", event)

    def kubeconfig(
        self,
        file: Path,
        *,
        user: Object | None = None,
        namespace: str | None = NAMESPACE,
        trusted: bool = True,
        server: str | None = None,
    ) -> Path:
        """Writes a kubeconfig whose current context, `village`, is this server."""
        ca = file.with_suffix(".ca")
        self.ca.cert_pem.write_to_path(ca)
        cluster: Object = {"server": server or self.url}
        if trusted:
            cluster["certificate-authority"] = str(ca)
        context: Object = {"cluster": "here", "user": "someone"}
        if namespace:
            context["namespace"] = namespace
        user = {"token": self.token} if user is None else user
        file.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "village",
                    "clusters": [{"name": "here", "cluster": cluster}],
                    "users": [{"name": "someone", "user": user}],
                    "contexts": [{"name": "village", "context": context}],
                }
            )
        )
        return file


class Handler(BaseHTTPRequestHandler):
    """Answers and keeps the connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def say(self, status: int, body: Object | str) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        kind = "text/plain" if text is body else "application/json"
        data = text.encode()
        self.send_response_only(status)
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class HttpsServer:
    """Answers requests over TLS, each connection in a thread."""

    def __init__(self, handler: type[Handler], certificate: trustme.LeafCert) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request: Any, address: Any) -> None:
                try:
                    request.settimeout(30)
                    with context.wrap_socket(request, server_side=True) as secured:
                        handler(secured, address, self)
                except OSError:
                    pass  # a client that does not trust us, or is gone

        self._server = Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        self.port: int = self._server.server_address[1]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
