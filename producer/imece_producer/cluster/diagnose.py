"""Why the workers of a cluster do not come: what is wrong, and what to do about it."""

from collections.abc import Iterator

from imece.run import keys
from imece_producer.cluster import scaling
from imece_producer.cluster.client import Cluster, ClusterError
from imece_producer.cluster.pods import of_claims, of_deployment, of_pods, pods_of
from imece_producer.cluster.reason import (
    FORBIDDEN,
    Object,
    Reason,
    condition,
    describe,
    last_words,
    warnings,
)
from imece_producer.cluster.scaling import Scaling

TRIGGERS = ("TriggerError", "PartialTriggerError")
"""KEDA's reasons for a ScaledObject that is not ready because of its triggers: all, or some."""

KEDA_PODS = "`kubectl -n keda get pods` (OpenShift: `-n openshift-keda`)"
"""How to see whether KEDA runs. Its usual namespace: a Role in ours cannot look for it."""


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
            said = next(iter(warnings(cluster, "ScaledObject", name)), said)
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
                f"the autoscaler {name} does not scale: {last_words(found.get('message', ''))}",
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
