"""A stand-in for a Kubernetes API server, for machines that have none.

It speaks HTTPS with a certificate of its own CA, keeps objects by path, and answers as the API
does where imece asks: bearer tokens, RBAC, lists with selectors, merge patches, the scale of a
Deployment, access reviews, and its errors. It checks no object: a real one does (api_server.py).
"""

import copy
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import trustme

from tests.api_server import (
    GRANTED,
    KEDA_VERSION,
    METRIC,
    NAMESPACES,
    SCALED_OBJECT,
    USER,
    ApiServer,
    Handler,
    HttpsServer,
    Object,
)

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/scaledobjects.keda.sh"
REVIEW = "create selfsubjectaccessreviews.authorization.k8s.io"
"""Everybody may, who is known."""


class StandIn(ApiServer):
    """The server, running until `close`.

    The attributes are what no real server can be brought to do: tests that need them, or a
    certificate that is wrong, have this server alone.

    Attributes:
        answers: verb and path -> status and body, in place of what would be answered.
        before: called before a request is answered.
    """

    token = "eyJ-a-token-of-the-village"

    def __init__(self, *identities: str, until: datetime | None = None) -> None:
        super().__init__()
        self.answers: dict[tuple[str, str], tuple[int, str]] = {}
        self.before: Callable[[], object] = lambda: None
        self.objects: dict[str, Object] = {}
        self.granted = GRANTED
        self.has_keda = True
        self.requests: list[tuple[str, str]] = []
        for name in NAMESPACES:
            self.put(f"/api/v1/namespaces/{name}", {"metadata": {"name": name}})
        self.set_keda_version(KEDA_VERSION)
        self.ca = trustme.CA()
        start = datetime(2020, 1, 1) if until else None
        names = identities or ("localhost",)
        certificate = self.ca.issue_cert(*names, not_before=start, not_after=until)
        stand_in = self

        class Ours(_Handler):
            api = stand_in

        self._server = HttpsServer(Ours, certificate)
        self.port = self._server.port

    def close(self) -> None:
        self._server.close()

    def put(self, path: str, body: Object) -> None:
        namespace = _split(path)[1]
        ours = {"namespace": namespace, "resourceVersion": "1", "generation": 1}
        self.objects[path] = copy.deepcopy(body | {"metadata": body["metadata"] | ours})

    def change(self, path: str, changes: Object) -> None:
        found = self.objects[path]
        before = copy.deepcopy(found.get("spec"))
        _merge(found, copy.deepcopy(changes))
        metadata = found["metadata"]
        metadata["resourceVersion"] = str(int(_version(found)) + 1)
        metadata["generation"] += found.get("spec") != before
        if not metadata.get("annotations"):
            metadata.pop("annotations", None)
        for variable in _variables(found):
            if not variable.get("value"):
                variable.pop("value", None)

    def delete(self, path: str) -> None:
        del self.objects[path]

    def read(self, path: str) -> Object:
        return copy.deepcopy(self.objects[path])

    def forbid(self, *rights: str) -> None:
        assert GRANTED.issuperset(rights)
        self.granted = GRANTED.difference(rights)

    def deny_changes(self, status: int, why: str) -> None:
        said = (
            'scaledobjects.keda.sh "imece-worker" is forbidden: ValidatingAdmissionPolicy '
            f"'tests' with binding 'tests' denied request: {why}"
        )
        self.answers["patch", SCALED_OBJECT] = (status, json.dumps({"message": said}))

    def remove_keda(self) -> None:
        self.has_keda = False
        del self.objects[CRD]

    def set_keda_version(self, version: str) -> None:
        labels = {"app.kubernetes.io/version": version}
        self.put(CRD, {"metadata": {"name": "scaledobjects.keda.sh", "labels": labels}})

    @property
    def asked(self) -> list[tuple[str, str]]:
        return self.requests

    def forget(self) -> None:
        self.requests.clear()


