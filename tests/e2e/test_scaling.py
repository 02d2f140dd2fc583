"""The promise: parallelism is a limit, KEDA follows the queue, and nothing is lost on the way."""

import pytest

from tests.e2e.cluster import Cluster, within

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

FIRST_WITHIN = 15.0
"""KEDA looks every 2 s while there are no workers; the rest is for the commands of the test."""
ALL_WITHIN = 45.0
"""From one on the HPA decides, every 15 s (its controller's period); one look may be missed."""
DOWN_WITHIN = 120.0
"""30 s of stabilization and 15 s of cooldown, and two looks of the HPA."""

BUSY, IDLE = "1000", "0"


def test_from_none_to_the_limit_within_seconds_and_back_to_none(cluster: Cluster) -> None:
    cluster.limit(4)
    run = cluster.enqueue("up", {f"f-{number}": 40 for number in range(8)})
    within(FIRST_WITHIN, lambda: cluster.wanted() >= 1, "the first worker to be wanted")
    within(ALL_WITHIN, lambda: cluster.wanted() == 4, "all workers to be wanted")
    assert run.done().flaws(run.files) == []
    within(DOWN_WITHIN, lambda: cluster.wanted() == 0, "no worker to be wanted")
    within(DOWN_WITHIN, lambda: not cluster.workers(), "the pods to go")


def test_the_limit_goes_up_and_down_while_a_run_is_on(cluster: Cluster) -> None:
    run = cluster.enqueue("limit", {f"f-{number:03}": 3 for number in range(300)})
    within(ALL_WITHIN, lambda: len(cluster.running()) == 2, "two workers")
    cluster.imece("scale", "6")
    within(ALL_WITHIN, lambda: cluster.wanted() == 6, "six to be wanted")
    within(ALL_WITHIN, lambda: len(cluster.running()) == 6, "six workers")
    cluster.limit(2)
    within(ALL_WITHIN, lambda: cluster.wanted() == 2, "two to be wanted")
    within(ALL_WITHIN, lambda: len(cluster.workers()) == 2, "four to go")
    assert run.status()["left"] > 0, "the run was over too soon to show anything"
    assert run.done().flaws(run.files) == []


def test_idle_pods_go_and_busy_ones_stay(cluster: Cluster) -> None:
    """Four workers; two have a short file, and are then the ones that are too many."""
    cluster.limit(4)
    long, short = dict.fromkeys(("long-1", "long-2"), 300.0), dict.fromkeys(("s-1", "s-2"), 100.0)
    run = cluster.enqueue("idle", long | short)
    within(90, lambda: len(run.trace().begun) == 4, "all files to be begun")
    trace = run.trace()
    busy, idle = trace.pods(long), trace.pods(short)
    assert len(busy | idle) == 4, "not each worker has a file"
    last_seen: dict[str, str] = {}

    def only_two_are_left() -> bool:
        there = cluster.workers()
        last_seen.update({name: pod.cost for name, pod in there.items()})
        return len(there) == 2

    within(100 + DOWN_WITHIN, only_two_are_left, "two to go")
    assert last_seen == dict.fromkeys(busy, BUSY) | dict.fromkeys(idle, IDLE)
    assert set(cluster.workers()) == busy
    trace = run.done()
    assert trace.flaws(run.files) == []
    assert trace.pods(long) == busy
