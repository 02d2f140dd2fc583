"""The promise: Redis may stop and start again; nothing is lost, done twice or counted twice."""

import os
import random
import select
import signal
import socket
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import Workbench, WorkerProcess, until, uptime

SHORT, LONG = 1.0, 10.0

SLOW = [pytest.mark.slow, pytest.mark.timeout(180)]
OUTAGES = [
    pytest.param(SHORT, signal.SIGKILL),
    pytest.param(LONG, signal.SIGTERM, marks=SLOW),
    pytest.param(LONG, signal.SIGKILL, marks=SLOW),
]


def redis_is_away_for(
    workbench: Workbench, seconds: float, how: signal.Signals = signal.SIGTERM
) -> None:
    workbench.server.stop(how)
    time.sleep(seconds)
    workbench.server.start()


def a_run_in_progress(workbench: Workbench, files: int, workers: int, buckets: int = 2) -> None:
    workbench.files(files)
    workbench.settings |= {"processor": "tests.processors:traced", "log_format": "json"}
    workbench.enqueue(buckets=buckets, files_per_job=files)
    for _ in range(workers):
        workbench.worker()
    for worker in workbench.workers:
        worker.took()
    until(lambda: workbench.status().done, "the first files")


def each_file_was_begun_once_and_is_done(workbench: Workbench, files: int) -> bool:
    now = workbench.check_books()
    assert (now.state, now.done, now.retried) == ("done", files, 0)
    assert workbench.finished() == dict.fromkeys(workbench.begun(), 1)
    return workbench.begun() == dict.fromkeys(workbench.outputs(), 1)


@pytest.mark.parametrize(("seconds", "how"), OUTAGES)
def test_busy_workers_go_on_through_an_outage_and_none_takes_anothers_job(
    workbench: Workbench, how: signal.Signals, seconds: float
) -> None:
    """A third worker, idle, could take the others' jobs: their leases run out meanwhile. And one
    bucket ends during the outage, so that its end has to be told afterwards."""
    workbench.settings["lease"] = "3"
    workbench.settings["heartbeat"] = "0.2"
    files = int(seconds * 80) + 60
    a_run_in_progress(workbench, files, workers=2)
    idle = workbench.worker().started()
    redis_is_away_for(workbench, seconds, how)
    assert workbench.ended(timeout=60).state == "done"
    assert each_file_was_begun_once_and_is_done(workbench, files)
    assert idle.events("job taken") == []
    for worker in workbench.workers:
        assert worker.process.poll() is None
        assert worker.events("redis out of reach")
        until(lambda: worker.events("redis is back"), "word that it is back")  # noqa: B023
    assert workbench.leaves_nothing_behind()


@pytest.mark.parametrize("seconds", [SHORT, pytest.param(LONG, marks=SLOW)])
def test_a_job_that_ends_during_an_outage_is_recorded_after_it(
    workbench: Workbench, seconds: float
) -> None:
    a_run_in_progress(workbench, files=50, workers=1, buckets=1)
    workbench.server.stop()
    until(lambda: len(workbench.outputs()) == 50, "the last file")
    time.sleep(seconds)
    workbench.server.start()
    assert workbench.ended().state == "done"
    assert each_file_was_begun_once_and_is_done(workbench, 50)
    assert workbench.leaves_nothing_behind()


@pytest.mark.parametrize(("seconds", "how"), OUTAGES)
def test_idle_workers_wait_for_redis_and_then_work(
    workbench: Workbench, how: signal.Signals, seconds: float
) -> None:
    names = workbench.files(40)
    workbench.settings |= {"processor": "tests.processors:traced", "log_format": "json"}
    workers = [workbench.worker().started() for _ in range(2)]
    until(lambda: workbench.redis.scard("rq:workers:imece") == 2, "both to be registered")
    redis_is_away_for(workbench, seconds, how)
    for worker in workers:
        until(lambda: worker.events("redis is back"), "word that it is back")  # noqa: B023
    workbench.enqueue(buckets=10)
    assert workbench.ended().state == "done"
    assert workbench.outputs() == names
    assert each_file_was_begun_once_and_is_done(workbench, 40)
    for worker in workers:
        assert worker.process.poll() is None
        assert worker.events("job taken")
    assert workbench.status().backlog.workers == 2
    assert workbench.leaves_nothing_behind()


def test_a_worker_started_while_redis_is_away_waits_for_it(workbench: Workbench) -> None:
    workbench.files(5)
    workbench.enqueue()
    workbench.server.stop()
    worker = workbench.worker(log_format="json")
    until(lambda: worker.events("redis out of reach"), "the worker to notice")
    workbench.server.start()
    assert workbench.ended().state == "done"
    assert workbench.check_books().done == 5


