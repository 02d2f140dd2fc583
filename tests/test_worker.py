"""The promise: a folder becomes outputs."""

import itertools
import os
import signal

from imece.run.store import Run
from tests.conftest import Workbench, until


def test_every_file_becomes_its_output(workbench: Workbench) -> None:
    names = workbench.files(100)
    workbench.enqueue()
    workbench.worker()
    assert workbench.ended().state == "done"
    assert workbench.outputs() == names
    assert workbench.check_books().done == 100


def test_sigterm_finishes_the_file_in_hand_and_gives_the_rest_back(workbench: Workbench) -> None:
    workbench.files(40)
    workbench.enqueue(buckets=1, files_per_job=100)
    worker = workbench.worker(processor="tests.processors:slow")
    until(lambda: workbench.status().done, "the first file")
    worker.kill(signal.SIGTERM)
    assert worker.wait(2) == 0
    now = workbench.check_books()
    assert 0 < now.done < 40
    assert now.backlog.pending == 1
    assert now.backlog.in_flight == 0


def begun_at(workbench: Workbench) -> list[tuple[str, float]]:
    """When which file was begun, in order; as the processor `timed` notes it."""
    lines = (workbench.folder / "times").read_text().splitlines()
    return [(name, float(at)) for name, at in (line.split() for line in lines)]


def test_a_failed_file_is_tried_again_after_the_rest_of_its_bucket_with_growing_pauses(
    workbench: Workbench,
) -> None:
    names = workbench.files(10)
    workbench.file("f-0000.txt", "fail")
    workbench.settings |= {"processor": "tests.processors:timed", "retry_pause": "0.3"}
    workbench.enqueue(buckets=1, retries=3)
    workbench.worker()
    assert workbench.ended().state == "failed"
    begun = begun_at(workbench)
    assert [name for name, _ in begun] == [*names, *["f-0000.txt"] * 3]
    tries = [at for name, at in begun if name == "f-0000.txt"]
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    for pause, least in zip(pauses, (0.3, 0.6, 1.2), strict=True):
        assert least <= pause < least + 0.6
    assert workbench.failures()["f-0000.txt"].tries == 4
    now = workbench.check_books()
    assert (now.done, now.failed, now.retried) == (9, 1, 3)


def test_a_file_that_fails_once_is_done_at_its_second_try(workbench: Workbench) -> None:
    workbench.files(5)
    workbench.file("f-0002.txt", f"once {workbench.folder}/tried")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1)
    workbench.worker()
    assert workbench.ended().state == "done"
    now = workbench.check_books()
    assert (now.done, now.failed, now.retried) == (5, 0, 1)


def test_a_job_that_only_waits_for_a_retry_lets_the_others_go_first(workbench: Workbench) -> None:
    """One worker; the first job's file fails and may be tried again after a while only."""
    workbench.settings |= {
        "processor": "tests.processors:timed",
        "retry_pause": "2",
        "log_format": "json",
    }
    workbench.files(12)
    for name in ("f-0000.txt", "f-0006.txt"):
        workbench.file(name, "fail")
    workbench.enqueue(retries=1)  # a job a file
    worker = workbench.worker()
    assert workbench.ended().state == "failed"
    begun = [name for name, _ in begun_at(workbench)]
    assert len(set(begun[:12])) == 12
    assert sorted(begun[12:]) == ["f-0000.txt", "f-0006.txt"]
    assert len(worker.events("job deferred")) >= 1
    assert [failure.tries for failure in workbench.failures().values()] == [2, 2]
    assert workbench.check_books().done == 10


def test_jobs_that_all_wait_for_retries_are_not_passed_around_without_pause(
    workbench: Workbench,
) -> None:
    workbench.settings |= {
        "processor": "tests.processors:timed",
        "retry_pause": "2",
        "log_format": "json",
    }
    for name in ("a", "b", "c"):
        workbench.file(name, "fail")
    workbench.enqueue(buckets=64, retries=1)
    worker = workbench.worker()
    assert workbench.ended().state == "failed"
    assert len(worker.events("job taken")) < 20
    assert workbench.check_books().failed == 3


def test_several_workers_share_the_work_and_have_names_of_their_own(workbench: Workbench) -> None:
    names = workbench.files(80)
    workbench.settings |= {"processor": "tests.processors:traced", "log_format": "json"}
    workers = [workbench.worker().started() for _ in range(3)]
    workbench.enqueue(buckets=20)
    assert workbench.ended().state == "done"
    assert workbench.begun() == dict.fromkeys(names, 1)
    assert all(worker.events("job taken") for worker in workers)
    assert len({worker.events("worker started")[0]["worker"] for worker in workers}) == 3
    assert workbench.status().backlog.workers == 3
    assert workbench.check_books().done == 80
    assert workbench.leaves_nothing_behind()
    assert workbench.redis.scard("rq:workers:imece") == 0


