"""The promise: whatever is restarted or killed in a cluster, no file is lost or done twice."""

import json
import time

import pytest

from tests.e2e.cluster import LIMIT, Cluster, ClusterRun
from tests.e2e.conftest import Figure
from tests.e2e.waits import kept, within

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

START_WITHIN = 120.0
OUTAGE = 60.0
"""Seconds; four times a worker's lease, and thirty of KEDA's looks at the queue."""


def at_work(cluster: Cluster, run: ClusterRun, workers: int = LIMIT) -> None:
    """Waits until all workers run, and the volume shows that each has had a file."""
    within(START_WITHIN, lambda: len(cluster.running()) == workers, f"{workers} workers")
    within(START_WITHIN, lambda: len(run.trace().pods(run.files)) == workers, "all to be at work")


def test_redis_restarts_in_the_middle_of_a_run(cluster: Cluster) -> None:
    run = cluster.enqueue("redis", {f"f-{number:03}": 2 for number in range(50)})
    at_work(cluster, run)
    before = cluster.workers()
    cluster.kubectl("delete", "pod", "imece-redis-0")
    cluster.kubectl("rollout", "status", "statefulset/imece-redis", "--timeout=300s", timeout=310)
    assert run.done().flaws(run.files) == []
    after = cluster.workers()
    for name in set(before) & set(after):
        assert after[name].restarts == before[name].restarts, "the probe restarted a worker"


def test_redis_is_killed_and_away_while_files_are_in_hand(cluster: Cluster) -> None:
    """KEDA's looks at an unreachable Redis change nothing, and what is in hand counts."""
    run = cluster.enqueue("outage", {f"f-{number}": OUTAGE * 1.5 for number in range(2)})
    within(START_WITHIN, lambda: len(run.trace().begun) == 2, "both files to be begun")
    before = cluster.workers()
    with cluster.redis_away("--grace-period=0", "--force"):
        same = lambda: cluster.wanted() == LIMIT and cluster.workers() == before  # noqa: E731
        kept(OUTAGE, same, "KEDA, or the probe, has changed the workers")
    assert run.done().flaws(run.files) == []


def test_a_rollout_in_the_middle_of_a_run(cluster: Cluster) -> None:
    run = cluster.enqueue("rollout", {f"f-{number:03}": 2 for number in range(80)})
    at_work(cluster, run)
    before = set(cluster.workers())
    cluster.kubectl("rollout", "restart", "deployment/imece-worker")
    cluster.kubectl("rollout", "status", "deployment/imece-worker", "--timeout=300s", timeout=310)
    assert not before & set(cluster.workers())
    assert run.status()["left"] > 0, "the run was over too soon to show anything"
    trace = run.done()
    assert trace.flaws(run.files) == []
    assert trace.pods(run.files) > before, "old and new workers have had files"


def test_a_pod_killed_without_grace_costs_the_file_in_hand(
    cluster: Cluster, figure: Figure
) -> None:
    """As a lost node does, but for the time until the cluster notices."""
    run = cluster.enqueue("kill", {f"f-{number:03}": 3 for number in range(40)})
    at_work(cluster, run)
    victim = sorted(cluster.running())[0]
    killed = time.time()
    cluster.kubectl("delete", "pod", victim, "--grace-period=0", "--force")
    trace = run.done()
    assert trace.flaws(run.files, deaths=1) == []
    if (seconds := trace.begun_again(killed)) is not None:
        figure("begun again after the kill", seconds)


def test_a_lease_that_a_dead_worker_left_behind_brings_a_worker(
    cluster: Cluster, figure: Figure
) -> None:
    """The only worker dies and none is wanted: its lease alone has to make KEDA start one."""
    cluster.limit(1)
    run = cluster.enqueue("ghost", {"only": 20.0})
    within(START_WITHIN, lambda: run.trace().begun, "the file to be begun")
    [victim] = cluster.running()
    killed = time.time()
    cluster.kubectl("delete", "pod", victim, "--grace-period=0", "--force")
    cluster.kubectl("scale", "deployment/imece-worker", "--replicas=0")
    within(60, lambda: len(run.trace().moments["only"]) == 2, "the file to be begun again")
    figure("begun again after the kill", run.trace().begun_again(killed) or 0.0)
    assert run.done().flaws(run.files, deaths=1) == []


def test_a_grace_period_that_is_too_short_costs_the_file_in_hand(
    cluster: Cluster, figure: Figure
) -> None:
    run = cluster.enqueue("grace", {"long": 40.0} | {f"f-{number}": 2 for number in range(10)})
    within(START_WITHIN, lambda: "long" in run.trace().begun, "the long file to be begun")
    [victim] = run.trace().pods(["long"])
    told = time.time()
    cluster.kubectl("delete", "pod", victim, "--grace-period=5", "--wait=false")
    trace = run.done()
    assert trace.flaws(run.files, deaths=1) == []
    assert len(trace.begun["long"]) == 2
    figure("begun again after the pod was told to end", trace.begun_again(told) or 0.0)


def test_a_drain_goes_by_the_budget_and_loses_nothing(cluster: Cluster) -> None:
    """As `kubectl drain` does it, by evictions; here of all workers, from wherever they are."""
    cluster.limit(4)
    run = cluster.enqueue("drain", {f"f-{number:03}": 3 for number in range(140)})
    at_work(cluster, run, 4)
    left, refusals, fewest = sorted(cluster.running()), [], 4
    before = set(left)
    while left:
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": left[0], "namespace": cluster.options.namespace},
        }
        path = f"/api/v1/namespaces/{cluster.options.namespace}/pods/{left[0]}/eviction"
        refusal = cluster.refused("create", "--raw", path, "-f", "-", given=json.dumps(eviction))
        if refusal is None:
            left = left[1:]
        else:
            refusals.append(refusal)
            time.sleep(1)
        fewest = min(fewest, len(cluster.running()))
    assert any("disruption budget" in refusal for refusal in refusals)
    assert fewest >= 3, "more than a quarter of the workers were away"
    trace = run.done()
    assert trace.flaws(run.files) == []
    assert trace.pods(run.files) > before
