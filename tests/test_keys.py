"""The keys are RQ's own: what `rq info` and an autoscaler count is what imece fills."""

import os
import subprocess
import sys

import pytest
from redis import Redis
from rq import Queue, Worker
from rq.intermediate_queue import IntermediateQueue
from rq.registry import StartedJobRegistry
from rq.worker_registration import get_keys

from imece.run import keys
from tests.conftest import ROOT, Workbench, until


def test_each_key_is_the_one_rqs_classes_use(redis: Redis) -> None:
    queue = Queue("night", connection=redis)
    assert keys.pending("night") == queue.key
    assert keys.moving("night") == queue.intermediate_queue_key
    assert keys.moving("night") == IntermediateQueue(queue.key, redis).key
    assert keys.leases("night") == StartedJobRegistry("night", connection=redis).key
    assert Queue.redis_queues_keys == keys.QUEUES
    worker = Worker([queue], name="one", connection=redis)
    assert keys.worker("one") == worker.key
    assert keys.channel("one") == worker.pubsub_channel_name


def test_rqs_classes_see_a_worker_and_its_queue(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.enqueue(buckets=1, files_per_job=3)
    queue = Queue("imece", connection=workbench.redis)
    assert [each.name for each in Queue.all(connection=workbench.redis)] == ["imece"]
    assert queue.count == 1
    worker = workbench.worker(processor="tests.processors:slow")
    until(lambda: StartedJobRegistry("imece", connection=workbench.redis).count, "a job in flight")
    [seen] = Worker.all(connection=workbench.redis)
    assert {seen.key} == get_keys(queue) == {keys.worker(seen.name)}
    assert seen.queue_names() == ["imece"]
    assert workbench.ended().done == 3
    worker.stop()


PREFIXED = """
from imece.run import keys
print(keys.pending("q"), keys.moving("q"), keys.leases("q"), keys.workers("q"), keys.QUEUES)
"""


def test_a_prefix_of_rqs_renames_all_of_them(workbench: Workbench) -> None:
    """`RQ_KEY_PREFIX` came with RQ 3.0. A key written out somewhere would tear the queue in two."""
    answer = subprocess.run(
        [sys.executable, "-c", PREFIXED],
        env={**os.environ, "RQ_KEY_PREFIX": "other", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == [
        *("other:queue:q", "other:queue:q:intermediate", "other:wip:q", "other:workers:q"),
        "other:queues",
    ]


@pytest.mark.slow
def test_a_run_goes_through_under_another_prefix(workbench: Workbench) -> None:
    workbench.files(5)
    os.environ["RQ_KEY_PREFIX"] = "other"
    try:
        call = ("enqueue", str(workbench.source), str(workbench.target), "--run-id", "run")
        assert workbench.imece(*call).returncode == 0
        assert workbench.redis.llen("other:queue:imece") == 5
        worker = workbench.worker()
        until(lambda: len(workbench.outputs()) == 5, "the outputs")
        assert workbench.imece("wait", "run").returncode == 0
        worker.stop()
    finally:
        del os.environ["RQ_KEY_PREFIX"]
    assert list(workbench.redis.scan_iter("rq:*")) == []
