"""The promise: what changes a run never ends up in another run's server.

Local runs have servers of their own. With no Redis named a command may mean one of these.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from imece import names
from imece.run.store import recent
from tests import forks
from tests.conftest import ROOT, Workbench, until
from tests.test_local import Folder

NOWHERE = "imece: Redis at redis://localhost:6379/0 is out of reach"
"""Where the settings say, in these tests."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """The folder of the local runs, whose files wait to be released."""
    base = tmp_path / "local"
    base.mkdir()
    made = Folder(base)
    made.files(2)
    yield made
    release(made)
    made.close()


def release(folder: Folder) -> None:
    """Lets the files of all local runs come to their end: they fail."""
    (folder.state.parent / "release").touch()


def waiting(folder: Folder) -> str:
    end = folder.state.parent / "release"
    return f"sh -c 'until test -e {end}; do sleep 0.1; done; exit 1' {{input}}"


def start(folder: Folder, run_id: str) -> None:
    """Starts a local run, and waits until it is on."""
    folder.start("--run-id", run_id, "--max-replicas", "1", "--command", waiting(folder))
    made = names.slug(run_id)
    until(lambda: made in folder.on(), "the local run to be announced")
    until(lambda: runs_of(folder, made) == [made], "its run to be made")


def runs_of(folder: Folder, run_id: str) -> list[str]:
    """What the server of a local run has."""
    redis = Redis.from_url(folder.on()[run_id])
    try:
        return recent(redis, "imece")
    finally:
        redis.close()


def call(folder: Folder, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "imece_producer", *words]
    return forks.run(command, cwd=ROOT, env=folder.environment())


def test_enqueue_never_goes_to_the_server_of_a_local_run(folder: Folder) -> None:
    """Its files would be processed by the processor of the local run."""
    start(folder, "here")
    for options in ((), ("--run-id", "here"), ("--run-id", "elsewhere")):
        words = ("enqueue", str(folder.source), str(folder.target), *options)
        answer = call(folder, *words)
        assert answer.returncode == 3
        assert answer.stderr.startswith(NOWHERE)
    assert runs_of(folder, "here") == ["here"]


def test_what_changes_a_run_goes_to_a_local_one_only_by_its_id(folder: Folder) -> None:
    start(folder, "here")
    for command in ("cancel", "retry", "delete"):
        answer = call(folder, command, "elsewhere")
        assert answer.returncode == 3, command
        assert NOWHERE in answer.stderr
    assert call(folder, "delete", "here").stderr.startswith(
        "(on the local run here)\nimece: run here is "
    )
    answer = call(folder, "cancel", "here")
    assert answer.returncode == 0
    assert answer.stderr == "(on the local run here)\n"


def test_a_redis_that_is_named_is_meant_whatever_the_run_is_called(folder: Folder) -> None:
    start(folder, "here")
    environment = {**folder.environment(), "IMECE_REDIS_URL": "unix:///nowhere/redis.sock"}
    command = [sys.executable, "-m", "imece_producer", "cancel", "here"]
    answer = forks.run(command, cwd=ROOT, env=environment)
    assert answer.returncode == 3
    assert "unix:///nowhere/redis.sock" in answer.stderr
    command[-2:] = ["status", "here"]  # to look at one costs nothing
    assert forks.run(command, cwd=ROOT, env=environment).stdout.startswith("run here: ")


def test_with_several_local_runs_on_each_is_found_by_its_id(folder: Folder) -> None:
    start(folder, "one")
    folder.target = folder.target.with_name("out-of-two")
    start(folder, "two.b")
    second = names.slug("two.b")
    for name, run_id in (("one", "one"), ("two.b", second), (second, second)):
        answer = call(folder, "status", name)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.startswith(f"run {run_id}: ")
        assert answer.stderr == f"(on the local run {run_id})\n"
    newest = call(folder, "status")
    assert newest.stdout.startswith(f"run {second}: ")
    assert newest.stderr == f"(on the local run {second})\n"
    listed = call(folder, "runs").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["RUN", second, "one"]
    assert [line.split()[-1] for line in listed] == ["WHERE", "here", "here"]
    cancelled = call(folder, "cancel", "two.b")
    assert cancelled.returncode == 0, cancelled.stderr
    assert runs_of(folder, "one") == ["one"]
    assert "--run" in call(folder, "scale", "2").stderr
    assert "at most 2 replicas" in call(folder, "scale", "2", "--run", "one").stdout


def test_with_one_local_run_on_what_only_looks_may_leave_out_its_id(folder: Folder) -> None:
    start(folder, "here")
    assert call(folder, "status").stdout.startswith("run here: ")
    assert "here" in call(folder, "runs").stdout
    answer = call(folder, "status", "elsewhere")
    assert f"(there is no local run elsewhere: this looks in Redis)\n{NOWHERE}" in answer.stderr


def test_local_runs_are_listed_beside_those_of_the_server(
    folder: Folder, workbench: Workbench
) -> None:
    workbench.files(1)
    workbench.enqueue("there")
    assert folder.start("--run-id", "ended", "--command", "true {input}").ends()[0] == 1
    start(folder, "on")
    environment = {**workbench.environment(), "IMECE_STATE_DIR": str(folder.state)}
    command = [sys.executable, "-m", "imece_producer", "runs", "--json"]
    answer = forks.run(command, cwd=ROOT, env={**os.environ, **environment})
    found = {one["run"]: (one["state"], one["local"]) for one in json.loads(answer.stdout)}
    assert found["there"] == ("queued", False)
    assert found["ended"] == ("failed", True)
    assert found["on"][1] is True
    for run_id, says in (("there", "queued"), ("ended", "failed"), ("on", "")):
        command[3:] = ["status", run_id]
        seen = forks.run(command, cwd=ROOT, env={**os.environ, **environment})
        assert seen.stdout.startswith(f"run {run_id}: {says}"), seen.stderr


def test_an_ended_local_run_can_be_asked_and_deleted(folder: Folder) -> None:
    command = "sh -c 'echo oh; echo no >&2; exit 3' {input}"
    assert folder.start("--run-id", "ended", "--command", command).ends()[0] == 1
    size = sum(path.stat().st_size for path in folder.state.rglob("*") if path.is_file())
    assert size < 200_000
    assert call(folder, "status").stdout.startswith("run ended: failed\n")
    assert call(folder, "wait", "ended").returncode == 1
    assert call(folder, "doctor").stderr == ""  # it looks at what is on
    lines = call(folder, "failures", "ended", "--full").stdout.splitlines()
    assert lines[0] == "f-000.txt (3 tries): sh ended with exit code 3: no"
    assert "    printed: oh" in lines
    for command in ("retry", "resume", "cancel"):
        answer = call(folder, command, "ended")
        assert answer.returncode == 2
        assert "to go on with it: imece local " in answer.stderr
    assert call(folder, "delete", "ended").returncode == 0
    assert list(folder.state.iterdir()) == []
    answer = call(folder, "runs")
    assert answer.stdout == "no runs\n"
    assert answer.stderr.startswith("(only local runs were looked for: Redis at ")
    answer = call(folder, "status")
    assert answer.stderr.startswith(f"(there is no local run: this looks in Redis)\n{NOWHERE}")
    answer = call(folder, "status", "ended")
    assert f"(there is no local run ended: this looks in Redis)\n{NOWHERE}" in answer.stderr


def test_a_call_that_is_refused_loses_nothing_of_the_one_before(folder: Folder) -> None:
    call_of = ("--run-id", "ended", "--command", "true {input}", "--retries", "0")
    assert folder.start(*call_of).ends()[0] == 1
    for file in folder.source.iterdir():
        file.unlink()
    assert folder.start(*call_of, "--require-files").ends()[0] == 2
    assert call(folder, "status", "ended").stdout.startswith("run ended: failed\n")
    assert len(call(folder, "failures", "ended").stdout.splitlines()) > 0
    assert folder.start(*call_of).ends()[0] == 0
    assert call(folder, "failures", "ended").stdout == ""


def test_ended_local_runs_are_deleted_together(folder: Folder) -> None:
    for run_id in ("one", "two"):
        folder.start("--run-id", run_id, "--command", "true {input}").ends()
    start(folder, "on")
    assert call(folder, "delete").returncode == 2
    assert call(folder, "delete", "--ended-here").stdout.startswith("2 local runs deleted")
    assert [path.name for path in folder.state.iterdir()] == ["on"]


def test_who_watches_a_local_run_sees_its_end(folder: Folder) -> None:
    start(folder, "here")
    watching = [
        forks.Popen(
            [sys.executable, "-m", "imece_producer", *words],
            cwd=ROOT,
            env=folder.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in (("status", "here", "--watch"), ("wait", "here"))
    ]
    for process in watching:
        assert process.stdout is not None
        assert process.stdout.readline()
    folder.calls[0].send_signal(signal.SIGTERM)
    release(folder)
    for process, code in zip(watching, (0, 1), strict=True):
        output, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        assert "run here: " in output


def test_a_local_run_whose_call_was_killed_is_told_apart(folder: Folder) -> None:
    start(folder, "here")
    until((folder.state / "here" / "record.json").exists, "its record")
    folder.calls[0].kill()
    until(lambda: folder.on() == {}, "the run to be off")
    assert call(folder, "status", "here").stdout.startswith("run here: stopped\n")
