"""A stand-in for a Kubernetes API server, because no machine that runs the tests has one.

It speaks HTTPS with a certificate of its own CA, keeps objects by path, and answers as the API
does where imece asks: bearer tokens, RBAC, lists with selectors, merge patches, the scale of a
Deployment, access reviews, and its errors. It runs nothing: no controller changes an object.
"""

import json
import ssl
import threading
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import trustme
import yaml

TOKEN = "a-token-of-the-village"
NAMESPACE = "imece"
USER = "system:serviceaccount:imece:someone"

Object = dict[str, Any]


def labels_of(component: str, pipeline: str = "imece") -> dict[str, str]:
    """Those of a pod. Redis belongs to no pipeline."""
    labels = {"app.kubernetes.io/name": "imece", "app.kubernetes.io/component": component}
    return labels if component == "redis" else {**labels, "app.kubernetes.io/instance": pipeline}


def deployment(replicas: int = 0, ready: int = 0, **spec: Any) -> Object:
    """The workers' Deployment. An API server leaves out zeros."""
    labels = labels_of("worker")
    found: Object = {
        "metadata": {"name": "imece-worker", "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [], "volumes": []}},
            **spec,
        },
        "status": {},
    }
    if replicas:
        found["spec"]["replicas"] = replicas
    if ready:
        found["status"]["readyReplicas"] = ready
    return found


def scaled_object(queue: str = "imece", **spec: Any) -> Object:
    """KEDA's object for it, ready and active."""
    keys = (f"rq:queue:{queue}", f"rq:queue:{queue}:intermediate", f"rq:wip:{queue}")
    return {
        "metadata": {"name": "imece-worker", "namespace": NAMESPACE},
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
    selector = {"matchLabels": {"scaledobject.keda.sh/name": "imece-worker"}}
    metric = {"name": "composite-metric", "selector": selector}
    return {
        "metadata": {"name": "keda-hpa-imece-worker", "namespace": NAMESPACE},
        "spec": {"metrics": [{"type": "External", "external": {"metric": metric}}]},
        "status": {
            "conditions": [
                {"type": "AbleToScale", "status": "True", "reason": "ReadyForNewScale"},
                {"type": "ScalingActive", "status": "True", "reason": "ValidMetricFound"},
            ]
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
    volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims]
    return {
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": labels_of(component, pipeline),
        },
        "spec": {"volumes": volumes},
        "status": {"phase": phase, **status},
    }


class StandIn:
    """The server, running until `close`.

    Attributes:
        objects: the objects by their path.
        forbidden: what RBAC does not grant, as `patch scaledobjects.keda.sh`.
        answers: (method, path) -> status and body, in place of what would be answered.
        counted: what KEDA answers its autoscaler.
        unknown: API groups there are none of.
        asked: method and path of every request, in order.
        before: called before a request is answered.
    """

    def __init__(
        self, *identities: str, until: datetime | None = None, ca: trustme.CA | None = None
    ) -> None:
        self.ca = ca or trustme.CA()
        self.objects: dict[str, Object] = {}
        self.forbidden: set[str] = set()
        self.answers: dict[tuple[str, str], tuple[int, str]] = {}
        self.counted = "0"
        self.unknown: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.logs: dict[str, str] = {}
        self.before: Callable[[], object] = lambda: None
        self.headers: dict[str, str] = {}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        start = datetime(2020, 1, 1) if until else None
        names = identities or ("localhost",)
        self.ca.issue_cert(*names, not_before=start, not_after=until).configure_cert(context)
        stand_in = self

        class Handler(_Handler):
            api = stand_in

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request: Any, address: Any) -> None:
                try:
                    request.settimeout(30)
                    with context.wrap_socket(request, server_side=True) as secured:
                        Handler(secured, address, self)
                except OSError:
                    pass  # a client that does not trust us, or is gone

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        self.port: int = self._server.server_address[1]
        self.url = f"https://localhost:{self.port}"
        self.put(f"/api/v1/namespaces/{NAMESPACE}", {"metadata": {"name": NAMESPACE}})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, path: str, body: Object) -> None:
        body["metadata"].setdefault("resourceVersion", "1")
        self.objects[path] = body

    def deploy(self, deployed: Object | None = None, scaled: Object | None = None) -> None:
        """What deploy/ makes."""
        self.put(self.deployment_path, deployed or deployment())
        self.put(self.scaled_object_path, scaled or scaled_object())
        self.put(self.autoscaler_path, autoscaler())
        crd = {"metadata": {"labels": {"app.kubernetes.io/version": "2.20.0"}}}
        self.put(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/scaledobjects.keda.sh", crd
        )

    deployment_path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/imece-worker"
    scaled_object_path = f"/apis/keda.sh/v1alpha1/namespaces/{NAMESPACE}/scaledobjects/imece-worker"
    autoscaler_path = (
        f"/apis/autoscaling/v2/namespaces/{NAMESPACE}"
        "/horizontalpodautoscalers/keda-hpa-imece-worker"
    )
    metric_path = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/composite-metric"

    @property
    def deployed(self) -> Object:
        return self.objects[self.deployment_path]

    @property
    def scaled(self) -> Object:
        return self.objects[self.scaled_object_path]

    def add_pods(self, *pods: Object) -> None:
        for one in pods:
            self.put(f"/api/v1/namespaces/{NAMESPACE}/pods/{one['metadata']['name']}", one)

    def add_claim(self, name: str, phase: str) -> None:
        """A claim that the workers mount."""
        path = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/{name}"
        self.put(path, {"metadata": {"name": name}, "status": {"phase": phase}})
        volume = {"name": "data", "persistentVolumeClaim": {"claimName": name}}
        self.deployed["spec"]["template"]["spec"]["volumes"].append(volume)

    def add_warning(self, kind: str, name: str, reason: str, message: str) -> None:
        event: Object = {
            "metadata": {"name": f"event-{len(self.objects)}"},
            "involvedObject": {"kind": kind, "name": name},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": f"2026-01-01T00:00:{len(self.objects):02d}Z",
        }
        self.put(f"/api/v1/namespaces/{NAMESPACE}/events/{event['metadata']['name']}", event)

    def changed(self) -> list[str]:
        """The paths that were patched."""
        return [path for method, path in self.asked if method == "PATCH"]

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
        user = {"token": TOKEN} if user is None else user
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


