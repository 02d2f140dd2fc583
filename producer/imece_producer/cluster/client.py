"""The connection to Kubernetes. What bars the way comes as one sentence: cause and fix.

Each request names the `Right` it takes; `RIGHTS` are all of them. Requests go through the package
`kubernetes` and come back as the API's own JSON, so that versions 30 and later of it serve alike.
No request takes longer than CONNECT + READ seconds a try; looking up a name is up to the system's
resolver.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from imece.settings import Settings
from imece_producer.cluster import errors, kubeconfig
from imece_producer.cluster.errors import ClusterError
from imece_producer.cluster.kubeconfig import Access, is_named
from imece_producer.cluster.rights import (
    CHANGE_DEPLOYMENT,
    CHANGE_SCALE,
    CHANGE_SCALED_OBJECT,
    LIST_EVENTS,
    LIST_PODS,
    READ_CLAIM,
    READ_DEPLOYMENT,
    READ_HPA,
    READ_LOG,
    READ_SCALED_OBJECT,
    VERSIONS,
    Right,
)

__all__ = ["Cluster", "ClusterError", "connect", "is_named"]

CONNECT, READ = 3.0, 10.0
"""Seconds until an API server that does not connect, or does not answer, counts as away."""

METRIC = 4.0
"""The same for KEDA's metric: KEDA gives up on itself after 3 s, or never."""

TRIES = 2
SHOWN = 10
"""How many names a message lists at most."""

KINDS = {
    "scaledobjects": "ScaledObject",
    "deployments": "Deployment",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "horizontalpodautoscalers": "HorizontalPodAutoscaler",
    "pods": "pod",
}
SETTINGS = {"scaledobjects": "IMECE_SCALED_OBJECT", "deployments": "IMECE_DEPLOYMENT"}
"""The settings that name an object."""

HINTS = {
    "persistentvolumeclaims": "make it, or let the Deployment mount another",
    "horizontalpodautoscalers": "KEDA makes it: see the log of its operator",
}
"""What to do about an object that is not there."""


@contextmanager
def connect(settings: Settings) -> Iterator["Cluster"]:
    """A client for the cluster the settings name; see `kubeconfig.find`. Connects on first use.

    Raises:
        SettingsError: no cluster is configured, or not in a way that can be used.
    """
    cluster = Cluster(kubeconfig.find(settings), settings)
    try:
        yield cluster
    finally:
        cluster.close()


