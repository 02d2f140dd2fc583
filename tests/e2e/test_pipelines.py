"""The promise: two pipelines in one namespace share a Redis and nothing else."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.e2e.cluster import Cluster, call
from tests.e2e.waits import within

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

ALL_WITHIN = 120.0
DOWN_WITHIN = 180.0

LOOK = """
import sys
from redis.exceptions import NoPermissionError
from imece.connection import connect
from imece.settings import load
redis = connect(load())
for command in sys.argv[1:]:
    try:
        redis.execute_command(*command.split())
        print("allowed")
    except NoPermissionError:
        print("forbidden")
"""
"""What the user of the pod's pipeline is answered by Redis."""


class Scans(Cluster):
    """The pipeline scans, beside the first one."""

    source, target = "/data/scans/in", "/data/scans/out"


def write(first: Cluster, deploy: Path) -> Path:
    """The overlay that the command writes, with small workers and the processor of the tests."""
    shutil.copytree(ROOT / "deploy", deploy)
    overlay = deploy / "overlays" / "scans"
    options = first.options
    platform = ["--openshift"] if options.overlay == "openshift" else []
    words = [sys.executable, "-m", "imece_producer", "new", "pipeline", "scans", *platform]
    words += ["--image", options.image, "--processor", "e2e:work", "--limit", "2"]
    words += ["--namespace", options.namespace, "--directory", str(overlay)]
    call(words, None, 60)

    file = overlay / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    values, _ = kustomization["configMapGenerator"]
    values["literals"] += ["CPU=100m", "MEMORY=256Mi"]
    kustomization["configMapGenerator"].append({"name": "e2e-processor", "files": ["e2e.py"]})
    volume = {"name": "processor", "configMap": {"name": "e2e-processor"}}
    mount = {"name": "processor", "mountPath": "/app/e2e.py", "subPath": "e2e.py"}
    worker = [
        {"op": "add", "path": "/spec/template/spec/volumes/-", "value": volume},
        {"op": "add", "path": "/spec/template/spec/containers/0/volumeMounts/-", "value": mount},
    ]
    target = {"kind": "Deployment", "name": "imece-worker"}
    kustomization["patches"] = [{"target": target, "patch": json.dumps(worker)}]
    file.write_text(json.dumps(kustomization, indent=2))  # JSON is YAML
    (overlay / "e2e.py").write_text((Path(__file__).parent / "processor.py").read_text())
    return overlay


@pytest.fixture
def scans(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """By the steps that the command says; removed after the test."""
    overlay, redis = write(cluster, tmp_path / "deploy"), "statefulset/imece-redis"
    passwords = str(overlay / "passwords.yaml")
    cluster.kubectl("patch", "secret", "imece-redis", "--patch-file", passwords)
    cluster.kubectl("rollout", "restart", redis)
    cluster.kubectl("rollout", "status", redis, "--timeout=300s", timeout=310)
    try:
        cluster.kubectl("apply", "-k", str(overlay))
        producer, scaled = "deployment/imece-producer-scans", "scaledobject/imece-worker-scans"
        cluster.kubectl("rollout", "status", producer, "--timeout=300s", timeout=310)
        cluster.kubectl("wait", "--for=condition=Ready", scaled, "--timeout=300s", timeout=310)
        yield Scans(cluster.options, "scans")
    finally:
        cluster.kubectl("delete", "-k", str(overlay), timeout=600)


def limit(cluster: Cluster) -> int:
    name = f"imece-worker{cluster.ending}"
    where = "jsonpath={.spec.maxReplicaCount}"
    return int(cluster.kubectl("get", "scaledobject", name, "-o", where))


def test_two_pipelines_work_at_a_time_and_do_not_meet(cluster: Cluster, scans: Cluster) -> None:
    # Limits: each by its producer's rights, and one from outside.
    scans.limit(3)
    assert (limit(cluster), limit(scans)) == (2, 3)
    scans.imece("scale", "4", "--pipeline", "scans")
    assert (limit(cluster), limit(scans)) == (2, 4)
    with pytest.raises(AssertionError, match=r"no right to patch scaledobjects\.keda\.sh"):
        scans.inside("imece", "scale", "1", "--pipeline", "imece")

    # Two runs of the same id, at a time. KEDA scales each by its own queue.
    files = {f"f-{number}": 20.0 for number in range(12)}
    ours, theirs = cluster.enqueue("same", files), scans.enqueue("same", files)
    within(ALL_WITHIN, lambda: (cluster.wanted(), scans.wanted()) == (2, 4), "both limits")
    within(ALL_WITHIN, lambda: len(cluster.running()) == 2, "two workers of the first pipeline")
    within(ALL_WITHIN, lambda: len(scans.running()) == 4, "four workers of the other")
    assert not cluster.running() & scans.running()
    for each in (cluster, scans):
        (listed,) = [
            run
            for run in json.loads(each.inside("imece", "runs", "--json"))
            if run["run"] == "same"
        ]
        assert listed["queue"] == each.pipeline

    # In Redis, a pipeline's user has its own queue's keys only; its pod, one password.
    for each, other in ((cluster, "scans"), (scans, "imece")):
        commands = [
            f"EXISTS imece:{each.pipeline}:run:same",
            f"HGETALL imece:{other}:run:same",
            f"LRANGE rq:queue:{other} 0 -1",
            f"ZCARD rq:wip:{other}",
            f"DEL rq:queue:{other}",
        ]
        said = each.inside("python", "-c", LOOK, *commands).split()
        assert said == ["allowed", *["forbidden"] * 4]
        secrets = each.inside("sh", "-c", "ls /run/secrets/imece")
        assert secrets.split() == ["IMECE_REDIS_PASSWORD"]

    for run in (ours, theirs):
        trace = run.done()
        assert trace.flaws(run.files) == []
    assert not ours.trace().pods(files) & theirs.trace().pods(files)
    for each in (cluster, scans):
        within(DOWN_WITHIN, lambda: each.wanted() == 0, "no worker to be wanted")  # noqa: B023


def test_a_cancel_and_a_pause_are_for_one_pipeline(cluster: Cluster, scans: Cluster) -> None:
    """And what one leaves behind keeps nothing of the other from working."""
    files = {f"f-{number}": 5.0 for number in range(20)}
    ours, theirs = cluster.enqueue("apart", files), scans.enqueue("apart", files)
    within(ALL_WITHIN, lambda: scans.running() and cluster.running(), "workers of both")
    scans.imece("pause", "--pipeline", "scans")
    within(DOWN_WITHIN, lambda: not scans.workers(), "the workers of one to go")
    assert ours.done().flaws(ours.files) == []
    assert theirs.status()["left"] > 0
    scans.imece("resume", "--pipeline", "scans")
    assert theirs.done().flaws(theirs.files) == []
