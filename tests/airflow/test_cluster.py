"""The tasks that speak to a cluster, and a stand-in for its API server."""

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from imece_producer.airflow import (
    ImecePreflightOperator,
    ImeceRolloutOperator,
    ImeceScaleOperator,
    cluster,
)
from imece_producer.airflow.connection import settings_of
from tests.conftest import Workbench, until
from tests.kubernetes_stand_in import StandIn, deployment

IMAGE = "registry.example.com/imece:2"


@pytest.fixture
def api(cluster: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in, known by the connection imece_kubernetes and by nothing else."""
    config = (tmp_path / "kubeconfig").read_text()
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    connect_by({"kube_config": config}, monkeypatch)
    made = deployment(2)
    worker = {"name": "worker", "image": "registry.example.com/imece:1"}
    made["spec"]["template"]["spec"]["containers"] = [{"name": "other", "image": "other"}, worker]
    made["metadata"]["generation"] = 4
    made["status"] = {
        "observedGeneration": 4,
        "updatedReplicas": 2,
        "replicas": 2,
        "availableReplicas": 2,
    }
    cluster.deploy(made)
    return cluster


def connect_by(extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "kubernetes", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_IMECE_KUBERNETES", json.dumps(connection))


def containers(api: StandIn) -> Any:
    return api.deployed["spec"]["template"]["spec"]["containers"]


def test_scale_sets_the_limit_it_is_given(api: StandIn, connected: Workbench) -> None:
    ImeceScaleOperator(task_id="scale", max_replicas="7").execute({})
    assert api.scaled["spec"]["maxReplicaCount"] == 7
    assert api.changed() == [api.scaled_object_path]


def test_scale_leaves_alone_what_it_is_not_given(api: StandIn) -> None:
    ImeceScaleOperator(task_id="scale", max_replicas="None", processor="").execute({})
    assert api.asked == []


def test_another_processor_is_the_worker_s_alone(api: StandIn, connected: Workbench) -> None:
    ImeceScaleOperator(task_id="scale", processor="mine:convert").execute({})
    other, worker = containers(api)
    assert other == {"name": "other", "image": "other"}
    env = {one["name"]: one["value"] for one in worker["env"]}
    assert env == {"IMECE_PROCESSOR": "mine:convert", "IMECE_COMMAND": ""}
    before = len(api.changed())
    ImeceScaleOperator(task_id="scale", processor="mine:convert").execute({})
    assert len(api.changed()) == before


def test_a_rollout_sets_the_image_and_waits(api: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [
        {"observedGeneration": 3},
        {"observedGeneration": 4, "updatedReplicas": 1, "replicas": 3},
        {"observedGeneration": 4, "updatedReplicas": 2, "replicas": 3},
        {"observedGeneration": 4, "updatedReplicas": 2, "replicas": 2},
        {"observedGeneration": 4, "updatedReplicas": 2, "replicas": 2, "availableReplicas": 2},
    ]
    said: list[str] = []

    def next_step(seconds: float) -> None:
        api.deployed["status"] = steps.pop(0)

    next_step(0)
    monkeypatch.setattr("imece_producer.airflow.cluster.time.sleep", next_step)
    task = ImeceRolloutOperator(task_id="roll_out", image=IMAGE)
    with cluster.connected("imece_kubernetes", settings_of(None)) as client:
        cluster.roll_out(client, 60, lambda form, *text: said.append(text[0] if text else form),
                         image=task.image)  # fmt: skip
    assert containers(api)[1]["image"] == IMAGE
    assert said == [
        "rollout: Kubernetes has not looked at the change yet",
        "rollout: 1 of 2 workers are new",
        "rollout: 1 old workers hand back",
        "rollout: 0 of 2 new workers are ready",
        "rollout: all workers are new",
    ]
    assert task.execute({}) == IMAGE  # it is so already


def test_a_rollout_that_takes_too_long_says_what_it_waits_for(api: StandIn) -> None:
    api.deployed["status"] = {"observedGeneration": 4, "updatedReplicas": 1, "replicas": 2}
    task = ImeceRolloutOperator(task_id="roll_out", image=IMAGE, rollout_timeout=0.001)
    with pytest.raises(AirflowFailException, match=r"not through after .*: 1 of 2 workers are new"):
        task.execute({})


def test_a_cluster_that_forbids_it_says_so(api: StandIn) -> None:
    api.forbidden.add("patch deployments.apps")
    with pytest.raises(AirflowException, match=r"patch deployments\.apps"):
        ImeceRolloutOperator(task_id="roll_out", image=IMAGE).execute({})


def test_preflight_looks_at_both(
    api: StandIn, connected: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected.worker()
    until(lambda: connected.redis.scard("rq:workers:imece"), "a worker")
    ImecePreflightOperator(task_id="preflight", max_replicas=3).execute({})
    assert any("scaledobjects" in path for _, path in api.asked)
    connect_by({"kube_config_path": "/no/such/config", "namespace": "imece"}, monkeypatch)
    with pytest.raises(AirflowFailException, match="there is no kubeconfig at /no/such/config"):
        ImecePreflightOperator(task_id="preflight", max_replicas=3).execute({})


def test_a_connection_that_says_two_things_is_refused(
    api: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_by({"kube_config_path": "/a", "in_cluster": True}, monkeypatch)
    with pytest.raises(AirflowFailException, match="exclude each other"):
        ImeceRolloutOperator(task_id="roll_out", image=IMAGE).execute({})
