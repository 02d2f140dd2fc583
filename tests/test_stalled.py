"""The promise: one bad run stops nobody else, and says why it does not go on."""

import json
from pathlib import Path

import pytest

from imece.run import keys
from tests.conftest import Workbench, until

QUEUE = keys.pending("imece")


def enqueue_with_a_file_in_the_way(workbench: Workbench) -> Path:
    """The run `bad`, whose output directory cannot be made; what has to go for it."""
    obstacle = workbench.folder / "obstacle"
    obstacle.mkdir()
    workbench.enqueue("bad", target=str(obstacle / "out"))
    obstacle.rmdir()
    obstacle.write_text("a file")
    return obstacle


def last_pause(workbench: Workbench, run_id: str = "bad") -> None:
    """As if all pauses but one had passed without any progress."""
    workbench.redis.hset(keys.run("imece", run_id), mapping={"pauses": 10, "not_before": 1})


def test_a_run_whose_output_directory_cannot_be_made_does_not_stop_another(
    workbench: Workbench,
) -> None:
    workbench.files(11)
    obstacle = enqueue_with_a_file_in_the_way(workbench)
    workbench.enqueue("good")
    worker = workbench.worker()
    assert workbench.ended("good").done == 11
    bad = workbench.status("bad")
    assert (bad.state, bad.done, bad.failed) == ("running", 0, 0)
    assert str(obstacle) in str(bad.blocking_reason)
    obstacle.unlink()
    assert workbench.ended("bad", 60).done == 11
    assert workbench.status("bad").blocking_reason is None
    worker.stop()


@pytest.mark.slow
def test_processes_that_die_before_their_first_file_do_not_stop_another_run(
    workbench: Workbench,
) -> None:
    """The memory limit is so low that none gets to read 90,000 names."""
    listed = workbench.folder / "names"
    listed.write_bytes(b"".join(b"%d-%s\n" % (number, b"x" * 240) for number in range(90_000)))
    workbench.enqueue("bad", target="-", from_file=str(listed), buckets=1, files_per_job=90_000)
    workbench.files(5)
    workbench.enqueue("good")
    workbench.worker(memory_limit="64")
    assert workbench.ended("good").done == 5
    until(lambda: workbench.status("bad").blocking_reason, "word of it")
    bad = workbench.status("bad")
    assert "its processes die before their first file" in str(bad.blocking_reason)
    assert bad.left == 90_000


@pytest.mark.parametrize("fixed", [True, False])
def test_a_run_that_cannot_go_on_is_held_and_resumed(workbench: Workbench, fixed: bool) -> None:
    workbench.files(11)
    obstacle = enqueue_with_a_file_in_the_way(workbench)
    worker = workbench.worker()
    until(lambda: workbench.status("bad").blocking_reason, "the first pause")
    last_pause(workbench)
    until(lambda: workbench.status("bad").state == "held", "the run to be held")
    until(lambda: workbench.redis.llen(QUEUE) == 0, "nothing for an autoscaler to count")
    assert workbench.status("bad").backlog.in_flight == 0

    answer = workbench.imece("wait", "bad")
    assert answer.returncode == 1
    assert str(obstacle) in answer.stdout
    assert "imece resume bad" in answer.stdout
    told = json.loads(workbench.imece("status", "bad", "--json").stdout)
    assert (told["state"], told["left"]) == ("held", 11)

    if fixed:
        obstacle.unlink()
    assert workbench.imece("resume", "bad").returncode == 0
    if fixed:
        assert workbench.ended("bad").done == 11
    else:
        until(lambda: workbench.status("bad").blocking_reason, "the trouble to be told again")
        assert workbench.status("bad").left == 11
    worker.stop()


def test_a_held_run_goes_on_when_it_is_enqueued_again(workbench: Workbench) -> None:
    workbench.files(3)
    obstacle = enqueue_with_a_file_in_the_way(workbench)
    worker = workbench.worker()
    until(lambda: workbench.status("bad").blocking_reason, "the first pause")
    last_pause(workbench)
    until(lambda: workbench.status("bad").state == "held", "the run to be held")
    obstacle.unlink()
    workbench.file("new.txt")
    assert workbench.enqueue("bad", target=str(obstacle / "out")).how == "resumed"
    assert workbench.ended("bad").done == 4
    worker.stop()


@pytest.mark.slow
@pytest.mark.parametrize("key", ["failures", "slowest", "timeline", "holders"])
def test_a_run_whose_records_break_while_it_is_on_is_held(workbench: Workbench, key: str) -> None:
    """A script that fails half way, sent again and again, counted 2,717 files of 40."""
    workbench.files(40)
    workbench.settings["processor"] = "tests.processors:slow"
    workbench.enqueue("bad", buckets=2)
    worker = workbench.worker()
    until(lambda: workbench.status("bad").done, "the first files")
    with workbench.redis.pipeline() as pipeline:
        pipeline.delete(f"imece:imece:run:bad:{key}")
        pipeline.set(f"imece:imece:run:bad:{key}", "no such thing", ex=1000)
        pipeline.execute()
    until(
        lambda: workbench.redis.hget("imece:imece:run:bad", "state") == b"held",
        "the run to be held",
    )
    assert b"cannot be used" in (
        workbench.redis.hget("imece:imece:run:bad", "blocking_reason") or b""
    )
    done = int(workbench.redis.hget("imece:imece:run:bad", "done") or 0)
    assert done <= 40
    until(lambda: workbench.redis.zcard(keys.leases("imece")) == 0, "the lease to be gone")
    until(lambda: workbench.redis.llen(QUEUE) == 0, "its jobs to leave the queue")
    workbench.enqueue("good", target=str(workbench.folder / "other"))
    assert workbench.ended("good").done == 40
    assert int(workbench.redis.hget("imece:imece:run:bad", "done") or 0) == done
    assert worker.stop() == 0


@pytest.mark.slow
def test_a_worker_that_sees_no_output_directory_leaves_the_run_to_one_that_does(
    workbench: Workbench,
) -> None:
    workbench.files(200)
    workbench.settings["processor"] = "tests.processors:slow"
    workbench.enqueue(buckets=20)
    blind = workbench.worker(output="/proc/no/such/place", log_format="json")
    seeing = workbench.worker()
    assert workbench.ended().done == 200
    assert len(blind.events("job stalled")) <= 5
    assert seeing.stop() == 0
