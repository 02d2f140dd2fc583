"""The tasks that speak to a cluster."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from imece.run.store import Run
from imece_producer.airflow import (
    ImecePreflightOperator,
    ImeceRolloutOperator,
    ImeceRunOperator,
    ImeceScaleOperator,
    cluster,
)
from imece_producer.airflow.connection import settings_of
from imece_producer.cluster.client import Cluster
from tests.api_server import DEPLOYMENT, SCALED_OBJECT, ApiServer, deployment
from tests.conftest import Workbench, until
from tests.test_cluster import jwt

IMAGE = "registry.example.com/imece:2"


@pytest.fixture
def api(cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    """The API server, known by the connection imece_kubernetes and by nothing else."""
    config = (tmp_path / "kubeconfig").read_text()
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    connect_by({"kube_config": config}, monkeypatch)
    made = deployment(2, ready=2)
    worker = {"name": "worker", "image": "registry.example.com/imece:1"}
    made["spec"]["template"]["spec"]["containers"] = [{"name": "other", "image": "other"}, worker]
    made["status"] = seen(9, updated=2, there=2, ready=2)  # each change is through at once
    cluster.deploy(made)
    return cluster


def seen(generation: int, updated: int, there: int, ready: int) -> dict[str, int]:
    """How far the rollout of a Deployment is."""
    return {
        "observedGeneration": generation,
        "updatedReplicas": updated,
        "replicas": there,
        "readyReplicas": ready,
        "availableReplicas": ready,
    }


def connect_by(extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "kubernetes", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_IMECE_KUBERNETES", json.dumps(connection))


def containers(api: ApiServer) -> Any:
    return api.deployed["spec"]["template"]["spec"]["containers"]


def test_scale_sets_the_limit_it_is_given(api: ApiServer, connected: Workbench) -> None:
    ImeceScaleOperator(task_id="scale", max_replicas="7").execute({})
    assert api.scaled["spec"]["maxReplicaCount"] == 7
    assert api.patched() == [SCALED_OBJECT]


def test_a_queue_names_the_pipeline_whose_workers_are_meant(
    api: ApiServer, connected: Workbench
) -> None:
    deployed, scaled = api.add_pipeline("scans")
    ImeceScaleOperator(task_id="scale", max_replicas=7, run_queue="scans").execute({})
    assert api.patched() == [scaled]
    ImeceRolloutOperator(task_id="roll_out", image=IMAGE, run_queue="scans").execute({})
    assert api.patched()[1:] == [deployed]
    assert containers(api)[1]["image"] != IMAGE


def test_scale_leaves_alone_what_it_is_not_given(api: ApiServer) -> None:
    ImeceScaleOperator(task_id="scale", max_replicas="None", processor="").execute({})
    assert api.asked == []


def test_another_processor_is_the_worker_s_alone(api: ApiServer, connected: Workbench) -> None:
    ImeceScaleOperator(task_id="scale", processor="mine:convert").execute({})
    other, worker = containers(api)
    assert (other["name"], other["image"], "env" in other) == ("other", "other", False)
    env = {one["name"]: one.get("value") for one in worker["env"]}
    assert env == {"IMECE_PROCESSOR": "mine:convert", "IMECE_COMMAND": None}  # that is: empty
    before = len(api.patched())
    ImeceScaleOperator(task_id="scale", processor="mine:convert").execute({})
    assert len(api.patched()) == before


def test_a_rollout_sets_the_image_and_waits(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [
        seen(1, updated=2, there=2, ready=2),
        seen(2, updated=1, there=3, ready=2),
        seen(2, updated=2, there=3, ready=2),
        seen(2, updated=2, there=2, ready=0),
        seen(2, updated=2, there=2, ready=2),
    ]
    said: list[str] = []

    def next_step(seconds: float) -> None:
        api.change(DEPLOYMENT, {"status": steps.pop(0)})

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


def test_a_rollout_that_takes_too_long_says_what_it_waits_for(api: ApiServer) -> None:
    api.change(DEPLOYMENT, {"status": seen(2, updated=1, there=2, ready=2)})
    task = ImeceRolloutOperator(task_id="roll_out", image=IMAGE, rollout_timeout=0.001)
    with pytest.raises(AirflowFailException, match=r"not through after .*: 1 of 2 workers are new"):
        task.execute({})


def test_a_cluster_that_forbids_it_says_so(api: ApiServer) -> None:
    api.forbid("patch deployments.apps")
    with pytest.raises(AirflowException, match=r"patch deployments\.apps"):
        ImeceRolloutOperator(task_id="roll_out", image=IMAGE).execute({})


def limited(workbench: Workbench) -> ImeceRunOperator:
    workbench.files(40)
    return ImeceRunOperator(
        task_id="run",
        run_id="run",
        input_dir=str(workbench.source),
        output_dir=str(workbench.target),
        max_replicas=7,
        buckets=40,
    )


def test_a_limit_is_set_before_the_run_and_its_workers_are_started_at_once(
    api: ApiServer, connected: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = limited(connected)
    states = []

    def noting(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            states.append(Run(connected.redis, "imece", "run").state())
            return change(*arguments)

        return call

    for name in ("change_scaled_object", "change_scale"):
        monkeypatch.setattr(Cluster, name, noting(getattr(Cluster, name)))
    with pytest.raises(TaskDeferred):
        task.execute({})
    assert api.scaled["spec"]["maxReplicaCount"] == 7
    assert api.deployed["spec"]["replicas"] == 7
    assert states == [None, "queued", "queued"]


def test_workers_that_cannot_be_started_at_once_do_not_fail_the_task(
    api: ApiServer, connected: Workbench
) -> None:
    task = limited(connected)
    api.forbid("patch deployments.apps/scale")
    with pytest.raises(TaskDeferred):
        task.execute({})


def test_another_processor_is_refused_while_a_run_is_on(
    api: ApiServer, connected: Workbench
) -> None:
    ImeceScaleOperator(task_id="scale", processor="mine:convert").execute({})
    connected.files(1)
    connected.enqueue()
    ImeceScaleOperator(task_id="scale", processor="mine:convert").execute({})  # it is so already
    before = len(api.patched())
    other = ImeceScaleOperator(task_id="scale", processor="mine:other")
    with pytest.raises(
        AirflowFailException, match=r"run run of the queue imece is on.*imece cancel"
    ):
        other.execute({})
    assert len(api.patched()) == before
    other.run_queue = "another"  # a pipeline with workers of its own
    deployed, _ = api.add_pipeline("another")
    other.execute({})
    assert api.patched()[before:] == [deployed]
    Run(connected.redis, "imece", "run").cancel(600)
    ImeceScaleOperator(task_id="scale", processor="mine:third").execute({})
    assert containers(api)[1]["env"][0]["value"] == "mine:third"


def test_a_token_that_has_expired_fails_at_once_and_says_how_to_make_one(
    api: ApiServer, connected: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired = {"token": jwt(time.time() - 3600)}
    api.kubeconfig(tmp_path / "kubeconfig", user=expired)
    connect_by({"kube_config_path": str(tmp_path / "kubeconfig")}, monkeypatch)
    with pytest.raises(
        AirflowFailException, match=r"expired.*oc create token.*Airflow connection imece_kubernetes"
    ):
        ImeceScaleOperator(task_id="scale", max_replicas=3).execute({})


# Preflight


def preflight(**fields: Any) -> str:
    """What it fails with; nothing if it is green."""
    try:
        ImecePreflightOperator(task_id="preflight", **fields).execute({})
    except AirflowFailException as error:
        return str(error)
    return ""


def test_preflight_looks_at_what_the_run_will_use(
    api: ApiServer, connected: Workbench, tmp_path: Path
) -> None:
    connected.worker()
    until(lambda: connected.redis.scard("rq:workers:imece"), "a worker")
    directories = {"input_dir": str(connected.source), "output_dir": str(connected.target)}
    assert preflight(max_replicas=3, **directories) == ""
    assert any("scaledobjects" in path for _, path in api.asked)
    assert "does not exist" in preflight(input_dir=str(tmp_path / "none"))
    inside = str(connected.source / "out")
    assert "lies inside the input directory" in preflight(
        input_dir=str(connected.source), output_dir=inside
    )
    assert "takes package.module:function" in preflight(processor="p.py")


@pytest.mark.parametrize("how", ["expired", "wrong CA", "empty", "missing"])
def test_preflight_fails_with_a_cluster_that_cannot_be_used_as_compose_names_it(
    api: ApiServer, connected: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    file = tmp_path / "kubeconfig"
    if how == "expired":
        api.kubeconfig(file, user={"token": jwt(time.time() - 3600)})
    elif how == "wrong CA":
        api.kubeconfig(file, trusted=False)
    elif how == "empty":
        file.write_text("")
    else:
        file.unlink()
    connect_by({"kube_config_path": str(file)}, monkeypatch)
    task = ImecePreflightOperator(task_id="preflight", max_replicas="3")
    with pytest.raises(AirflowException) as raised:
        task.execute({})
    said = {
        "expired": r"has expired .* ago .*oc create token.* Airflow connection imece_kubernetes",
        "wrong CA": "certificate verify failed",
        "empty": "has no current context",
        "missing": "there is no kubeconfig at",
    }
    assert re.search(said[how], str(raised.value))
    assert isinstance(raised.value, AirflowFailException) or how == "wrong CA"


@pytest.mark.parametrize("extra", [None, "empty"])
def test_preflight_has_no_word_of_a_cluster_where_none_is_named(
    connected: Workbench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    extra: str | None,
) -> None:
    if extra:
        (tmp_path / "kubeconfig").touch()
        connect_by({"kube_config_path": str(tmp_path / "kubeconfig")}, monkeypatch)
    task = ImecePreflightOperator(task_id="preflight", max_replicas="None")
    task.execute({})
    said = capfd.readouterr().out
    assert "ok redis: " in said
    assert "cluster" not in said


def test_preflight_fails_at_once_with_a_wrong_password(connected: Workbench) -> None:
    connected.redis.config_set("requirepass", "right")
    try:
        assert "login and password of the Airflow connection imece_redis" in preflight()
    finally:
        connected.redis.config_set("requirepass", "")


def test_a_connection_that_says_two_things_is_refused(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_by({"kube_config_path": "/a", "in_cluster": True}, monkeypatch)
    with pytest.raises(AirflowFailException, match="exclude each other"):
        ImeceRolloutOperator(task_id="roll_out", image=IMAGE).execute({})
