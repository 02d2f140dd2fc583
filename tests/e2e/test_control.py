"""The promise: parts of the cluster itself may be away, and no file is lost or done twice.

These tests disturb every other one: they run by themselves, where IMECE_E2E_CONTROL names a program
that stops and starts the parts.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.cluster import LIMIT, Cluster
from tests.e2e.conftest import Figure
from tests.e2e.test_faults import at_work
from tests.e2e.waits import kept, within

pytestmark = [pytest.mark.e2e, pytest.mark.control, pytest.mark.timeout(600)]

AWAY = 30.0
"""Seconds; twice a worker's lease, and two looks of the HPA."""

SAID = {
    "keda-operator": "KEDA's operator does not answer",
    "keda-adapter": "KEDA's metrics server does not answer",
}


@contextmanager
def away(cluster: Cluster, part: str) -> Iterator[None]:
    cluster.control("stop", part)
    try:
        yield
    finally:
        cluster.control("start", part)
        within(60, lambda: cluster.refused("get", "--raw", "/readyz") is None, "the API server")


def test_the_api_server_is_away_in_the_middle_of_a_run(cluster: Cluster) -> None:
    run = cluster.enqueue("api", {f"f-{number:03}": 2 for number in range(38)})
    at_work(cluster, run)
    before = cluster.workers()
    with away(cluster, "apiserver"):
        time.sleep(AWAY)  # nobody can be asked meanwhile
    trace = run.done()
    assert trace.flaws(run.files) == []
    assert trace.pods(run.files) == set(before), "workers were replaced"


@pytest.mark.parametrize("part", ["keda-operator", "keda-adapter"])
def test_a_part_of_keda_is_away_in_the_middle_of_a_run(cluster: Cluster, part: str) -> None:
    """The workers that are there stay, and imece says what is wrong."""
    run = cluster.enqueue(part, {f"f-{number:03}": 2 for number in range(50)})
    at_work(cluster, run)
    before = set(cluster.workers())
    with away(cluster, part):
        kept(AWAY, lambda: cluster.wanted() == LIMIT, "the number of workers has changed")
        assert set(cluster.workers()) == before
        run.until_told(SAID[part])
    assert run.done().flaws(run.files) == []


def test_keda_is_away_when_a_run_begins(cluster: Cluster) -> None:
    with away(cluster, "keda-operator"):
        run = cluster.enqueue("begin", {"a": 0.1, "b": 0.1})
        run.until_told(SAID["keda-operator"])
        assert cluster.wanted() == 0
    assert run.done().flaws(run.files) == []


def test_a_node_is_gone_in_the_middle_of_a_run(cluster: Cluster, figure: Figure) -> None:
    """Its files are begun elsewhere when the leases run out."""
    cluster.limit(8)
    run = cluster.enqueue("node", {f"f-{number:03}": 4 for number in range(48)})
    at_work(cluster, run, 8)
    workers = cluster.workers()
    others = {
        pod["spec"]["nodeName"] for pod in cluster.pods("app.kubernetes.io/component!=worker")
    }
    nodes = Counter(pod.node for pod in workers.values() if pod.node not in others)
    [(node, _)] = nodes.most_common(1)
    victims = {pod.name for pod in workers.values() if pod.node == node}
    gone = time.time()
    cluster.control("node-kill", node)
    try:
        in_hand = run.trace().in_hand(victims)
        trace = run.done()
    finally:
        cluster.control("node-back", node)
        cluster.kubectl(
            "wait", "--for=condition=Ready", f"node/{node}", "--timeout=120s", timeout=130
        )
    assert trace.flaws(run.files, deaths=len(victims)) == []
    assert in_hand, "no worker of the node had a file"
    again = [trace.moments[name][-1] - gone for name in in_hand if len(trace.begun[name]) > 1]
    figure("files of the node begun elsewhere", max(again))
