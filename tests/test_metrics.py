"""The worker's page for Prometheus, read from real workers; and the probe that asks for life."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from imece.run.durations import least
from tests.conftest import ROOT, Workbench, WorkerProcess, until

Samples = dict[tuple[str, str], float]
"""(name, value of its one label or nothing) -> value."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def page(port: int) -> str:
    """What Prometheus would get."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def samples(port: int) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(page(port)):
        for sample in family.samples:
            assert len(sample.labels) <= 1
            found[sample.name, "".join(sample.labels.values())] = sample.value
    return found


def watched(workbench: Workbench, **settings: str) -> tuple[WorkerProcess, int]:
    """A worker with a page, and its port."""
    port = free_port()
    worker = workbench.worker(metrics_port=str(port), log_format="json", **settings).started()
    return worker, port


def test_what_has_been_done_is_on_the_page(workbench: Workbench) -> None:
    workbench.files(20)
    workbench.file("f-0003.txt", "raise")
    workbench.target.mkdir()
    (workbench.target / "f-0005.txt").write_text("newer than its input")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=4, files_per_job=20)
    _, port = watched(workbench)
    now = workbench.ended()
    seen = samples(port)
    assert (now.done, now.failed, now.skipped, now.retried) == (18, 1, 1, 1)
    for outcome in ("done", "failed"):
        assert seen["imece_files_total", outcome] == getattr(now, outcome)
    assert seen["imece_file_retries_total", ""] == 1
    assert seen["imece_bytes_total", "in"] == now.bytes_in
    assert seen["imece_bytes_total", "out"] == now.bytes_out
    assert seen["imece_file_seconds_count", ""] == 18
    assert 0 < seen["imece_file_seconds_sum", ""] < 5
    assert seen["imece_redis_errors_total", ""] == 0
    until(lambda: samples(port)["imece_worker_busy", ""] == 0, "the worker to be idle")
    jobs = {ending: n for (name, ending), n in samples(port).items() if name == "imece_jobs_total"}
    assert jobs.pop("finished") == now.buckets
    assert jobs.pop("deferred") <= 1  # the failed file's job may have waited for its retry
    assert set(jobs.values()) == {0}


def test_the_histogram_agrees_with_the_runs(workbench: Workbench) -> None:
    workbench.files(10)
    workbench.settings["processor"] = "tests.processors:slow"
    workbench.enqueue(buckets=1)
    _, port = watched(workbench)
    now = workbench.ended()
    seen = samples(port)
    below = {
        float(bound): count
        for (name, bound), count in seen.items()
        if name == "imece_file_seconds_bucket"
    }
    assert list(below.values()) == sorted(below.values())
    assert below[float("inf")] == 10
    for bound, count in list(below.items())[:-1]:
        below_it = (n for step, n in now.durations.items() if least(step) < round(bound * 1e6))
        assert count == sum(below_it)
    assert below[0.016384] == 0  # each file takes 50 ms
    assert seen["imece_file_seconds_sum", ""] >= 10 * 0.05


def test_an_outage_of_redis_shows_while_a_job_is_in_hand(workbench: Workbench) -> None:
    workbench.files(200)
    workbench.settings["processor"] = "tests.processors:slow"
    workbench.enqueue(buckets=1, files_per_job=200)
    worker, port = watched(workbench)
    worker.took()
    assert samples(port)["imece_worker_busy", ""] == 1
    until(lambda: samples(port)["imece_files_total", "done"] > 0, "a checkpoint")
    assert samples(port)["imece_checkpoint_lag_seconds", ""] < 1
    workbench.server.stop()
    until(lambda: samples(port)["imece_checkpoint_lag_seconds", ""] > 1, "the lag to grow")
    assert samples(port)["imece_redis_errors_total", ""] > 0
    recorded = samples(port)["imece_files_total", "done"]
    assert recorded < len(workbench.outputs())  # only what Redis has taken counts
    workbench.server.start()
    until(lambda: samples(port)["imece_checkpoint_lag_seconds", ""] < 1, "the lag to end")
    assert samples(port)["imece_files_total", "done"] > recorded


def test_an_idle_worker_counts_failed_calls_too(workbench: Workbench) -> None:
    _, port = watched(workbench)
    workbench.server.stop()
    until(lambda: samples(port)["imece_redis_errors_total", ""] > 1, "errors")
    assert samples(port)["imece_checkpoint_lag_seconds", ""] == 0
    workbench.server.start()


def test_jobs_that_cannot_be_worked_on_are_told_apart(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue()
    workbench.redis.lpush("rq:queue:imece", "junk")
    workbench.redis.hset("rq:job:junk", "data", "junk")
    _, port = watched(workbench, input="/nowhere")
    until(lambda: samples(port)["imece_jobs_total", "stalled"] >= 1, "the job to be given back")
    until(lambda: samples(port)["imece_jobs_total", "refused"] == 1, "junk to be refused")


def test_a_port_that_is_taken_is_an_error_that_names_it(workbench: Workbench) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))  # noqa: S104
        other.listen()
        port = other.getsockname()[1]
        worker = workbench.worker(metrics_port=str(port))
        assert worker.wait() == 2
    assert f"IMECE_METRICS_PORT: port {port} cannot be listened on" in worker.log()
    assert "Traceback" not in worker.log()


def test_a_second_worker_on_one_port_is_refused(workbench: Workbench) -> None:
    _, port = watched(workbench)
    assert workbench.worker(metrics_port=str(port)).wait() == 2


def test_libraries_are_not_loaded_unless_asked_for() -> None:
    program = "import sys, imece_worker.command; print('kubernetes' in sys.modules, end=' ');"
    program += "print('prometheus_client' in sys.modules)"
    shown = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert shown == "False False\n"


def listeners(pid: int) -> set[str]:
    """The listening TCP sockets a process holds open."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}  # 0A: TCP_LISTEN
    return listening & {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def test_runners_do_not_hold_the_port(workbench: Workbench) -> None:
    workbench.file("a", "hang")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue()
    worker, port = watched(workbench)
    runner = worker.took().runner()
    assert len(listeners(worker.pid)) == 1
    until(lambda: not listeners(runner), "the runner to close what it need not have")
    worker.kill()
    worker.wait()
    with pytest.raises(URLError):
        page(port)


@pytest.mark.slow
def test_a_page_that_is_read_all_the_time_disturbs_no_fork(workbench: Workbench) -> None:
    names = workbench.files(150)
    workbench.enqueue(buckets=150, files_per_job=1)
    worker, port = watched(workbench)
    reads = 0
    while not workbench.status().has_ended:
        page(port)
        reads += 1
    assert reads > 10
    assert workbench.outputs() == names
    assert samples(port)["imece_jobs_total", "finished"] >= 100
    assert worker.stop() == 0


# The probe


def alive(beat: Path, *arguments: str) -> tuple[int, str]:
    """What the liveness probe of the manifests runs; its exit code and what it says."""
    asked = subprocess.run(
        [sys.executable, "-P", "-m", "imece_worker.alive", *arguments],
        env={**os.environ, "IMECE_HEARTBEAT_FILE": str(beat)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stderr == ""
    return asked.returncode, asked.stdout


def beats(beat: Path, times: int = 3) -> None:
    """Waits until the file has been touched so often."""
    for _ in range(times):
        now = time.time()
        until(lambda: beat.exists() and beat.stat().st_mtime > now, "a sign of life")  # noqa: B023


def test_a_worker_shows_life_idle_and_busy_and_not_when_its_loop_hangs(
    workbench: Workbench,
) -> None:
    """It is busy with a file that hangs: the time limit ends that, not the probe."""
    beat = workbench.folder / "heartbeat"
    workbench.settings |= {"heartbeat_file": str(beat), "processor": "tests.processors:by_content"}
    worker = workbench.worker().started()
    beats(beat)
    workbench.file("a", "hang")
    workbench.enqueue()
    worker.took()
    beats(beat)
    assert alive(beat) == (0, "")
    worker.kill(signal.SIGSTOP)
    until(lambda: alive(beat, "2")[0] == 1, "the probe to notice")
    assert alive(beat) == (0, "")  # by default it is more patient
    worker.kill(signal.SIGCONT)
    until(lambda: alive(beat, "2")[0] == 0, "the probe to notice")


def test_a_worker_shows_life_while_redis_hangs(workbench: Workbench) -> None:
    """Worse than away: each call takes its whole time-out, 5 s."""
    beat = workbench.folder / "heartbeat"
    workbench.settings["heartbeat_file"] = str(beat)
    workbench.worker().started()
    beats(beat)
    server: int = workbench.redis.info("server")["process_id"]
    os.kill(server, signal.SIGSTOP)
    try:
        beats(beat, 2)
    finally:
        os.kill(server, signal.SIGCONT)


def test_a_worker_that_never_reached_redis_shows_life(workbench: Workbench) -> None:
    beat = workbench.folder / "heartbeat"
    workbench.server.stop()
    workbench.worker(heartbeat_file=str(beat))
    beats(beat)
    workbench.server.start()


def test_the_probe_says_what_is_missing(tmp_path: Path) -> None:
    assert alive(tmp_path / "absent")[0] == 1
    beat = tmp_path / "heartbeat"
    beat.touch()
    os.utime(beat, (time.time() - 300, time.time() - 300))
    assert alive(beat) == (1, "no sign of life for 300 s\n")
    assert alive(beat, "400") == (0, "")
