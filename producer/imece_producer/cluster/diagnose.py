"""Why the workers of a cluster do not come: each reason in one sentence, with the fix."""

from collections.abc import Iterator
from typing import Any

from imece.run import keys
from imece_producer.cluster import scaling
from imece_producer.cluster.client import Cluster, ClusterError
from imece_producer.cluster.scaling import Scaling

IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
CONFIGURATION = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")

FORBIDDEN = 403

Object = dict[str, Any]


def look(cluster: Cluster, queue: str, pending: int = 0) -> tuple[Scaling, list[str]]:
    """The workers, and what keeps more from coming, the root of it first; empty if nothing does.

    What may not be looked at is passed over.

    Args:
        pending: bucket jobs that wait in the queue.

    Raises:
        ClusterError: the cluster is out of reach, or the ScaledObject or the Deployment is.
    """
    scaled_object, deployment = cluster.scaled_object(), cluster.deployment()
    now = scaling.of(scaled_object, deployment)
    reasons = [
        *of_keda(cluster, scaled_object, queue),
        *of_claims(cluster, deployment),
        *of_deployment(deployment),
        *of_pods(cluster, deployment),
    ]
    if pending and not now.wanted and not reasons:
        reasons = [
            "KEDA has started no worker yet; if it stays like this, its triggers look at another "
            "Redis, or at another database of it"
        ]
    return now, list(dict.fromkeys(reasons))


def of_keda(cluster: Cluster, scaled_object: Object, queue: str) -> Iterator[str]:
    """What keeps KEDA from scaling."""
    name = scaled_object["metadata"]["name"]
    if (paused := scaling.read_paused(scaled_object)) is not None:
        yield f"paused: {paused} (`imece resume` ends it)"
    if missing := uncounted(scaled_object, queue):
        yield (
            f"KEDA does not count {', '.join(missing)}: the triggers of the ScaledObject {name} "
            f"must name the keys of the queue {queue} (IMECE_QUEUE)"
        )
    status = scaled_object.get("status", {})
    ready = condition(status, "Ready")
    if not ready:
        yield (
            f"KEDA has not looked at the ScaledObject {name}: is its operator running? "
            "`kubectl -n keda get pods`; on OpenShift -n openshift-keda"
        )
    elif ready.get("status") == "False":
        yield f"KEDA cannot use the ScaledObject {name}: {ready.get('message')}"
    failing = [
        trigger
        for trigger, health in (status.get("health") or {}).items()
        if health.get("status") == "Failing"
    ]
    if failing or ready.get("status") == "False":
        yield from (f"KEDA: {text}" for text in _warnings(cluster, "ScaledObject", name)[:1])
    if failing:
        yield (
            f"KEDA's trigger {', '.join(failing)} is failing: KEDA must reach Redis, with the user "
            "and password of the TriggerAuthentication"
        )


def uncounted(scaled_object: Object, queue: str) -> list[str]:
    """The keys of the queue that no trigger counts."""
    triggers = scaled_object.get("spec", {}).get("triggers", [])
    counted = {trigger.get("metadata", {}).get("listName") for trigger in triggers}
    wanted = (keys.pending(queue), keys.moving(queue), keys.leases(queue))
    return [key for key in wanted if key not in counted]


def condition(status: Object, kind: str) -> Object:
    """A condition of an object's status; empty if there is none."""
    every = status.get("conditions") or []
    return next((one for one in every if one.get("type") == kind), {})


def claims(deployment: Object) -> list[str]:
    """The names of the volume claims the workers mount."""
    volumes = deployment["spec"]["template"]["spec"].get("volumes") or []
    found = (volume.get("persistentVolumeClaim") for volume in volumes)
    return [claim["claimName"] for claim in found if claim]


def of_claims(cluster: Cluster, deployment: Object) -> Iterator[str]:
    """Which volumes are not there."""
    for name in claims(deployment):
        try:
            phase = cluster.claim(name).get("status", {}).get("phase")
        except ClusterError as error:
            if error.status != FORBIDDEN:
                yield str(error)
            continue
        if phase != "Bound":
            said = _warnings(cluster, "PersistentVolumeClaim", name)[:1]
            why = said[0] if said else "no volume fits it, or its storage class waits for a pod"
            yield f"the volume claim {name} is not bound ({phase}): {why}"


def of_deployment(deployment: Object) -> Iterator[str]:
    """What keeps pods from being made at all: a quota, a policy, a missing ServiceAccount."""
    failure = condition(deployment.get("status", {}), "ReplicaFailure")
    if failure.get("status") == "True":
        yield f"no pod can be made: {failure.get('message')}"


def of_pods(cluster: Cluster, deployment: Object) -> Iterator[str]:
    """What keeps pods from working, each reason once, with the number of pods it keeps."""
    labels = deployment["spec"]["selector"].get("matchLabels", {})
    kept: dict[str, int] = {}
    try:
        pods = cluster.pods(labels)
    except ClusterError as error:
        if error.status != FORBIDDEN:
            raise
        return
    lines: dict[int, str] = {}
    for pod in pods:
        for reason in _of_pod(cluster, pod, lines):
            kept[reason] = kept.get(reason, 0) + 1
    creating = [pod["metadata"]["name"] for pod in pods if _is_being_created(pod)]
    for name in creating[:1]:  # they wait for the same
        for text in _warnings(cluster, "Pod", name)[:1]:
            kept[f"the container cannot be started: {text}"] = len(creating)
    for reason, count in kept.items():
        yield f"{count} {'pod' if count == 1 else 'pods'}: {reason}"


def _of_pod(cluster: Cluster, pod: Object, lines: dict[int, str]) -> Iterator[str]:
    """What keeps one pod from working; `lines` are the last lines of crashes, by exit code."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    scheduled = condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        yield f"cannot be scheduled: {scheduled.get('message') or scheduled.get('reason')}"
        return
    every = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in every:
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in IMAGE:
            yield f"the image {container.get('image')} cannot be pulled: {message or reason}"
        elif reason in CONFIGURATION:
            yield f"the container cannot be started: {message or reason}"
        elif reason == "CrashLoopBackOff":
            yield _crash(cluster, name, container, lines)


def _is_being_created(pod: Object) -> bool:
    """Normal for some seconds; where a volume cannot be mounted it stays like this."""
    every = pod.get("status", {}).get("containerStatuses") or []
    states = [container.get("state", {}).get("waiting") or {} for container in every]
    return any(state.get("reason") == "ContainerCreating" for state in states)


def _crash(cluster: Cluster, pod: str, container: Object, lines: dict[int, str]) -> str:
    """How a container ended last. One log is asked for, for all that ended alike."""
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return "crashes: out of memory; raise the memory limit of the Deployment"
    code: int = ended.get("exitCode", -1)
    if code not in lines:
        message = (ended.get("message") or "").strip()
        lines[code] = message.splitlines()[-1] if message else _logged(cluster, pod, container)
    return f"crashes with exit code {code}" + (f": {lines[code]}" if lines[code] else "")


def _logged(cluster: Cluster, pod: str, container: Object) -> str:
    try:
        return cluster.last_log_line(pod, container["name"])
    except ClusterError:
        return ""  # we may not look, or the log is gone


def _warnings(cluster: Cluster, kind: str, name: str) -> list[str]:
    try:
        return cluster.warnings(kind, name)
    except ClusterError:
        return []  # we may not look
