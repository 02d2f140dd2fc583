"""What keeps the pods of a pipeline from working, and the volumes that they wait for."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from imece_producer.cluster.client import Cluster, ClusterError
from imece_producer.cluster.reason import (
    FORBIDDEN,
    Object,
    Reason,
    condition,
    describe,
    last_words,
    warnings,
)

IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
CONFIGURATION = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")

NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"


def claims_of(spec: Object) -> list[str]:
    """The names of the volume claims a pod mounts, each once."""
    found = (volume.get("persistentVolumeClaim") for volume in spec.get("volumes") or [])
    return list(dict.fromkeys(claim["claimName"] for claim in found if claim))


def pods_of(cluster: Cluster, deployment: Object) -> list[Object]:
    """The pods of the pipeline: its producer and workers, and the Redis of all. None if we may not
    look."""
    labels = dict(deployment["spec"]["selector"].get("matchLabels", {}))
    labels.pop(COMPONENT, None)  # the producer has the others, too
    pairs = [f"{name}={value}" for name, value in labels.items()]
    try:
        return [
            *cluster.pods(f"{NAME}=imece,{COMPONENT}=redis"),
            *cluster.pods(",".join([*pairs, f"{COMPONENT}!=redis"])),
        ]
    except ClusterError as error:
        if error.status != FORBIDDEN:
            raise
        return []


def of_claims(cluster: Cluster, deployment: Object, pods: list[Object]) -> dict[str, Reason]:
    """What is wrong with the volume claims that the workers mount, or that pods wait for."""
    names = claims_of(deployment["spec"]["template"]["spec"])
    for pod in pods:
        if pod.get("status", {}).get("phase") == "Pending":
            names += claims_of(pod["spec"])
    found = {}
    for name in dict.fromkeys(names):
        try:
            phase = cluster.claim(name).get("status", {}).get("phase")
        except ClusterError as error:
            if error.status != FORBIDDEN:
                found[name] = Reason(error.what, error.hint)
            continue
        if phase != "Bound":
            said = warnings(cluster, "PersistentVolumeClaim", name)[:1]
            why = said[0] if said else "no volume fits it, or its storage class waits for a pod"
            found[name] = Reason(
                f"the volume claim {name} is not bound ({phase}): {why}",
                f"`{describe(cluster, 'pvc', name)}`",
            )
    return found


def of_deployment(cluster: Cluster, deployment: Object) -> Iterator[Reason]:
    """What keeps pods from being made at all: a quota, a policy, a missing ServiceAccount."""
    failure = condition(deployment.get("status", {}), "ReplicaFailure")
    if failure.get("status") == "True":
        yield Reason(
            f"no pod can be made: {failure.get('message')}",
            "change the quota or policy that it names, or what the pods ask for: "
            f"`{describe(cluster, 'deployment', deployment['metadata']['name'])}`",
        )


def of_pods(cluster: Cluster, pods: list[Object], unbound: Collection[str]) -> Iterator[Reason]:
    """What keeps pods from working: one reason for one cause, with the number of pods it keeps.

    Args:
        unbound: the volume claims that are not there: pods that wait for them are passed over.
    """
    kept: dict[tuple[str, str], list[_Flaw]] = {}
    said: dict[tuple[str, str], str] = {}
    for pod in pods:
        component = pod["metadata"].get("labels", {}).get(COMPONENT, "")
        for flaw in _of_pod(cluster, pod, component, unbound, said):
            kept.setdefault((component, flaw.cause), []).append(flaw)
    told: dict[str, tuple[list[str], str]] = {}
    for (component, cause), flaws in kept.items():
        which = " ".join(filter(None, (component, "pod" if len(flaws) == 1 else "pods")))
        why = next((flaw.why for flaw in flaws if flaw.why), "")
        text = f"{cause}: {why}" if why else cause
        who, _ = told.setdefault(text, ([], flaws[0].fix))
        who.append(f"{len(flaws)} {which}")
    for text, (who, fix) in told.items():
        yield Reason(f"{', '.join(who)}: {text}", fix)


@dataclass(frozen=True)
class _Flaw:
    """What keeps one pod from working; `cause` is the same for pods that wait for the same."""

    cause: str
    why: str
    fix: str


def _of_pod(
    cluster: Cluster,
    pod: Object,
    component: str,
    unbound: Collection[str],
    said: dict[tuple[str, str], str],
) -> Iterator[_Flaw]:
    """What keeps one pod from working.

    Args:
        said: what logs and events say, by component and cause: they are asked for once.
    """
    name, status = pod["metadata"]["name"], pod.get("status", {})
    see = f"`{describe(cluster, 'pod', name)}`"
    scheduled = condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        why = scheduled.get("message") or scheduled.get("reason") or ""
        if not any(claim in unbound for claim in claims_of(pod["spec"])):
            fix = "free a node, or ask for less CPU or MEMORY; check selectors and taints"
            yield _Flaw("cannot be scheduled", why, f"{fix}: {see}")
        return
    every = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in every:
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        cause = "the container cannot be started"
        if reason in IMAGE:
            why = last_words(message) if reason != "InvalidImageName" else "its name is not valid"
            if why.startswith("Back-off pulling image"):
                why = ""  # that it waits is no cause: another pod may say that
            fix = "correct its name and tag, or give the ServiceAccount an imagePullSecret"
            cause = f"the image {container.get('image')} cannot be pulled"
            yield _Flaw(cause, why, f"{fix}: {see}")
        elif reason in CONFIGURATION:
            yield _Flaw(cause, message or reason, f"make or correct what it names: {see}")
        elif reason == "ContainerCreating":  # normal for some seconds, without a warning
            if (component, cause) not in said:
                told = warnings(cluster, "Pod", name)
                late = [text for text in told if not text.startswith("FailedScheduling")]
                said[component, cause] = late[0] if late else ""
            if why := said[component, cause]:
                yield _Flaw(cause, why, f"make or correct what it names: {see}")
        elif reason == "CrashLoopBackOff":
            yield _crash(cluster, name, component, container, said)


def _crash(
    cluster: Cluster,
    pod: str,
    component: str,
    container: Object,
    said: dict[tuple[str, str], str],
) -> _Flaw:
    """How a container ended last. One log is asked for, for all that ended alike."""
    see = f"`kubectl -n {cluster.namespace} logs {pod} --previous`"
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return _Flaw("crashes", "out of memory", f"raise its memory limit: {see}")
    cause = f"crashes with exit code {ended.get('exitCode', -1)}"
    if (component, cause) not in said:
        message = (ended.get("message") or "").strip()
        said[component, cause] = (
            message.splitlines()[-1] if message else _logged(cluster, pod, container)
        )
    return _Flaw(cause, said[component, cause], f"all of its log: {see}")


def _logged(cluster: Cluster, pod: str, container: Object) -> str:
    try:
        return cluster.last_log_line(pod, container["name"])
    except ClusterError:
        return ""  # we may not look, or the log is gone