@pytest.mark.slow
def test_a_worker_killed_during_an_outage_is_replaced_after_it(workbench: Workbench) -> None:
    workbench.settings |= {"lease": "3", "heartbeat": "0.2"}
    a_run_in_progress(workbench, files=60, workers=1, buckets=1)
    workbench.worker().started()
    workbench.server.stop()
    workbench.workers[0].kill()
    workbench.workers[0].wait()
    workbench.server.start()
    assert workbench.ended().state == "done"
    now = workbench.check_books()
    assert (now.done, now.skipped, now.retried) == (60, 0, 0)
    assert sum(workbench.begun().values()) <= 61
    assert workbench.leaves_nothing_behind()


def test_an_idle_worker_can_be_stopped_while_redis_is_away(workbench: Workbench) -> None:
    worker = workbench.worker(log_format="json").started()
    workbench.server.stop()
    until(lambda: worker.events("redis out of reach"), "the worker to notice")
    asked = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - asked < 2
    workbench.server.start()


def test_a_busy_worker_stopped_while_redis_is_away_gives_its_job_back_when_it_is_there(
    workbench: Workbench,
) -> None:
    a_run_in_progress(workbench, files=100, workers=1, buckets=1)
    [worker] = workbench.workers
    workbench.server.stop()
    until(lambda: worker.events("redis out of reach"), "the worker to notice")
    worker.kill(signal.SIGTERM)
    until(lambda: workbench.begun() == workbench.finished(), "the file in hand to be finished")
    assert worker.process.poll() is None
    workbench.server.start()
    assert worker.wait() == 0
    now = workbench.check_books()
    assert 0 < now.done < 100
    assert (now.backlog.pending, now.backlog.in_flight) == (1, 0)
    workbench.worker()
    assert workbench.ended().state == "done"
    assert each_file_was_begun_once_and_is_done(workbench, 100)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_busy_worker_stopped_in_an_outage_without_end_leaves_and_its_files_count_later(
    workbench: Workbench,
) -> None:
    workbench.settings["lease"] = "3"
    a_run_in_progress(workbench, files=200, workers=1, buckets=1)
    [worker] = workbench.workers
    workbench.server.stop()
    until(lambda: worker.events("redis out of reach"), "the worker to notice")
    worker.kill(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert worker.events("job abandoned")
    workbench.server.start()
    workbench.worker()
    now = workbench.ended()
    assert (now.state, now.done + now.skipped) == ("done", 200), "found done by their outputs"
    assert set(workbench.begun().values()) == {1}
    assert workbench.leaves_nothing_behind()


def test_the_heartbeat_file_is_touched_during_an_outage_idle_and_busy(
    workbench: Workbench,
) -> None:
    workbench.settings["heartbeat_file"] = str(workbench.folder / "busy")
    a_run_in_progress(workbench, files=300, workers=1, buckets=1)
    workbench.worker(heartbeat_file=str(workbench.folder / "idle")).started()
    workbench.server.stop()
    away = time.time()
    for name in ("busy", "idle"):
        beat = workbench.folder / name
        for _ in range(3):
            until(lambda: was_touched_after(beat, away), f"a sign of life in {name}")  # noqa: B023
            away = time.time()
    workbench.server.start()


def was_touched_after(path: Path, moment: float) -> bool:
    return path.exists() and path.stat().st_mtime > moment


def test_a_registration_that_redis_lost_heals_and_is_not_immortal(workbench: Workbench) -> None:
    workbench.worker().started()
    until(lambda: workbench.redis.scard("rq:workers:imece"), "the registration")
    workbench.redis.flushall()
    for _ in range(2):
        until(lambda: workbench.redis.scard("rq:workers:imece") == 1, "it to be there again")
        assert workbench.immortal_keys() == []
        workbench.redis.flushall()


def test_lost_connections_cost_nothing(workbench: Workbench) -> None:
    """All of them are cut again and again, in the middle of whatever they do."""
    workbench.settings |= {"lease": "3", "heartbeat": "0.2"}
    a_run_in_progress(workbench, files=150, workers=2, buckets=4)
    chance = random.Random(17)
    for _ in range(40):
        time.sleep(chance.uniform(0, 0.1))  # the random moment
        workbench.redis.client_kill_filter(_type="normal", skipme=True)
        workbench.redis.client_kill_filter(_type="pubsub", skipme=True)
    assert workbench.ended().state == "done"
    assert each_file_was_begun_once_and_is_done(workbench, 150)
    assert all(worker.process.poll() is None for worker in workbench.workers)
    assert workbench.leaves_nothing_behind()


def test_a_worker_that_comes_back_to_a_restarted_redis_late_still_has_its_job(
    workbench: Workbench,
) -> None:
    """One that was started meanwhile finds a lease nobody renews, and waits before it is sure."""
    a_run_in_progress(workbench, files=60, workers=1, buckets=1)
    [holder] = workbench.workers
    workbench.server.stop()
    until(lambda: holder.events("redis out of reach"), "the worker to notice")
    holder.kill(signal.SIGSTOP)
    workbench.server.start()
    fresh = workbench.worker().started()
    until(lambda: uptime(workbench) >= 3, "the fresh worker to look several times")
    assert fresh.events("job taken") == []
    holder.kill(signal.SIGCONT)
    assert workbench.ended().state == "done"
    assert each_file_was_begun_once_and_is_done(workbench, 60)
    assert fresh.events("job taken") == []


@pytest.mark.slow
def test_a_redis_that_hangs_is_an_outage_like_any_other(workbench: Workbench) -> None:
    """It is not restarted, so only the workers themselves can know that there was a gap."""
    until(lambda: uptime(workbench) > 5, "a server that has been up for longer than a lease")
    a_run_in_progress(workbench, files=400, workers=1, buckets=1)
    [holder] = workbench.workers
    idle = workbench.worker().started()
    server: int = workbench.redis.info("server")["process_id"]
    assert workbench.status().backlog.in_flight == 1
    holder.kill(signal.SIGSTOP)  # so that it comes back late
    os.kill(server, signal.SIGSTOP)
    until(lambda: idle.events("redis out of reach"), "the idle worker to notice")
    os.kill(server, signal.SIGCONT)
    until(lambda: idle.events("redis is back"), "the idle worker to notice")
    back = time.monotonic()
    until(lambda: time.monotonic() - back > 2, "the idle worker to look several times")
    assert idle.events("job taken") == []
    holder.kill(signal.SIGCONT)
    assert workbench.ended().state == "done"
    assert each_file_was_begun_once_and_is_done(workbench, 400)
    assert idle.events("job taken") == []


def test_a_worker_that_redis_turns_away_at_first_tries_again(workbench: Workbench) -> None:
    """It takes the worker's first connection and not its second, by which it listens."""
    until(lambda: len(workbench.redis.client_list()) == 1, "nobody but us to be connected")
    workbench.redis.config_set("maxclients", 2)
    worker = workbench.worker(log_format="json")
    until(lambda: worker.events("redis out of reach"), "the worker to be turned away")
    workbench.redis.config_set("maxclients", 100)
    workbench.files(3)
    workbench.enqueue()
    assert workbench.ended().state == "done"
    assert workbench.check_books().done == 3
    assert workbench.status().backlog.workers == 1


def a_closed_door(workbench: Workbench, seconds: float) -> int:
    """In the place of Redis: takes each connection and closes it at once; how many came."""
    workbench.server.socket.unlink(missing_ok=True)
    came, end = 0, time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(workbench.server.socket))
        door.listen(1000)
        while (left := end - time.monotonic()) > 0:
            if select.select([door], [], [], left)[0]:
                door.accept()[0].close()
                came += 1
    workbench.server.socket.unlink()
    return came


