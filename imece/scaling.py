"""How many workers the cluster may run, wants and has; and changing that.

The ScaledObject holds the limit. KEDA hands it to an autoscaler, which then scales the Deployment;
what is changed here on the Deployment itself only saves the wait for that.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from imece.cluster import Cluster, ClusterError
from imece.errors import UsageError
from imece.status import Backlog

_KEDA = "autoscaling.keda.sh/"
PAUSED_REPLICAS = f"{_KEDA}paused-replicas"
PAUSED = f"{_KEDA}paused"
PAUSED_SCALE_IN = f"{_KEDA}paused-scale-in"
"""KEDA 2.18 and later; an older one takes no notice of it."""

PAUSED_SCALE_OUT = f"{_KEDA}paused-scale-out"

KEDA_LIMIT = 100
"""What KEDA takes for maxReplicaCount where the ScaledObject does not say."""

UNPROCESSABLE = 422
"""What a JSON patch is answered with whose test fails."""


@dataclass(frozen=True)
class Scaling:
    """The workers of a cluster at one moment.

    Attributes:
        limit, minimum: maxReplicaCount and minReplicaCount.
        wanted: the replicas the Deployment is to have.
        ready: the replicas that are there and ready.
        paused: what of the scaling is paused, in words; None if nothing is.
    """

    limit: int
    minimum: int
    wanted: int
    ready: int
    paused: str | None

    def summary(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def read(cluster: Cluster) -> Scaling:
    """Raises ClusterError."""
    return of(cluster.scaled_object(), cluster.deployment())


def of(scaled_object: dict[str, Any], deployment: dict[str, Any]) -> Scaling:
    """What the two objects say."""
    spec = scaled_object.get("spec", {})
    return Scaling(
        limit=spec.get("maxReplicaCount", KEDA_LIMIT),
        minimum=spec.get("minReplicaCount", 0),
        wanted=deployment.get("spec", {}).get("replicas", 0),
        ready=deployment.get("status", {}).get("readyReplicas", 0),
        paused=_paused(annotations(scaled_object)),
    )


def annotations(scaled_object: dict[str, Any]) -> dict[str, str]:
    return scaled_object["metadata"].get("annotations") or {}


def _paused(notes: dict[str, str]) -> str | None:
    if PAUSED_REPLICAS in notes:
        return f"held at {notes[PAUSED_REPLICAS]} replicas"
    if _is_set(notes, PAUSED):
        return "held at the replicas there are"
    ways = [
        way
        for way, name in (("in", PAUSED_SCALE_IN), ("out", PAUSED_SCALE_OUT))
        if _is_set(notes, name)
    ]
    return "no scaling " + " or ".join(ways) if ways else None


def _is_set(notes: dict[str, str], name: str) -> bool:
    """As KEDA reads its annotations: what is not a boolean counts as true."""
    return notes.get(name, "false") not in ("0", "f", "F", "false", "FALSE", "False")


def change(
    cluster: Cluster, limit: int, minimum: int | None = None, backlog: Backlog | None = None
) -> tuple[Scaling, Scaling]:
    """Changes the limit, and starts at once what the queue then needs; never stops a worker.

    Args:
        minimum: the new minReplicaCount; None leaves it, or lowers it to the limit.
        backlog: the queue; None if it is not known: then KEDA starts the workers, seconds later.

    Returns:
        What was, and what is.

    Raises:
        UsageError: no cluster takes these numbers.
        ClusterError
    """
    if limit < 1:
        raise UsageError("a cluster's limit is 1 at the least", "`imece pause` holds the workers")
    if minimum is not None and minimum > limit:
        raise UsageError(f"--min {minimum} is more than the limit {limit}")
    scaled_object, deployment = cluster.scaled_object(), cluster.deployment()
    before = of(scaled_object, deployment)
    least = min(before.minimum, limit) if minimum is None else minimum
    changes = [_set("/spec/maxReplicaCount", limit)]
    if least != before.minimum:
        changes.append(_set("/spec/minReplicaCount", least))
    after = of(cluster.change_scaled_object(changes), deployment)
    if backlog is None or _may_not_grow(annotations(scaled_object)):
        return before, after
    needed = max(least, min(limit, backlog.pending + backlog.in_flight))
    if needed <= before.wanted:
        return before, after
    return before, replace(after, wanted=_start(cluster, before.wanted, needed))


def _may_not_grow(notes: dict[str, str]) -> bool:
    return PAUSED_REPLICAS in notes or _is_set(notes, PAUSED) or _is_set(notes, PAUSED_SCALE_OUT)


def _start(cluster: Cluster, wanted: int, needed: int) -> int:
    """Scales the Deployment out; how many replicas it is to have then."""
    # An API server leaves out a 0, so that there is nothing to test then.
    unchanged = [{"op": "test", "path": "/spec/replicas", "value": wanted}] if wanted else []
    try:
        scale = cluster.change_scale([*unchanged, _set("/spec/replicas", needed)])
    except ClusterError as error:
        if error.status != UNPROCESSABLE:
            raise
        scale = cluster.deployment()  # the test: the autoscaler was faster
    replicas: int = scale["spec"].get("replicas", 0)
    return replicas


def pause(cluster: Cluster, *, scale_in_only: bool = False) -> tuple[Scaling, Scaling]:
    """Holds the run: all workers hand back and go. Or only stops the scaling in.

    Returns:
        What was, and what is.
    """
    before = cluster.scaled_object()
    name, value = (PAUSED_SCALE_IN, "true") if scale_in_only else (PAUSED_REPLICAS, "0")
    changes = [_set(_path(name), value)]
    if not annotations(before):
        changes.insert(0, _set("/metadata/annotations", {}))
    return _changed(cluster, before, changes)


def resume(cluster: Cluster) -> tuple[Scaling, Scaling]:
    """Ends every pause, whoever set it.

    Returns:
        What was, and what is.
    """
    before = cluster.scaled_object()
    known = (PAUSED_REPLICAS, PAUSED, PAUSED_SCALE_IN, PAUSED_SCALE_OUT)
    set_now = [name for name in known if name in annotations(before)]
    return _changed(cluster, before, [{"op": "remove", "path": _path(name)} for name in set_now])


def _changed(
    cluster: Cluster, before: dict[str, Any], changes: list[dict[str, Any]]
) -> tuple[Scaling, Scaling]:
    deployment = cluster.deployment()
    after = cluster.change_scaled_object(changes) if changes else before
    return of(before, deployment), of(after, deployment)


def _set(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


def _path(annotation: str) -> str:
    """Where an annotation is, as a JSON pointer (RFC 6901)."""
    return "/metadata/annotations/" + annotation.replace("~", "~0").replace("/", "~1")
