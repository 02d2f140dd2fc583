"""Another image, or another processor, for the workers of a cluster."""

from collections.abc import Callable
from typing import Any

from imece.errors import UsageError
from imece_producer.cluster.client import Cluster

CONTAINER = "worker"


def change(
    cluster: Cluster,
    image: str | None = None,
    processor: str | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Gives the Deployment's worker another image or processor, which replaces all pods: each
    finishes its file and hands back.

    Args:
        check: called before something is changed; raises if it must not be.

    Returns:
        The Deployment as it is then; None if it was so already.

    Raises:
        UsageError: the Deployment has no container `worker`.
        ClusterError
    """
    deployment = cluster.deployment()
    containers = deployment["spec"]["template"]["spec"]["containers"]
    index = next((i for i, one in enumerate(containers) if one["name"] == CONTAINER), None)
    if index is None:
        raise UsageError(
            f"the Deployment {deployment['metadata']['name']} has no container {CONTAINER}",
            "name the workers' Deployment in IMECE_DEPLOYMENT",
        )
    worker = containers[index]
    env = _with_processor(worker.get("env") or [], processor) if processor is not None else None
    wanted = {**worker, "image": image or worker.get("image")}
    if env is not None:
        wanted["env"] = env
    if wanted == worker:
        return None
    check()
    containers[index] = wanted
    return cluster.change_deployment(
        {
            # A merge patch replaces lists whole: refused if somebody was faster.
            "metadata": {"resourceVersion": deployment["metadata"]["resourceVersion"]},
            "spec": {"template": {"spec": {"containers": containers}}},
        }
    )


def _with_processor(env: list[dict[str, Any]], processor: str) -> list[dict[str, Any]]:
    """The container's variables, which win over those it gets from a ConfigMap. Set empty, the
    other kind of processor counts as not set."""
    ours = ("IMECE_PROCESSOR", "IMECE_COMMAND")
    others = [one for one in env if one["name"] not in ours]
    return [
        *others,
        {"name": "IMECE_PROCESSOR", "value": processor},
        {"name": "IMECE_COMMAND"},  # empty: an API server leaves out the value, too
    ]


def left(deployment: dict[str, Any], generation: int) -> str | None:
    """What a rollout still waits for, in words; None if it is through.

    Args:
        generation: of the Deployment, as it was changed.
    """
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 0)
    if status.get("observedGeneration", 0) < generation:
        return "Kubernetes has not looked at the change yet"
    updated, there = status.get("updatedReplicas", 0), status.get("replicas", 0)
    if updated < wanted:
        return f"{updated} of {wanted} workers are new"
    if there > updated:
        return f"{there - updated} old workers hand back"
    if status.get("availableReplicas", 0) < updated:
        return f"{status.get('availableReplicas', 0)} of {updated} new workers are ready"
    return None
