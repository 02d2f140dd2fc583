"""The promise: what a file leaves running ends with its job, and no zombies are left. What the
runner still has lives with the runner."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Workbench, WorkerProcess, is_running, until

TIMED_OUT = 6


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def zombies(pid: int) -> list[int]:
    """Among the children of a process."""
    states = {}
    for child in children(pid):
        try:
            states[child] = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            pass
    return [child for child, state in states.items() if state == "Z"]


def program(workbench: Workbench, body: str) -> str:
    path = workbench.folder / "program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return f"{path} {{input}} {{output}}"


def pids(workbench: Workbench) -> list[int]:
    return [int(pid) for pid in (workbench.folder / "pids").read_text().split()]


def timed_out_programs(workbench: Workbench) -> str:
    """A run whose programs all run into their limit, each with processes of its own."""
    del workbench.settings["processor"]
    workbench.files(TIMED_OUT)
    workbench.enqueue(retries=0, timeout=0.3)
    return program(workbench, "sleep 1000 &\n(sleep 1000 & wait) &\nwait")


def test_programs_that_ran_into_their_limit_leave_no_zombies(workbench: Workbench) -> None:
    worker = workbench.worker(command=timed_out_programs(workbench))
    assert workbench.ended().failed == TIMED_OUT
    until(lambda: zombies(worker.pid) == [], "all to be buried")
    workbench.check_books()


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None, reason="needs a process namespace"
)
def test_as_process_1_a_worker_buries_all_that_become_its_children(workbench: Workbench) -> None:
    """As in a container, where orphans are process 1's."""
    command = timed_out_programs(workbench)
    words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    words += [sys.executable, "-m", "imece_worker"]
    environment = {**os.environ, **workbench.environment(), "IMECE_COMMAND": command}
    with (workbench.folder / "log").open("wb") as log:
        outside = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        assert workbench.ended().failed == TIMED_OUT
        [worker] = children(outside.pid)
        until(lambda: len(children(worker)) <= 2, "all but drainer and template to be gone")
        assert zombies(worker) == []
    finally:
        outside.kill()
        outside.wait()


def test_a_process_in_a_session_of_its_own_is_killed_at_the_end_of_the_job(
    workbench: Workbench,
) -> None:
    del workbench.settings["processor"]
    workbench.files(3)
    workbench.enqueue(buckets=1)
    command = program(
        workbench,
        f'setsid sleep 1000 & echo $! >> {workbench.folder}/pids\ncp "$1" "$2"; sleep 0.1',
    )
    worker = workbench.worker(command=command)
    assert workbench.ended().done == 3
    assert not any(map(is_running, pids(workbench)))
    assert worker.runners()
    workbench.check_books()


def test_what_the_processor_started_when_it_was_imported_lives_as_long_as_the_worker(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workbench.folder / "helped.py").write_text(
        "import pathlib, shutil, subprocess\n"
        "helper = subprocess.Popen(['sleep', '1000'])\n"
        f"pathlib.Path({str(workbench.folder / 'pids')!r}).write_text(str(helper.pid))\n"
        "f = shutil.copyfile\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(workbench.folder))
    workbench.files(5)
    workbench.enqueue(buckets=5, files_per_job=1)
    worker = workbench.worker(processor="helped:f")
    assert workbench.ended().done == 5
    [helper] = pids(workbench)
    os.kill(worker.runner(), signal.SIGKILL)
    until(lambda: not worker.runners(), "the runner to be gone")
    workbench.enqueue("second", buckets=5, files_per_job=1, overwrite=True)
    assert workbench.ended("second").done == 5
    assert pids(workbench) == [helper]
    assert is_running(helper)
    assert worker.stop() == 0
    assert not is_running(helper)


def test_a_daemon_that_an_import_left_is_left_alone(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workbench.folder / "daemon.py").write_text(
        "import os, shutil, subprocess, threading\n"
        f"subprocess.run(['sh', '-c', 'setsid sleep 1000 & echo $! >> {workbench.folder}/pids'])\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "f = shutil.copyfile\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(workbench.folder))
    workbench.files(5)
    workbench.enqueue(buckets=5, files_per_job=1)
    worker = workbench.worker(processor="daemon:f")
    assert workbench.ended().done == 5
    [first] = pids(workbench)
    assert is_running(first)
    os.kill(worker.runner(), signal.SIGKILL)
    workbench.enqueue("second", buckets=5, files_per_job=1, overwrite=True)
    assert workbench.ended("second").done == 5
    assert worker.stop() == 0
    daemons = pids(workbench)
    assert daemons[0] == first
    assert len(daemons) == 2  # the processor was imported anew
    assert all(map(is_running, daemons))
    for daemon in daemons:
        os.kill(daemon, signal.SIGKILL)


def test_the_exit_code_of_a_runner_is_not_lost_among_those_of_orphans(workbench: Workbench) -> None:
    """Each leaves an orphan that ends at the same moment."""
    for number in range(10):
        workbench.file(f"f-{number}", f"orphan-and-exit {number + 1}")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker()
    assert workbench.ended().failed == 10
    for number in range(10):
        cause = workbench.failures()[f"f-{number}"].last_line
        assert cause == f"its process ended itself with exit code {number + 1}"


def test_a_worker_that_is_stopped_leaves_no_process(workbench: Workbench) -> None:
    del workbench.settings["processor"]
    workbench.files(1)
    workbench.enqueue()
    command = program(
        workbench,
        f"setsid sleep 1000 & echo $! > {workbench.folder}/pids.new\n"
        f'mv {workbench.folder}/pids.new {workbench.folder}/pids\ncp "$1" "$2"; sleep 0.5',
    )
    worker: WorkerProcess = workbench.worker(command=command)
    until((workbench.folder / "pids").exists, "the program to begin")
    assert worker.stop() == 0
    assert not any(map(is_running, pids(workbench)))
