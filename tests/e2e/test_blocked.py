"""The promise: imece says what keeps the workers from coming, and goes on when it is corrected."""

import json

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.waits import SAID_WITHIN, within

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

Patch = dict[str, object]


def volume(name: str, source: Patch) -> Patch:
    return {"volumes": [{"name": name, **source}]}


def container(fields: Patch) -> Patch:
    return {"containers": [{"name": "worker", **fields}]}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        pytest.param(
            volume("input", {"persistentVolumeClaim": {"claimName": "scans"}}),
            "PersistentVolumeClaim scans",
            id="claim",
        ),
        pytest.param(
            volume("redis-password", {"secret": {"secretName": "imece-missing"}}),
            '"imece-missing" not found',
            id="secret",
        ),
        pytest.param(
            container({"image": "imece.invalid/missing:1"}),
            "the image imece.invalid/missing:1 cannot be pulled",
            id="image",
        ),
        pytest.param(
            container({"env": [{"name": "IMECE_PROCESSOR", "value": "e2e:nothing"}]}),
            "IMECE_PROCESSOR",
            id="processor",
        ),
    ],
)
def test_a_broken_deployment_is_named_and_when_it_is_corrected_the_run_goes_on(
    cluster: Cluster, broken: Patch, said: str, request: pytest.FixtureRequest
) -> None:
    patch = {"spec": {"template": {"spec": broken}}}
    cluster.kubectl("patch", "deployment/imece-worker", "--patch", json.dumps(patch))
    run = cluster.enqueue(f"broken-{request.node.callspec.id}", {"a": 0.1, "b": 0.1})
    try:
        run.until_told(said)
        assert run.status()["left"] == 2
    finally:
        cluster.kubectl("rollout", "undo", "deployment/imece-worker")
    assert run.done(120).flaws(run.files) == []


def test_a_quota_is_named_and_when_it_is_lifted_all_workers_come(cluster: Cluster) -> None:
    cluster.kubectl("create", "quota", "e2e", "--hard=pods=3")
    try:
        run = cluster.enqueue("quota", {f"f-{number:03}": 2 for number in range(60)})
        run.until_told("exceeded quota: e2e")
        assert len(cluster.workers()) == 1
    finally:
        cluster.kubectl("delete", "quota", "e2e")
    within(SAID_WITHIN, lambda: len(cluster.running()) == 2, "the second worker")
    assert run.done().flaws(run.files) == []
