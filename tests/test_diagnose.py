"""Why workers do not come: each reason in words, from what a cluster says of itself."""

import json
import threading
from typing import Any

import pytest

from imece.settings import load
from imece_producer.cluster import client, diagnose
from imece_producer.cluster.client import ClusterError, connect
from imece_producer.cluster.reason import Reason
from imece_producer.cluster.rights import ASK_KEDA
from tests.api_server import (
    AUTOSCALER,
    DEPLOYMENT,
    METRIC,
    SCALED_OBJECT,
    ApiServer,
    Object,
    deployment,
    pod,
    scaled_object,
)


def looked(pending: int = 0, **settings: Any) -> list[Reason]:
    with connect(load(**settings)) as found:
        return diagnose.look(found, found.settings.queue, pending)[1]


def reasons(**settings: Any) -> list[str]:
    """What is wrong. Each reason has something to do, too."""
    found = looked(**settings)
    assert all(reason.fix for reason in found)
    return [reason.what for reason in found]


def fix(**settings: Any) -> str:
    [found] = looked(**settings)
    return found.fix


def waiting(reason: str, message: str = "", **more: Any) -> Object:
    """The status of a container that does not run."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {"name": "worker", "image": "imece:1", "state": state, **more}


def ended(code: int, **more: Any) -> Object:
    return {"lastState": {"terminated": {"exitCode": code, **more}}}


def test_nothing_is_said_where_nothing_is_wrong(cluster: ApiServer) -> None:
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
            "1 worker pod: the image imece:1 cannot be pulled: manifest unknown",
        ),
        (
            waiting("InvalidImageName"),
            "1 worker pod: the image imece:1 cannot be pulled: its name is not valid",
        ),
        (
            waiting("CreateContainerConfigError", 'secret "imece-redis" not found'),
            '1 worker pod: the container cannot be started: secret "imece-redis" not found',
        ),
        (
            waiting("CrashLoopBackOff", **ended(2, message="first\nIMECE_PROCESSOR is wrong\n")),
            "1 worker pod: crashes with exit code 2: IMECE_PROCESSOR is wrong",
        ),
        (
            waiting("CrashLoopBackOff", **ended(137, reason="OOMKilled")),
            "1 worker pod: crashes: out of memory",
        ),
    ],
)
def test_a_container_that_does_not_start(
    container: Object, reason: str, cluster: ApiServer
) -> None:
    cluster.add_pods(pod(phase="Pending", containerStatuses=[container]))
    assert reasons() == [reason]


def test_a_container_that_is_just_starting_is_no_blocking_reason(cluster: ApiServer) -> None:
    cluster.add_pods(pod(phase="Pending", containerStatuses=[waiting("ContainerCreating")]))
    assert reasons() == []
    cluster.add_warning("Pod", "imece-worker-1", "FailedMount", "no such volume")
    assert reasons() == [
        "1 worker pod: the container cannot be started: FailedMount: no such volume"
    ]
    cluster.add_pods(pod("z", "Pending", containerStatuses=[waiting("ContainerCreating")]))
    assert reasons() == [
        "2 worker pods: the container cannot be started: FailedMount: no such volume"
    ]


def test_a_crash_is_told_by_the_last_line_of_the_log(cluster: ApiServer) -> None:
    container = waiting("CrashLoopBackOff", **ended(3))
    cluster.add_pods(pod("one", containerStatuses=[container]))
    cluster.logs["one"] = "imece-worker: Redis is out of reach\n"
    assert reasons() == [
        "1 worker pod: crashes with exit code 3: imece-worker: Redis is out of reach"
    ]
    cluster.add_pods(pod("two", containerStatuses=[container]))
    cluster.forget()
    assert reasons() == [
        "2 worker pods: crashes with exit code 3: imece-worker: Redis is out of reach"
    ]
    assert len([path for _, path in cluster.asked if path.endswith("/log")]) == 1
    cluster.forbid("get pods/log")
    assert reasons() == ["2 worker pods: crashes with exit code 3"]


def test_pods_with_the_same_blocking_reason_are_counted(cluster: ApiServer) -> None:
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
        "3 worker pods: cannot be scheduled: 0/3 nodes are available: 3 Insufficient cpu."
    ]


def test_pods_of_others_are_not_looked_at(cluster: ApiServer) -> None:
    stranger = pod(containerStatuses=[waiting("ErrImagePull")])
    stranger["metadata"]["labels"] = {"app.kubernetes.io/name": "other"}
    cluster.add_pods(stranger)
    assert reasons() == []


def test_every_pod_of_the_installation_is_looked_at_and_named(cluster: ApiServer) -> None:
    """Passwords that are not set: Redis says so, and nobody else knows."""
    stopped = waiting("CrashLoopBackOff", **ended(2))
    redis = pod("imece-redis-0", component="redis", containerStatuses=[stopped])
    producer = pod(
        "imece-producer-1",
        "Pending",
        component="producer",
        containerStatuses=[waiting("ErrImagePull")],
    )
    cluster.add_pods(redis, producer, pod(containerStatuses=[stopped]))
    cluster.logs["imece-redis-0"] = "IMECE_REDIS_PASSWORD is not set: put one into passwords.env\n"
    assert reasons() == [
        "1 redis pod: crashes with exit code 2: IMECE_REDIS_PASSWORD is not set: "
        "put one into passwords.env",
        "1 producer pod: the image imece:1 cannot be pulled",
        "1 worker pod: crashes with exit code 2",
    ]
    assert looked()[0].fix.endswith("`kubectl -n imece logs imece-redis-0 --previous`")


def test_pods_of_another_pipeline_are_not_looked_at(cluster: ApiServer) -> None:
    broken: dict[str, Any] = {"containerStatuses": [waiting("ErrImagePull")]}
    for component in ("worker", "producer"):
        cluster.add_pods(
            pod(f"{component}-of-scans", component=component, pipeline="scans", **broken)
        )
    assert reasons() == []
    cluster.add_pods(pod("imece-redis-0", component="redis", **broken))
    assert reasons() == ["1 redis pod: the image imece:1 cannot be pulled"]


def test_an_image_that_is_not_there_is_one_reason_and_a_short_one(cluster: ApiServer) -> None:
    """In containerd's words: the same failure, told two ways in turn."""
    image = "docker.io/library/missing:1"
    said = (
        f'rpc error: code = NotFound desc = failed to pull and unpack image "{image}": failed to '
        f'resolve reference "{image}": {image}: not found'
    )
    for name, reason, message in (
        ("one", "ErrImagePull", said),
        ("two", "ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {said}'),
        ("old", "ImagePullBackOff", f'Back-off pulling image "{image}"'),
    ):
        cluster.add_pods(pod(name, "Pending", containerStatuses=[waiting(reason, message)]))
    assert reasons() == ["3 worker pods: the image imece:1 cannot be pulled: not found"]
    assert "imagePullSecret: `kubectl -n imece describe pod old`" in fix()


def test_one_image_for_two_components_is_one_reason(cluster: ApiServer) -> None:
    for component in ("producer", "worker"):
        image = [waiting("ErrImagePull", "not found")]
        cluster.add_pods(pod(component, "Pending", component=component, containerStatuses=image))
    assert reasons() == [
        "1 producer pod, 1 worker pod: the image imece:1 cannot be pulled: not found"
    ]


def test_a_claim_that_is_not_bound_comes_before_the_pods_that_wait_for_it(
    cluster: ApiServer,
) -> None:
    cluster.add_claim("imece-data", "Pending")
    condition = {"type": "PodScheduled", "status": "False", "message": "unbound claims"}
    cluster.add_pods(pod(phase="Pending", conditions=[condition], claims=("other",)))
    bare, other = reasons()
    assert bare.startswith("the volume claim imece-data is not bound (Pending): no volume fits")
    assert other == "there is no PersistentVolumeClaim other in namespace imece"
    cluster.add_warning("PersistentVolumeClaim", "imece-data", "ProvisioningFailed", "no class x")
    assert reasons()[0].endswith("is not bound (Pending): ProvisioningFailed: no class x")


def test_a_claim_that_is_not_there(cluster: ApiServer) -> None:
    cluster.mount("gone")
    assert reasons() == ["there is no PersistentVolumeClaim gone in namespace imece"]
    assert fix().startswith("make it")


def test_pods_that_may_not_be_made(cluster: ApiServer) -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: cpu"}
    cluster.change(DEPLOYMENT, {"status": {"conditions": [failure]}})
    assert reasons() == ["no pod can be made: exceeded quota: cpu"]


# KEDA


def test_keda_is_not_installed(cluster: ApiServer) -> None:
    cluster.remove_keda()
    with pytest.raises(ClusterError, match="KEDA is not installed") as error:
        reasons()
    assert not error.value.known


def test_keda_does_not_run(cluster: ApiServer) -> None:
    cluster.change(SCALED_OBJECT, {"status": {"conditions": None, "hpaName": None}})
    assert reasons() == ["KEDA has not looked at the ScaledObject imece-worker"]
    assert "`kubectl -n keda get pods`" in fix()


def ready(status: str, reason: str, message: str) -> Object:
    return {"type": "Ready", "status": status, "reason": reason, "message": message}


def test_keda_cannot_use_the_scaled_object(cluster: ApiServer) -> None:
    """In KEDA's words. They say why."""
    said = "failed to ensure HPA is correctly created for ScaledObject: connection to redis failed"
    condition = ready("False", "ScaledObjectCheckFailed", said)
    cluster.change(SCALED_OBJECT, {"status": {"conditions": [condition]}})
    cluster.add_warning("ScaledObject", "imece-worker", "KEDAScalerFailed", "older")
    assert reasons() == [f"KEDA cannot use the ScaledObject imece-worker: {said}"]
    assert fix().startswith("KEDA must reach Redis")
    condition["message"] = "ScaledObject doesn't have correct scaleTargetRef specification"
    cluster.change(SCALED_OBJECT, {"status": {"conditions": [condition]}})
    assert fix() == "`kubectl -n imece describe scaledobject imece-worker`"


@pytest.mark.parametrize(
    ("status", "reason"), [("False", "TriggerError"), ("Unknown", "PartialTriggerError")]
)
def test_the_triggers_do_not_reach_redis(status: str, reason: str, cluster: ApiServer) -> None:
    """KEDA's message does not say why. Its event does."""
    said = "Triggers defined in ScaledObject are not working correctly"
    conditions = [ready(status, reason, said)]
    cluster.change(SCALED_OBJECT, {"status": {"conditions": conditions}})
    assert reasons() == [f"KEDA cannot use the ScaledObject imece-worker: {said}"]
    cluster.add_warning("ScaledObject", "other", "KEDAScalerFailed", "not ours")
    cluster.add_warning("ScaledObject", "imece-worker", "KEDAScalerFailed", "older")
    cluster.add_warning("ScaledObject", "imece-worker", "KEDAScalerFailed", "WRONGPASS")
    assert reasons() == [
        "KEDA cannot use the ScaledObject imece-worker: KEDAScalerFailed: WRONGPASS"
    ]
    assert fix().startswith("KEDA must reach Redis")


def test_a_trigger_that_is_failing(cluster: ApiServer) -> None:
    health = {
        "s0-redis-pending": {"status": "Failing", "numberOfFailures": 3},
        "s1-redis-moving": {"status": "Happy"},
    }
    cluster.change(SCALED_OBJECT, {"status": {"health": health}})
    cluster.add_warning("ScaledObject", "imece-worker", "KEDAScalerFailed", "no route to host")
    assert reasons() == [
        "KEDA's trigger s0-redis-pending of the ScaledObject imece-worker fails: "
        "KEDAScalerFailed: no route to host"
    ]


def test_triggers_that_count_another_queue(cluster: ApiServer) -> None:
    ours = {"deployment": "imece-worker", "scaled_object": "imece-worker"}
    assert reasons(queue="other", **ours) == [
        "KEDA does not count rq:queue:other, rq:queue:other:intermediate, rq:wip:other"
    ]
    cluster.deploy(scaled=scaled_object("other"))
    assert reasons(queue="other", **ours) == []


TIMEOUT = json.dumps(
    {
        "metadata": {},
        "status": "Failure",
        "message": "Timeout: request did not complete within the allotted timeout",
        "reason": "Timeout",
        "details": {},
        "code": 504,
    }
)
"""What KEDA's metrics server says after a minute without its operator."""


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (503, "service unavailable\n", "KEDA's metrics server does not answer"),
        (404, "404 page not found\n", "KEDA's metrics server does not answer"),
        (504, TIMEOUT, "KEDA's operator does not answer"),
    ],
)
def test_keda_is_asked_what_its_autoscaler_asks(
    status: int, body: str, reason: str, cluster: ApiServer
) -> None:
    assert reasons() == []
    assert cluster.asked[-1] == ("list", METRIC)
    cluster.keda.failure = (status, body)
    assert reasons() == [reason]
    assert "`kubectl -n keda get pods`" in fix()


