"""Why the workers of a cluster do not come: what is wrong, and what to do about it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from imece.run import keys
from imece_producer.cluster import scaling
from imece_producer.cluster.client import Cluster, ClusterError
from imece_producer.cluster.scaling import Scaling

IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
CONFIGURATION = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")

TRIGGERS = ("TriggerError", "PartialTriggerError")
"""KEDA's reasons for a ScaledObject that is not ready because of its triggers: all, or some."""

FORBIDDEN = 403

NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"

KEDA_PODS = "`kubectl -n keda get pods` (OpenShift: `-n openshift-keda`)"
"""How to see whether KEDA runs. Its usual namespace: a Role in ours cannot look for it."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Reason:
    """What keeps workers from coming.

    Attributes:
        what: what is wrong, and with which object.
        fix: what to do about it, or the command that shows more.
        may_pass: whether it is normal for some seconds.
    """

    what: str
    fix: str
    may_pass: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def look(cluster: Cluster, queue: str, pending: int = 0) -> tuple[Scaling, list[Reason]]:
    """The workers, and what keeps more from coming, the root of it first; empty if nothing does.

    What may not be looked at is passed over.

    Args:
        pending: bucket jobs that wait in the queue.

    Raises:
        ClusterError: the cluster is out of reach, or the ScaledObject or the Deployment is.
    """
    scaled_object, deployment = cluster.scaled_object(), cluster.deployment()
    now = scaling.of(scaled_object, deployment)
    pods = pods_of(cluster, deployment)
    claims = of_claims(cluster, deployment, pods)
    reasons = [
        *claims.values(),
        *of_deployment(cluster, deployment),
        *of_pods(cluster, pods, claims),  # KEDA's reason may be that Redis does not start
        *of_keda(cluster, scaled_object, now, queue, pending),
    ]
    certain = [reason for reason in reasons if not reason.may_pass]
    return now, list(dict.fromkeys(certain or reasons))


# KEDA


def of_keda(
    cluster: Cluster, scaled_object: Object, now: Scaling, queue: str, pending: int
) -> Iterator[Reason]:
    """What keeps KEDA from scaling."""
    reasons = list(of_scaled_object(cluster, scaled_object, queue))
    yield from reasons
    if not reasons:  # they explain what the autoscaler would say
        yield from of_autoscaler(cluster, scaled_object, now, pending)


def of_scaled_object(cluster: Cluster, scaled_object: Object, queue: str) -> Iterator[Reason]:
    """What KEDA says of the ScaledObject, and what the ScaledObject itself shows."""
    name = scaled_object["metadata"]["name"]
    if (paused := scaling.read_paused(scaled_object)) is not None:
        yield Reason(f"paused: {paused}", "`imece resume` ends it")
    if missing := uncounted(scaled_object, queue):
        yield Reason(
            f"KEDA does not count {', '.join(missing)}",
            f"the triggers of the ScaledObject {name} must name the keys of the queue {queue} "
            "(IMECE_QUEUE)",
        )
    status = scaled_object.get("status", {})
    ready = condition(status, "Ready")
    failing = [
        trigger
        for trigger, health in (status.get("health") or {}).items()
        if health.get("status") == "Failing"
    ]
    of_triggers = bool(failing) or ready.get("reason") in TRIGGERS
    see = f"`{describe(cluster, 'scaledobject', name)}`"
    if not ready:
        yield Reason(
            f"KEDA has not looked at the ScaledObject {name}",
            f"see whether KEDA's operator runs: {KEDA_PODS}",
        )
    elif of_triggers or ready.get("status") == "False":
        what = f"KEDA cannot use the ScaledObject {name}"
        if failing:
            what = f"KEDA's trigger {', '.join(failing)} of the ScaledObject {name} fails"
        said = ready.get("message", "")
        if of_triggers:  # KEDA's message does not say why, its event does
            said = next(iter(_warnings(cluster, "ScaledObject", name)), said)
        if of_triggers or "redis" in said:
            see = f"KEDA must reach Redis, with the login of the TriggerAuthentication: {see}"
        yield Reason(f"{what}: {said}" if said else what, see)
    elif ready.get("status") == "Unknown":
        yield Reason(
            f"KEDA has not finished looking at the ScaledObject {name} (Ready is Unknown)",
            f"normal for some seconds; then see whether KEDA's operator runs: {KEDA_PODS}",
            may_pass=True,
        )


def uncounted(scaled_object: Object, queue: str) -> list[str]:
    """The keys of the queue that no trigger counts."""
    triggers = scaled_object.get("spec", {}).get("triggers", [])
    counted = {trigger.get("metadata", {}).get("listName") for trigger in triggers}
    wanted = (keys.pending(queue), keys.moving(queue), keys.leases(queue))
    return [key for key in wanted if key not in counted]


def of_autoscaler(
    cluster: Cluster, scaled_object: Object, now: Scaling, pending: int
) -> Iterator[Reason]:
    """What keeps the autoscaler that KEDA has made of the ScaledObject from scaling.

    KEDA is asked what the autoscaler asks it. No status shows that KEDA's operator is gone: with
    no workers the autoscaler rests, and what KEDA wrote last stays.
    """
    name = scaled_object.get("status", {}).get("hpaName")
    if not name or now.paused is not None:
        return  # not made yet, or removed by KEDA
    try:
        autoscaler = cluster.autoscaler(name)
    except ClusterError as error:
        if error.status != FORBIDDEN:
            yield Reason(error.what, error.hint)
        return
    counted: int | None = None
    try:
        counted = sum(
            cluster.metric(metric["name"], metric["selector"]["matchLabels"])
            for metric in metrics(autoscaler)
        )
    except ClusterError as error:
        if error.status != FORBIDDEN:
            yield _of_metric(error)
            return
    status = autoscaler.get("status", {})
    for kind in ("AbleToScale", "ScalingActive"):
        found = condition(status, kind)
        # With no replicas an autoscaler rests, and KEDA starts the first.
        if found.get("status") == "False" and found.get("reason") != "ScalingDisabled":
            yield Reason(
                f"the autoscaler {name} does not scale: {_last_words(found.get('message', ''))}",
                f"see whether KEDA's operator and metrics server run: {KEDA_PODS}; "
                f"`{describe(cluster, 'hpa', name)}`",
            )
            return
    if pending and now.wanted <= now.minimum:
        see = describe(cluster, "scaledobject", scaled_object["metadata"]["name"])
        yield from _of_count(see, now, pending, counted)


def metrics(autoscaler: Object) -> list[Object]:
    """What the autoscaler asks KEDA for: names and selectors."""
    every = autoscaler.get("spec", {}).get("metrics") or []
    return [metric["external"]["metric"] for metric in every if "external" in metric]


def _of_metric(error: ClusterError) -> Reason:
    """What an answer without a number says of KEDA."""
    if error.status in (404, 503):  # the API server's own answer
        see = f"{KEDA_PODS}, `kubectl get apiservice v1beta1.external.metrics.k8s.io`"
        return Reason("KEDA's metrics server does not answer", see)
    if error.status in (0, 504):  # it waits for the operator
        return Reason("KEDA's operator does not answer", f"see whether it runs: {KEDA_PODS}")
    return Reason(f"KEDA does not say how many bucket jobs there are: {error.what}", KEDA_PODS)


def _of_count(see: str, now: Scaling, pending: int, counted: int | None) -> Iterator[Reason]:
    """Whether KEDA sees the jobs that wait; `see` is the command that shows what it does."""
    if counted == 0:
        yield Reason(
            f"KEDA counts no bucket jobs, and {pending} wait in Redis",
            "its triggers look at another Redis, or at another database of it: compare address "
            f"and databaseIndex with IMECE_REDIS_URL: `{see}`",
        )
    elif now.wanted:
        return
    elif counted is None:
        yield Reason(
            "KEDA has started no worker yet",
            "normal for some seconds; then KEDA's operator does not run, or its triggers look at "
            f"another Redis, or at another database of it: {KEDA_PODS}, `{see}`",
            may_pass=True,
        )
    else:
        yield Reason(
            f"KEDA counts {counted} bucket jobs and has started no worker yet",
            f"normal for some seconds; then `{see}`",
            may_pass=True,
        )


def condition(status: Object, kind: str) -> Object:
    """A condition of an object's status; empty if there is none."""
    every = status.get("conditions") or []
    return next((one for one in every if one.get("type") == kind), {})


