"""The promise: parallelism is a limit, KEDA follows the queue, and nothing is lost on the way."""

import time

import pytest

from tests.e2e.cluster import LIMIT, Cluster, Options
from tests.e2e.conftest import Figure
from tests.e2e.waits import within

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

FIRST_WITHIN = 30.0
"""KEDA looks every 2 s while there are no workers; the rest is for the commands of the test."""
ALL_WITHIN = 90.0
"""From one on the HPA decides, every 15 s (its controller's period); one look may be missed."""
DOWN_WITHIN = 120.0
"""30 s of stabilization and 15 s of cooldown, and two looks of the HPA."""

BUSY, IDLE = "1000", "0"


def test_from_none_to_the_limit_within_seconds_and_back_to_none(
    cluster: Cluster, options: Options, figure: Figure
) -> None:
    cluster.limit(options.limit)
    seconds = 30 + 0.75 * options.limit  # nobody has a second file before the last has started
    with cluster.replicas() as replicas:
        run = cluster.enqueue("up", {f"f-{number:03}": seconds for number in range(options.limit)})
        within(FIRST_WITHIN, lambda: cluster.wanted() >= 1, "the first worker to be wanted")
        first = next(at for at, wanted in replicas.changes if at > run.enqueued and wanted > 0)
        figure("first wanted after the call", first - run.enqueued)
        figure("all wanted", replicas.reached(options.limit, run.enqueued, ALL_WITHIN))
        trace = run.done()
        assert trace.flaws(run.files) == []
        assert len(trace.pods(run.files)) == options.limit
        ended = run.status()["ended"]
        figure("all begun", max(trace.moments[name][0] for name in run.files) - run.enqueued)
        figure("none wanted after the end", replicas.reached(0, ended, DOWN_WITHIN))
        within(DOWN_WITHIN, lambda: not cluster.workers(), "the pods to go")


def test_the_limit_goes_down_and_up_while_a_run_is_on(
    cluster: Cluster, options: Options, figure: Figure
) -> None:
    many, few = options.limit, max(1, options.limit // 4)
    cluster.limit(many)
    run = cluster.enqueue("limit", {f"f-{number:03}": 3 for number in range(25 * many)})
    within(ALL_WITHIN + 30, lambda: len(cluster.running()) == many, "all workers")
    with cluster.replicas() as replicas:
        now = time.time()
        cluster.imece("scale", str(few))
        figure(f"{few} wanted after {many}", replicas.reached(few, now, ALL_WITHIN))
        within(ALL_WITHIN, lambda: len(cluster.workers()) == few, "the others to go")
        now = time.time()
        cluster.limit(many)
        figure(f"{many} wanted after {few}", replicas.reached(many, now, ALL_WITHIN))
        within(ALL_WITHIN, lambda: len(cluster.running()) == many, "all workers again")
    assert run.status()["left"] > 0, "the run was over too soon to show anything"
    assert run.done().flaws(run.files) == []


def test_idle_pods_go_and_busy_ones_stay(cluster: Cluster) -> None:
    """Four workers; two have a short file, and are then the ones that are too many."""
    cluster.limit(4)
    long, short = dict.fromkeys(("long-1", "long-2"), 150.0), dict.fromkeys(("s-1", "s-2"), 45.0)
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


def test_a_run_and_one_of_a_hundred_times_its_size_both_come_out_once(
    cluster: Cluster, figure: Figure
) -> None:
    large = cluster.enqueue("large", {f"f-{number:03}": 0.5 for number in range(300)})
    small = cluster.enqueue("small", {f"f-{number}": 0.5 for number in range(3)})
    within(ALL_WITHIN, lambda: len(cluster.running()) == LIMIT, "the workers")
    assert small.done().flaws(small.files) == []
    first = min(small.trace().moments[name][0] for name in small.files)
    figure("first file of the small run begun", first - small.enqueued)
    assert large.done().flaws(large.files) == []