def test_a_keda_that_hangs_is_given_up(cluster: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its metrics server does without its operator, for a minute."""
    monkeypatch.setattr(client, "METRIC", 0.2)
    hangs = threading.Event()
    cluster.keda.before = lambda: hangs.wait(20)
    assert reasons() == ["KEDA's operator does not answer"]
    hangs.set()


def test_an_autoscaler_that_does_not_scale(cluster: ApiServer) -> None:

    def say(kind: str, reason: str, message: str = "") -> None:
        flaw = {"type": kind, "status": "False", "reason": reason, "message": message}
        cluster.change(AUTOSCALER, {"status": {"conditions": [flaw]}})

    say("ScalingActive", "ScalingDisabled")  # at rest, with no workers
    assert reasons() == []
    said = (
        "the HPA was unable to compute the replica count: unable to get external metric: no metrics"
    )
    say("ScalingActive", "FailedGetExternalMetric", said)
    assert reasons() == ["the autoscaler keda-hpa-imece-worker does not scale: no metrics"]
    cluster.forbid(str(ASK_KEDA))
    assert reasons() == ["the autoscaler keda-hpa-imece-worker does not scale: no metrics"]
    say("AbleToScale", "FailedGetScale", "no such Deployment")
    assert reasons() == ["the autoscaler keda-hpa-imece-worker does not scale: no such Deployment"]
    assert "`kubectl -n imece describe hpa keda-hpa-imece-worker`" in fix()


def test_jobs_that_keda_does_not_see(cluster: ApiServer) -> None:
    [other] = looked(pending=5)
    assert other.what == "KEDA counts no bucket jobs, and 5 wait in Redis"
    assert "IMECE_REDIS_URL" in other.fix
    assert reasons() == []
    cluster.keda.counted = "5"
    [soon] = looked(pending=5)
    assert soon.what == "KEDA counts 5 bucket jobs and has started no worker yet"
    assert soon.may_pass
    cluster.add_pods(pod(containerStatuses=[waiting("ErrImagePull")]))
    assert len(looked(pending=5)) == 1  # what is certain comes alone


def test_a_pause_is_a_reason(cluster: ApiServer) -> None:
    cluster.annotate({"autoscaling.keda.sh/paused": "true"})
    assert reasons() == ["paused: held at the replicas there are"]
    assert fix() == "`imece resume` ends it"


def test_what_may_not_be_looked_at_is_passed_over(cluster: ApiServer) -> None:
    cluster.add_claim("data", "Pending")
    cluster.add_pods(pod(containerStatuses=[waiting("ErrImagePull")]))
    broken = {"type": "Ready", "status": "False", "message": "broken"}
    cluster.change(SCALED_OBJECT, {"status": {"conditions": [broken]}})
    cluster.forbid("get persistentvolumeclaims", "list pods", "list events")
    assert reasons() == ["KEDA cannot use the ScaledObject imece-worker: broken"]