def describe(cluster: Cluster, kind: str, name: str) -> str:
    """The command that shows all of an object."""
    return f"kubectl -n {cluster.namespace} describe {kind} {name}"


# Volumes and pods


def claims_of(spec: Object) -> list[str]:
    """The names of the volume claims a pod mounts, each once."""
    found = (volume.get("persistentVolumeClaim") for volume in spec.get("volumes") or [])
    return list(dict.fromkeys(claim["claimName"] for claim in found if claim))


def pods_of(cluster: Cluster, deployment: Object) -> list[Object]:
    """The pods of the installation: Redis, the producer, the workers. None if we may not look."""
    workers = deployment["spec"]["selector"].get("matchLabels", {})
    try:
        return [
            *cluster.pods(f"{NAME}=imece,{COMPONENT}!=worker"),
            *cluster.pods(",".join(f"{name}={value}" for name, value in workers.items())),
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
            said = _warnings(cluster, "PersistentVolumeClaim", name)[:1]
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
            why = _last_words(message) if reason != "InvalidImageName" else "its name is not valid"
            fix = "correct its name and tag, or give the ServiceAccount an imagePullSecret"
            cause = f"the image {container.get('image')} cannot be pulled"
            yield _Flaw(cause, why, f"{fix}: {see}")
        elif reason in CONFIGURATION:
            yield _Flaw(cause, message or reason, f"make or correct what it names: {see}")
        elif reason == "ContainerCreating":  # normal for some seconds, without a warning
            if (component, cause) not in said:
                told = _warnings(cluster, "Pod", name)
                late = [text for text in told if not text.startswith("FailedScheduling")]
                said[component, cause] = late[0] if late else ""
            if why := said[component, cause]:
                yield _Flaw(cause, why, f"make or correct what it names: {see}")
        elif reason == "CrashLoopBackOff":
            yield _crash(cluster, name, component, container, said)


def _last_words(message: str) -> str:
    """The end of a chain of errors, which names its root: `manifest unknown`."""
    return message.strip().rpartition(": ")[2]


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


def _warnings(cluster: Cluster, kind: str, name: str) -> list[str]:
    try:
        return cluster.warnings(kind, name)
    except ClusterError:
        return []  # we may not look