def processor_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def moments(worker: WorkerProcess, event: str) -> list[float]:
    return [datetime.fromisoformat(entry["time"]).timestamp() for entry in worker.events(event)]


@pytest.mark.parametrize(
    ("workers", "seconds"),
    [
        pytest.param(4, 6.0),
        pytest.param(50, 60.0, marks=[pytest.mark.slow, pytest.mark.timeout(400)]),
    ],
)
def test_workers_cost_next_to_nothing_while_redis_is_away_and_come_back_one_by_one(
    workbench: Workbench, workers: int, seconds: float
) -> None:
    """Half of them idle, half of them with a long file in hand."""
    workbench.settings |= {"processor": "tests.processors:by_content", "log_format": "json"}
    idle = [workbench.worker() for _ in range(workers // 2)]
    for worker in idle:
        until(lambda: worker.events("worker started"), "the start", 120)  # noqa: B023
    workbench.files(workers // 2, b"sleep 600")
    workbench.settings["queue"] = "other"
    workbench.enqueue(files_per_job=1, buckets=workers // 2, timeout=3600)
    jobs = workbench.status().backlog.pending
    busy = [workbench.worker() for _ in range(jobs)]
    for worker in busy:
        until(lambda: worker.events("job taken"), "a job", 120)  # noqa: B023
    workbench.server.stop()
    everyone = idle + busy
    for worker in everyone:
        until(lambda: worker.events("redis out of reach"), "word of it", 60)  # noqa: B023
    before = [processor_seconds(worker.pid) for worker in everyone]
    came = a_closed_door(workbench, seconds)
    spent = [
        processor_seconds(worker.pid) - earlier
        for worker, earlier in zip(everyone, before, strict=True)
    ]
    print(f"{came} connects, {sum(spent):.2f} s in all, {max(spent):.2f} s the most")
    assert came < 2.0 * seconds * len(everyone)
    assert max(spent) < 0.02 * seconds + 0.1
    workbench.server.start()
    for worker in everyone:
        until(lambda: worker.events("redis is back"), "word that it is back", 60)  # noqa: B023
    back = sorted(moments(worker, "redis is back")[-1] for worker in everyone)
    print(f"back within {back[-1] - back[0]:.2f} s")
    assert back[-1] - back[0] < 15
    if len(everyone) > 10:  # of a few, all may come back at one moment by chance
        tenths = [sum(start <= at < start + 0.1 for at in back) for start in back]
        assert max(tenths) <= len(everyone) // 4