class _Handler(Handler):
    api: StandIn

    def do_GET(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "null")
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        name = _split(path)[3]
        verb = {"GET": "get" if name else "list", "PATCH": "patch", "POST": "create"}[self.command]
        self.api.requests.append((verb, path))
        self.api.before()
        bearer = self.headers.get("Authorization")
        if (given := self.api.answers.get((verb, path))) is not None:
            self.say(*given)
        elif bearer and bearer.partition(" ")[2] != self.api.token:
            self._fail(401, "Unauthorized")
        elif path.startswith("/apis/keda.sh/") and not self.api.has_keda:
            self.say(404, "404 page not found\n")
        elif bearer:
            self._answer(verb, path, query, body, USER, self.api.granted | {REVIEW})
        else:
            self._answer(verb, path, query, body, "system:anonymous", frozenset())

    def _answer(
        self,
        verb: str,
        path: str,
        query: dict[str, list[str]],
        body: Any,
        user: str,
        granted: frozenset[str],
    ) -> None:
        group, namespace, resource, name, subresource = _split(path)
        kind = f"{resource}.{group}" if group else resource
        what = f'{kind} "{name}"' if name else kind
        place = path.removesuffix(f"/{subresource}")
        right = _right(verb, resource, group, subresource)
        if right not in granted:
            where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
            asked = f"{resource}/{subresource}" if subresource else resource
            self._fail(
                403,
                f'{what} is forbidden: User "{user}" cannot {verb} resource "{asked}" in API group '
                f'"{group}" {where}',
            )
        elif right == REVIEW:
            asked = body["spec"]["resourceAttributes"]
            right = _right(*(asked[key] for key in ("verb", "resource", "group", "subresource")))
            self.say(201, {"status": {"allowed": right in granted}})
        elif path == METRIC:
            self.say(*self.api.keda.answer())
        elif not name:
            self.say(200, {"items": self._list(path, query)})
        elif (found := self.api.objects.get(place)) is None:
            self._fail(404, f"{what} not found")
        elif subresource == "log":
            self.say(200, self.api.logs.get(name, ""))
        elif verb == "get":
            self.say(200, found)
        elif self.headers["Content-Type"] != "application/merge-patch+json":
            self._fail(
                415,
                "the body of the request was in an unknown format - accepted media types include: "
                "application/json-patch+json, application/merge-patch+json, "
                "application/apply-patch+yaml",
            )
        elif body.get("metadata", {}).pop("resourceVersion", _version(found)) != _version(found):
            self._fail(
                409,
                f"Operation cannot be fulfilled on {what}: the object has been modified; "
                "please apply your changes to the latest version and try again",
            )
        else:
            self.api.change(place, body)
            found["metadata"]["managedFields"] = [{"manager": query["fieldManager"][0]}]
            scale = {**found, "kind": "Scale", "spec": {"replicas": found["spec"].get("replicas")}}
            self.say(200, scale if subresource == "scale" else found)

    def _list(self, path: str, query: dict[str, list[str]]) -> list[Object]:
        prefix, resource = path.rsplit("/", 1)
        found = [
            one
            for place, one in sorted(self.api.objects.items())
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

    def _fail(self, status: int, message: str) -> None:
        self.say(status, {"kind": "Status", "status": "Failure", "message": message})


def _labels(one: Object) -> dict[str, str]:
    labels: dict[str, str] = one["metadata"].get("labels", {})
    return labels


def _variables(one: Object) -> list[Object]:
    """The environment variables of a Deployment's containers."""
    pod = one.get("spec", {}).get("template", {}).get("spec", {})
    return [variable for each in pod.get("containers", []) for variable in each.get("env", [])]


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


def _split(path: str) -> tuple[str, str, str, str, str]:
    """A path as what it says: group, namespace, resource, name, subresource."""
    parts = path.strip("/").split("/")
    group = parts[1] if parts[0] == "apis" else ""
    rest = parts[3:] if group else parts[2:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        rest = rest[2:] or rest
    rest += ["", ""]
    return group, namespace, rest[0], rest[1], rest[2]


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