class _Handler(BaseHTTPRequestHandler):
    api: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        self.api.asked.append((self.command, path))
        self.api.before()
        if (given := self.api.answers.get((self.command, path))) is not None:
            self._say(*given)
        elif self.headers.get("Authorization", "").lower() != f"bearer {TOKEN}".lower():
            self._fail(401, "Unauthorized")
        elif any(path.startswith(f"/apis/{group}/") for group in self.api.unknown):
            self._say(404, "404 page not found\n")
        else:
            self._answer(path, query, body)

    def _answer(self, path: str, query: dict[str, list[str]], body: Any) -> None:
        if self.command == "POST":
            wanted = body["spec"]["resourceAttributes"]
            right = _right(
                wanted["verb"], wanted["resource"], wanted["group"], wanted["subresource"]
            )
            self._send({"status": {"allowed": right not in self.api.forbidden}})
            return
        where, name, subresource = _split(path)
        verb = {"GET": "get" if name else "list", "PATCH": "patch"}[self.command]
        right = _right(verb, where["resource"], where["group"], subresource)
        if right in self.api.forbidden:
            self._fail(
                403,
                f'{where["resource"]} "{name}" is forbidden: User "{USER}" cannot {verb} resource '
                f'"{where["resource"]}" in API group "{where["group"]}" in the namespace '
                f'"{where["namespace"]}"',
            )
        elif where["group"] == "external.metrics.k8s.io":
            self._send({"items": [{"metricName": "", "value": self.api.counted}]})
        elif not name:
            self._send({"items": self._list(path, where, query)})
        elif subresource == "log":
            self._say(200, self.api.logs.get(name, ""))
        elif (found := self.api.objects.get(path.removesuffix("/scale"))) is None:
            self._fail(404, f'{where["resource"]} "{name}" not found')
        elif self.command == "GET":
            self._send(found)
        elif self.headers["Content-Type"] != "application/merge-patch+json":
            self._fail(415, "the body of the request was in an unknown format")
        elif body.get("metadata", {}).get("resourceVersion", _version(found)) != _version(found):
            self._fail(409, "the object has been modified; please apply your changes to the latest")
        else:
            _merge(found, body)
            found["metadata"]["managedFields"] = [{"manager": query["fieldManager"][0]}]
            found["metadata"]["resourceVersion"] = str(int(_version(found)) + 1)
            self._send({"spec": found["spec"]} if subresource == "scale" else found)

    def _list(self, path: str, where: Object, query: dict[str, list[str]]) -> list[Object]:
        prefix, resource = path.rsplit("/", 1)
        found = [
            one
            for place, one in self.api.objects.items()
            if place.startswith(prefix) and place.split("/")[-2] == resource
        ]
        for pair in query.get("labelSelector", [""])[0].split(","):
            key, _, value = pair.partition("=")
            key, differs = key.removesuffix("!"), key.endswith("!")
            found = [one for one in found if not key or (_labels(one).get(key) == value) != differs]
        for pair in query.get("fieldSelector", [""])[0].split(","):
            key, _, value = pair.partition("=")
            found = [one for one in found if not key or _field(one, key) == value]
        return found

    def _send(self, body: Object) -> None:
        self._say(200, json.dumps(body))

    def _fail(self, status: int, message: str) -> None:
        self._say(status, json.dumps({"kind": "Status", "status": "Failure", "message": message}))

    def _say(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response_only(status)
        headers = {"Date": self.date_time_string(), "Content-Length": str(len(data))}
        for name, value in (headers | self.api.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _labels(one: Object) -> dict[str, str]:
    labels: dict[str, str] = one["metadata"].get("labels", {})
    return labels


def _field(one: Any, path: str) -> Any:
    for name in path.split("."):
        one = one[name]
    return one


def _right(verb: str, resource: str, group: str, subresource: str) -> str:
    return (
        f"{verb} {resource}"
        + (f".{group}" if group else "")
        + (f"/{subresource}" if subresource else "")
    )


def _split(path: str) -> tuple[Object, str, str]:
    """A path as what it says: group, namespace and resource; name; subresource."""
    parts = path.strip("/").split("/")
    group = parts[1] if parts[0] == "apis" else ""
    rest = parts[3:] if group else parts[2:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    rest += ["", ""]
    return {"group": group, "namespace": namespace, "resource": rest[0]}, rest[1], rest[2]


def _version(one: Object) -> str:
    version: str = one["metadata"]["resourceVersion"]
    return version


def _merge(one: Object, changes: Object) -> None:
    """RFC 7386, JSON merge patch."""
    for name, value in changes.items():
        if value is None:
            one.pop(name, None)
        elif isinstance(value, dict):
            _merge(one.setdefault(name, {}), value)
        else:
            one[name] = value
