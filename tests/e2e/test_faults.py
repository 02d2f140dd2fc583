"""The promise: whatever is restarted or killed in a cluster, no file is lost or done twice."""

import time

import pytest

from tests.e2e.cluster import Cluster, within

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

START_WITHIN = 60.0
OUTAGE = 60.0
"""Seconds; four times a worker's lease, and thirty of KEDA's looks at the queue."""


def two_at_work(cluster: Cluster) -> bool:
    """Both workers run, and the volume shows that files are being done."""
    return len(cluster.running()) == 2


def test_redis_restarts_in_the_middle_of_a_run(cluster: Cluster) -> None:
    run = cluster.enqueue("redis", {f"f-{number:03}": 2 for number in range(60)})
    within(START_WITHIN, lambda: two_at_work(cluster), "two workers")
    before = cluster.workers()
    cluster.kubectl("delete", "pod", "imece-redis-0")
    cluster.kubectl("rollout", "status", "statefulset/imece-redis", "--timeout=300s", timeout=310)
    assert run.done().flaws(run.files) == []
    after = cluster.workers()
    for name in set(before) & set(after):
        assert after[name].restarts == before[name].restarts, "the probe restarted a worker"


def test_a_rollout_in_the_middle_of_a_run(cluster: Cluster) -> None:
    run = cluster.enqueue("rollout", {f"f-{number:03}": 3 for number in range(120)})
    within(START_WITHIN, lambda: two_at_work(cluster), "two workers")
    before = set(cluster.workers())
    cluster.kubectl("rollout", "restart", "deployment/imece-worker")
    cluster.kubectl("rollout", "status", "deployment/imece-worker", "--timeout=300s", timeout=310)
    assert not before & set(cluster.workers())
    assert run.status()["left"] > 0, "the run was over too soon to show anything"
    trace = run.done()
    assert trace.flaws(run.files) == []
    assert trace.pods(run.files) > before, "old and new workers have had files"


def test_a_poll_of_an_unreachable_redis_changes_nothing(cluster: Cluster) -> None:
    run = cluster.enqueue("outage", {f"f-{number}": OUTAGE * 3 for number in range(2)})
    within(START_WITHIN, lambda: len(run.trace().begun) == 2, "both files to be begun")
    before = cluster.workers()
    with cluster.redis_away():
        away = time.monotonic()
        while time.monotonic() - away < OUTAGE:
            assert cluster.wanted() == 2
            assert cluster.workers() == before
            time.sleep(1)
    assert run.done().flaws(run.files) == []


def test_pods_killed_without_grace_cost_the_file_in_hand(cluster: Cluster) -> None:
    """As a lost node does, but for the time until the cluster notices."""
    run = cluster.enqueue("kill", {f"f-{number:03}": 3 for number in range(60)})
    within(START_WITHIN, lambda: two_at_work(cluster), "two workers")
    victim = sorted(cluster.running())[0]
    cluster.kubectl("delete", "pod", victim, "--grace-period=0", "--force")
    assert run.done().flaws(run.files, deaths=1) == []
