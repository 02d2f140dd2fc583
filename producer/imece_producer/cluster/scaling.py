"""How many workers the cluster may run, wants and has; and changing that.

The ScaledObject holds the limit. KEDA hands it to an autoscaler, which then scales the Deployment;
what is changed here on the Deployment itself only saves the wait for that.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from imece.connection import connect, reachable
from imece.errors import UsageError
from imece.run import status
from imece.run.status import Backlog
from imece.settings import Settings
from imece_producer.cluster.client import Cluster, ClusterError

_KEDA = "autoscaling.keda.sh/"
PAUSED_REPLICAS = f"{_KEDA}paused-replicas"
PAUSED = f"{_KEDA}paused"
PAUSED_SCALE_IN = f"{_KEDA}paused-scale-in"
"""An older KEDA than PAUSES_SCALE_IN takes no notice of it."""

PAUSES_SCALE_IN = (2, 18)

PAUSED_SCALE_OUT = f"{_KEDA}paused-scale-out"

KEDA_LIMIT = 100
"""What KEDA takes for maxReplicaCount where the ScaledObject does not say."""

CONFLICT = 409
"""What a patch of an object that has changed since is answered with."""

TRIES = 5


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
        paused=read_paused(scaled_object),
    )


def annotations(scaled_object: dict[str, Any]) -> dict[str, str]:
    return scaled_object["metadata"].get("annotations") or {}


def read_paused(scaled_object: dict[str, Any]) -> str | None:
    """What of the scaling is paused, in words; None if nothing is."""
    notes = annotations(scaled_object)
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
    spec = {"maxReplicaCount": limit}
    if least != before.minimum:
        spec["minReplicaCount"] = least
    after = of(cluster.change_scaled_object({"spec": spec}), deployment)
    if backlog is None or _may_not_grow(annotations(scaled_object)):
        return before, after
    needed = max(least, min(limit, backlog.pending + backlog.in_flight))
    return before, replace(after, wanted=_start(cluster, deployment, needed))


def read_backlog(settings: Settings) -> Backlog:
    """The queue. Raises ServiceError: Redis is out of reach."""
    with reachable(settings), connect(settings, retries=0, timeout=2.0) as redis:
        return status.backlog(redis, settings.queue)


def _may_not_grow(notes: dict[str, str]) -> bool:
    return PAUSED_REPLICAS in notes or _is_set(notes, PAUSED) or _is_set(notes, PAUSED_SCALE_OUT)


def _start(cluster: Cluster, deployment: dict[str, Any], needed: int) -> int:
    """Scales the Deployment out, unless the autoscaler has been faster.

    Returns:
        How many replicas it is to have then.
    """
    for _ in range(TRIES):
        wanted: int = deployment["spec"].get("replicas", 0)
        if needed <= wanted:
            return wanted
        # With its version in it, a patch of what has changed since is refused.
        version = deployment["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version}, "spec": {"replicas": needed}}
        try:
            cluster.change_scale(patch)
            return needed
        except ClusterError as error:
            if error.status != CONFLICT:
                raise
        deployment = cluster.deployment()
    return wanted


def pause(cluster: Cluster, *, scale_in_only: bool = False) -> tuple[Scaling, Scaling]:
    """Holds the run: all workers hand back and go. Or only stops the scaling in.

    Returns:
        What was, and what is.
    """
    return _annotate(
        cluster, {PAUSED_SCALE_IN: "true"} if scale_in_only else {PAUSED_REPLICAS: "0"}
    )


def resume(cluster: Cluster) -> tuple[Scaling, Scaling]:
    """Ends every pause, whoever set it.

    Returns:
        What was, and what is.
    """
    return _annotate(
        cluster, dict.fromkeys((PAUSED_REPLICAS, PAUSED, PAUSED_SCALE_IN, PAUSED_SCALE_OUT))
    )


def _annotate(cluster: Cluster, notes: dict[str, str | None]) -> tuple[Scaling, Scaling]:
    """Sets annotations of the ScaledObject; those that are None are removed."""
    before, deployment = cluster.scaled_object(), cluster.deployment()
    after = cluster.change_scaled_object({"metadata": {"annotations": notes}})
    return of(before, deployment), of(after, deployment)


def numbers(version: str) -> tuple[int, ...]:
    """`2.20.1` as numbers, to compare."""
    return tuple(int(part) for part in version.partition("-")[0].split(".") if part.isdigit())