def test_a_killed_worker_leaves_the_list_of_workers(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue()
    workbench.settings |= {"lease": "3", "heartbeat": "0.3"}
    killed, lives = workbench.worker().started(), workbench.worker().started()
    until(lambda: workbench.status().backlog.workers == 2, "both to be registered")
    killed.kill()
    until(lambda: workbench.status().backlog.workers == 1, "the killed one to be taken out")
    assert lives.process.poll() is None


def test_while_a_run_goes_on_all_that_it_keeps_in_redis_has_a_ttl(workbench: Workbench) -> None:
    """All but the queue itself and the leases, which go with their last job."""
    workbench.files(300)
    for name in ("f-0000.txt", "f-0001.txt"):
        workbench.file(name, "raise on purpose")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue("failing", buckets=1, retries=0)
    worker = workbench.worker()
    assert workbench.ended("failing").state == "failed"
    worker.stop()
    workbench.enqueue(buckets=5, overwrite=True, retries=0)
    workbench.worker(processor="tests.processors:slow")
    until(lambda: workbench.status().done > 10, "progress")
    assert set(workbench.immortal_keys()) <= {"rq:queue:imece", "rq:wip:imece"}
    assert (
        workbench.redis.exists("imece:imece:run:run:durations", "imece:imece:run:run:timeline") == 2
    )


def test_a_cancelled_run_stops_its_workers_after_the_file_in_hand(workbench: Workbench) -> None:
    workbench.files(200)
    workbench.settings["processor"] = "tests.processors:traced"
    workbench.enqueue(buckets=1, files_per_job=1000)
    worker = workbench.worker().took()
    until(lambda: workbench.status().done, "the first file")
    Run(workbench.redis, "imece", "run").cancel(3600)
    until(lambda: workbench.status().backlog.in_flight == 0, "the job to be given up")
    now = workbench.check_books()
    assert now.state == "cancelled"
    assert 0 < now.done < 200
    assert sum(workbench.begun().values()) == now.done
    assert worker.process.poll() is None
    assert workbench.leaves_nothing_behind()


def test_workers_of_another_queue_leave_it_alone(workbench: Workbench) -> None:
    workbench.files(5)
    workbench.enqueue()
    other = workbench.worker(queue="other", log_format="json").started()
    workbench.worker()
    assert workbench.ended().state == "done"
    assert other.events("job taken") == []
    assert workbench.check_books().done == 5


def test_a_worker_started_without_standard_files_works_all_the_same(workbench: Workbench) -> None:
    workbench.files(6)
    (workbench.source / "f-0003.txt").write_text("fail")
    workbench.enqueue(buckets=2, retries=0)
    worker = workbench.worker(
        before=lambda: os.closerange(0, 3), processor="tests.processors:chatter"
    )
    now = workbench.ended()
    assert (now.done, now.failed) == (5, 1)
    assert "after many words" in workbench.failures()["f-0003.txt"].last_line
    assert "printed f-0003.txt" in workbench.failures()["f-0003.txt"].output
    workbench.check_books()
    assert worker.stop() == 0


def test_an_output_that_is_gone_when_the_next_round_begins_is_made_again(
    workbench: Workbench,
) -> None:
    """The worker keeps its job in the next round. It has made the output before, and has not
    recorded that yet."""
    workbench.files(3)
    gate = workbench.folder / "gate"
    workbench.file("f-0001.txt", f"wait-for {gate}")
    workbench.settings |= {"processor": "tests.processors:by_content", "checkpoint": "30"}
    workbench.settings |= {"heartbeat": "20", "lease": "60"}
    workbench.enqueue(buckets=1, files_per_job=100)
    workbench.worker()
    until((workbench.target / "f-0000.txt").exists, "the first output")
    Run(workbench.redis, "imece", "run").cancel(600)
    (workbench.target / "f-0000.txt").unlink()
    assert workbench.enqueue(buckets=1, files_per_job=100).how == "resumed"
    gate.touch()
    assert workbench.ended().state == "done"
    assert workbench.outputs() == ["f-0000.txt", "f-0001.txt", "f-0002.txt"]
    assert workbench.check_books().done == 3