class Cluster:
    """One namespace of one cluster.

    All methods raise ClusterError, which says cause and fix.
    """

    def __init__(self, access: Access, settings: Settings) -> None:
        from kubernetes import client
        from urllib3.util.retry import Retry

        self.access = access
        self.namespace = access.namespace
        self.settings = settings
        self.date: float | None = None
        """The API server's clock in its latest answer, in epoch seconds, to the whole second."""
        access.configuration.retries = Retry(
            total=TRIES - 1,
            backoff_factor=0.2,
            status_forcelist=errors.BUSY,
            raise_on_status=False,
            respect_retry_after_header=False,
        )
        self._client = client.ApiClient(access.configuration)
        self._objects = client.CustomObjectsApi(self._client)
        self._core = client.CoreV1Api(self._client)

    def __str__(self) -> str:
        return f"namespace {self.namespace} of {self.address}, by {self.access.how}"

    @property
    def address(self) -> str:
        parts = urlsplit(self.access.configuration.host)
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")

    def close(self) -> None:
        self._client.close()

    # What imece reads

    def scaled_object(self) -> dict[str, Any]:
        return self._read(READ_SCALED_OBJECT, self.settings.scaled_object)

    def deployment(self) -> dict[str, Any]:
        return self._read(READ_DEPLOYMENT, self.settings.deployment)

    def autoscaler(self, name: str) -> dict[str, Any]:
        return self._read(READ_HPA, name)

    def metric(self, name: str, labels: dict[str, str]) -> int:
        """The number that KEDA answers its autoscaler with, as its autoscaler asks."""
        from kubernetes.utils.quantity import parse_quantity

        right = Right("list", name, "external.metrics.k8s.io")
        found = self._items(
            right,
            self._objects.list_namespaced_custom_object,
            *self._place(right),
            label_selector=",".join(f"{key}={value}" for key, value in labels.items()),
            _request_timeout=(CONNECT, METRIC),
        )
        return sum(int(parse_quantity(item["value"])) for item in found)

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """The pods with such labels, 500 at the most."""
        return self._items(
            LIST_PODS,
            self._core.list_namespaced_pod,
            self.namespace,
            label_selector=selector,
            limit=500,
        )

    def last_log_line(self, pod: str, container: str) -> str:
        """What the container that ended last in this pod wrote last."""
        answer = self._ask(
            READ_LOG,
            self._core.read_namespaced_pod_log,
            pod,
            self.namespace,
            container=container,
            previous=True,
            tail_lines=1,
            limit_bytes=4096,
        )
        return answer.decode("utf-8", "replace").strip()

    def claim(self, name: str) -> dict[str, Any]:
        return self._json(
            READ_CLAIM,
            self._core.read_namespaced_persistent_volume_claim,
            name,
            self.namespace,
            name=name,
        )

    def warnings(self, kind: str, name: str) -> list[str]:
        """What Kubernetes warns of for an object, the latest first."""
        found = self._items(
            LIST_EVENTS,
            self._core.list_namespaced_event,
            self.namespace,
            field_selector=f"involvedObject.kind={kind},involvedObject.name={name},type=Warning",
            limit=100,
        )
        found.sort(key=_moment, reverse=True)
        return [f"{event.get('reason', '')}: {event.get('message', '')}" for event in found]

    def has_right(self, right: Right) -> bool:
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {
                "resourceAttributes": {
                    "namespace": self.namespace,
                    "verb": right.verb,
                    "group": right.group,
                    "resource": right.resource,
                    "subresource": right.subresource,
                    "name": self._named(right),
                }
            },
        }
        review = Right("create", "selfsubjectaccessreviews", "authorization.k8s.io")
        answer = self._json(
            review,
            self._objects.create_cluster_custom_object,
            review.group,
            VERSIONS[review.group],
            review.resource,
            body,
        )
        return bool(answer.get("status", {}).get("allowed"))

    def _named(self, right: Right) -> str:
        """The object that such a request names: a Role may grant the right for that one only."""
        names = {
            "scaledobjects": self.settings.scaled_object,
            "deployments": self.settings.deployment,
        }
        return names.get(right.resource, "") if right.verb != "list" else ""

    def keda_version(self) -> str | None:
        """The version KEDA's resource definitions are of, as 2.20.0; None if they do not say."""
        right = Right("get", "customresourcedefinitions", "apiextensions.k8s.io")
        answer = self._json(
            right,
            self._objects.get_cluster_custom_object,
            right.group,
            "v1",
            right.resource,
            "scaledobjects.keda.sh",
            name="scaledobjects.keda.sh",
        )
        label = answer["metadata"].get("labels", {}).get("app.kubernetes.io/version", "")
        return label.removeprefix("v") or None

    # What imece changes

    def change_scaled_object(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Applies a JSON merge patch (RFC 7386): None removes."""
        call = self._objects.patch_namespaced_custom_object
        return self._change(CHANGE_SCALED_OBJECT, call, self.settings.scaled_object, changes)

    def change_scale(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The same for the scale of the Deployment."""
        call = self._objects.patch_namespaced_custom_object_scale
        return self._change(CHANGE_SCALE, call, self.settings.deployment, changes)

    def change_deployment(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The same for the Deployment itself."""
        call = self._objects.patch_namespaced_custom_object
        return self._change(CHANGE_DEPLOYMENT, call, self.settings.deployment, changes)

    # Requests

    def _read(self, right: Right, name: str) -> dict[str, Any]:
        return self._json(
            right,
            self._objects.get_namespaced_custom_object,
            *self._place(right),
            name,
            name=name,
        )

    def _change(
        self, right: Right, call: Callable[..., Any], name: str, changes: dict[str, Any]
    ) -> dict[str, Any]:
        options = {"name": name, "field_manager": "imece"}  # the name that `managedFields` shows
        return self._json(right, call, *self._place(right), name, changes, **options)

    def _place(self, right: Right) -> tuple[str, str, str, str]:
        return right.group, VERSIONS[right.group], self.namespace, right.resource

    def _items(
        self, right: Right, call: Callable[..., Any], *arguments: Any, **options: Any
    ) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._json(right, call, *arguments, **options)["items"]
        return items

    def _json(
        self,
        right: Right,
        call: Callable[..., Any],
        *arguments: Any,
        name: str = "",
        **options: Any,
    ) -> dict[str, Any]:
        answer = self._ask(right, call, *arguments, name=name, **options)
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise errors.other_service(self.address)
        return found

    def _ask(
        self,
        right: Right,
        call: Callable[..., Any],
        *arguments: Any,
        name: str = "",
        **options: Any,
    ) -> bytes:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        options = {"_preload_content": False, "_request_timeout": (CONNECT, READ), **options}
        try:
            answer = call(*arguments, **options)
            self._note_date(answer.headers)
            data: bytes = answer.data
            return data
        except ApiException as error:
            if not error.status:
                raise errors.unreachable(self.address, error) from None
            self._note_date(error.headers or {})
            found = errors.refused(self.address, self.access, right, name, error.status, error.body)
            if found.status == 404 and found.known and name:
                found = self._missing(right, name)
            raise found from None
        except (HTTPError, OSError) as error:
            raise errors.unreachable(self.address, error) from None

    def _note_date(self, headers: Any) -> None:
        try:
            self.date = parsedate_to_datetime(headers["Date"]).timestamp()
        except (KeyError, TypeError, ValueError):
            pass  # a proxy has dropped it: then there is no clock to compare with

    def _missing(self, right: Right, name: str) -> ClusterError:
        """An object is not there: says what is."""
        kind = KINDS.get(right.resource, right.resource)
        what = f"there is no {kind} {name} in namespace {self.namespace}"
        if not self._has_namespace():
            others = self._names(self._core.list_namespace)
            there = f"; there are: {_some(others)}" if others else ""
            return ClusterError(
                f"there is no namespace {self.namespace} in the cluster at {self.address}{there}",
                "name the right one with --namespace or IMECE_KUBE_NAMESPACE",
                404,
            )
        setting = SETTINGS.get(right.resource)
        if setting is None:
            return ClusterError(what, HINTS.get(right.resource, "it may have just gone"), 404)
        here = self._names(self._objects.list_namespaced_custom_object, *self._place(right))
        hint = f"check --namespace, or kubectl apply -k deploy/…, or name another in {setting}"
        if here:
            return ClusterError(f"{what}; there are: {_some(here)}", hint, 404)
        group, version, _, resource = self._place(right)
        elsewhere = self._names(
            self._objects.list_cluster_custom_object, group, version, resource, wanted=name
        )
        if elsewhere:
            return ClusterError(
                f"{what}; there is one in: {_some(elsewhere)}",
                "name its namespace with --namespace or IMECE_KUBE_NAMESPACE",
                404,
            )
        return ClusterError(what, hint, 404)

    def _has_namespace(self) -> bool:
        """Whether the namespace is there, as far as we may know."""
        try:
            self._ask(Right("get", "namespaces"), self._core.read_namespace, self.namespace)
        except ClusterError as error:
            return error.status != 404
        return True

    def _names(
        self, call: Callable[..., Any], *arguments: Any, wanted: str | None = None
    ) -> list[str]:
        """The names of the objects there are, if we may know; with `wanted`, the namespaces of
        those of that name."""
        try:
            items = self._items(Right("list", "objects"), call, *arguments)
        except ClusterError:
            return []
        found = [item["metadata"] for item in items]
        if wanted is None:
            return sorted(one["name"] for one in found)
        return sorted(one["namespace"] for one in found if one["name"] == wanted)


def _moment(event: dict[str, Any]) -> str:
    times = (event.get("lastTimestamp"), event.get("eventTime"), event.get("firstTimestamp"))
    return next((time for time in times if time), "")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
