"""Why workers do not come: each reason in words, from what a cluster says of itself."""

from typing import Any

import pytest

from imece.settings import load
from imece_producer.cluster import diagnose
from imece_producer.cluster.client import ClusterError, connect
from tests.kubernetes_stand_in import Object, StandIn, deployment, pod, scaled_object


def reasons(**settings: Any) -> list[str]:
    with connect(load(**settings)) as found:
        return diagnose.look(found, found.settings.queue)[1]


def waiting(reason: str, message: str = "", **more: Any) -> Object:
    """The status of a container that does not run."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {"name": "worker", "image": "imece:1", "state": state, **more}


def ended(code: int, **more: Any) -> Object:
    return {"lastState": {"terminated": {"exitCode": code, **more}}}


def test_nothing_is_said_where_nothing_is_wrong(cluster: StandIn) -> None:
    cluster.deploy(deployment(2, ready=2))
    cluster.add_claim("data", "Bound")
    running = {"name": "worker", "state": {"running": {}}}
    cluster.add_pods(pod("one", containerStatuses=[running]), pod("two", "Succeeded"))
    assert reasons() == []


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        (
            waiting("ErrImagePull", "manifest unknown"),
            "1 pod: the image imece:1 cannot be pulled: manifest unknown",
        ),
        (
            waiting("InvalidImageName"),
            "1 pod: the image imece:1 cannot be pulled: InvalidImageName",
        ),
        (
            waiting("CreateContainerConfigError", 'secret "imece-redis" not found'),
            '1 pod: the container cannot be started: secret "imece-redis" not found',
        ),
        (
            waiting("CrashLoopBackOff", **ended(2, message="first\nIMECE_PROCESSOR is wrong\n")),
            "1 pod: crashes with exit code 2: IMECE_PROCESSOR is wrong",
        ),
        (
            waiting("CrashLoopBackOff", **ended(137, reason="OOMKilled")),
            "1 pod: crashes: out of memory; raise the memory limit of the Deployment",
        ),
    ],
)
def test_a_container_that_does_not_start(container: Object, reason: str, cluster: StandIn) -> None:
    cluster.add_pods(pod(phase="Pending", containerStatuses=[container]))
    assert reasons() == [reason]


def test_a_container_that_is_just_starting_is_no_blocking_reason(cluster: StandIn) -> None:
    cluster.add_pods(pod(phase="Pending", containerStatuses=[waiting("ContainerCreating")]))
    assert reasons() == []
    cluster.add_warning("Pod", "imece-worker-1", "FailedMount", "no such volume")
    assert reasons() == ["1 pod: the container cannot be started: FailedMount: no such volume"]
    cluster.add_pods(pod("z", "Pending", containerStatuses=[waiting("ContainerCreating")]))
    assert reasons() == ["2 pods: the container cannot be started: FailedMount: no such volume"]


def test_a_crash_is_told_by_the_last_line_of_the_log(cluster: StandIn) -> None:
    container = waiting("CrashLoopBackOff", **ended(3))
    cluster.add_pods(pod("one", containerStatuses=[container]))
    cluster.logs["one"] = "imece-worker: Redis is out of reach\n"
    assert reasons() == ["1 pod: crashes with exit code 3: imece-worker: Redis is out of reach"]
    cluster.add_pods(pod("two", containerStatuses=[container]))
    cluster.asked.clear()
    assert reasons() == ["2 pods: crashes with exit code 3: imece-worker: Redis is out of reach"]
    assert len([path for _, path in cluster.asked if path.endswith("/log")]) == 1
    cluster.forbidden = {"get pods/log"}
    assert reasons() == ["2 pods: crashes with exit code 3"]


def test_pods_with_the_same_blocking_reason_are_counted(cluster: StandIn) -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient cpu.",
    }
    cluster.add_pods(
        *(pod(f"p-{number}", "Pending", conditions=[condition]) for number in range(3))
    )
    assert reasons() == [
        "3 pods: cannot be scheduled: 0/3 nodes are available: 3 Insufficient cpu."
    ]


def test_only_the_workers_own_pods_are_looked_at(cluster: StandIn) -> None:
    stranger = pod(containerStatuses=[waiting("ErrImagePull")])
    stranger["metadata"]["labels"] = {"app.kubernetes.io/name": "imece"}
    cluster.add_pods(stranger)
    assert reasons() == []


def test_a_claim_that_is_not_bound_comes_before_the_pods_that_wait_for_it(
    cluster: StandIn,
) -> None:
    cluster.add_claim("imece-data", "Pending")
    condition = {"type": "PodScheduled", "status": "False", "message": "unbound claims"}
    cluster.add_pods(pod(phase="Pending", conditions=[condition]))
    bare, wait = reasons()
    assert bare.startswith("the volume claim imece-data is not bound (Pending): no volume fits")
    assert wait == "1 pod: cannot be scheduled: unbound claims"
    cluster.add_warning("PersistentVolumeClaim", "imece-data", "ProvisioningFailed", "no class x")
    assert reasons()[0].endswith("is not bound (Pending): ProvisioningFailed: no class x")


def test_a_claim_that_is_not_there(cluster: StandIn) -> None:
    cluster.add_claim("gone", "Bound")
    path = "/api/v1/namespaces/imece/persistentvolumeclaims/gone"
    del cluster.objects[path]
    assert reasons()[0].startswith(
        "there is no PersistentVolumeClaim gone in namespace imece: make it"
    )


def test_pods_that_may_not_be_made(cluster: StandIn) -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: cpu"}
    cluster.deployed["status"]["conditions"] = [failure]
    assert reasons() == ["no pod can be made: exceeded quota: cpu"]


# KEDA


def test_keda_is_not_installed(cluster: StandIn) -> None:
    cluster.unknown = {"keda.sh"}
    with pytest.raises(ClusterError, match="KEDA is not installed") as error:
        reasons()
    assert not error.value.known


def test_keda_does_not_run(cluster: StandIn) -> None:
    cluster.scaled["status"] = {}
    [reason] = reasons()
    assert reason.startswith(
        "KEDA has not looked at the ScaledObject imece-worker: is its operator"
    )


def test_keda_cannot_use_the_scaled_object(cluster: StandIn) -> None:
    cluster.scaled["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "message": "no such Deployment"}
    ]
    cluster.add_warning("ScaledObject", "other", "KEDAScalerFailed", "not ours")
    cluster.add_warning("ScaledObject", "imece-worker", "KEDAScalerFailed", "older")
    cluster.add_warning("ScaledObject", "imece-worker", "KEDAScalerFailed", "WRONGPASS")
    assert reasons() == [
        "KEDA cannot use the ScaledObject imece-worker: no such Deployment",
        "KEDA: KEDAScalerFailed: WRONGPASS",
    ]


def test_a_trigger_that_is_failing(cluster: StandIn) -> None:
    cluster.scaled["status"]["health"] = {
        "s0-redis-pending": {"status": "Failing", "numberOfFailures": 3},
        "s1-redis-moving": {"status": "Happy"},
    }
    cluster.add_warning("ScaledObject", "imece-worker", "KEDAScalerFailed", "no route to host")
    said, trigger = reasons()
    assert said == "KEDA: KEDAScalerFailed: no route to host"
    assert trigger.startswith("KEDA's trigger s0-redis-pending is failing")


def test_triggers_that_count_another_queue(cluster: StandIn) -> None:
    [reason] = reasons(queue="other")
    assert reason.startswith(
        "KEDA does not count rq:queue:other, rq:queue:other:intermediate, rq:wip:other: "
    )
    cluster.deploy(scaled=scaled_object("other"))
    assert reasons(queue="other") == []


def test_a_pause_is_a_reason(cluster: StandIn) -> None:
    cluster.scaled["metadata"]["annotations"] = {"autoscaling.keda.sh/paused": "true"}
    assert reasons() == ["paused: held at the replicas there are (`imece resume` ends it)"]


def test_what_may_not_be_looked_at_is_passed_over(cluster: StandIn) -> None:
    cluster.add_claim("data", "Pending")
    cluster.add_pods(pod(containerStatuses=[waiting("ErrImagePull")]))
    cluster.scaled["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "message": "broken"}
    ]
    cluster.forbidden = {"get persistentvolumeclaims", "list pods", "list events"}
    assert reasons() == ["KEDA cannot use the ScaledObject imece-worker: broken"]
