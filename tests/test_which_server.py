"""The promise: what changes a run never ends up in another run's server.

Local runs have servers of their own. With no Redis named a command may mean one of these.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from imece import names
from imece.run.store import recent
from tests import forks
from tests.conftest import ROOT, until
from tests.test_local import Folder

NOWHERE = "imece: Redis at redis://localhost:6379/0 is out of reach"
"""Where the settings say, in these tests."""

WAITING = "sh -c 'while test -e {input}; do sleep 0.1; done; exit 1'"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """The folder of the local runs, whose files are not done as long as they are there."""
    made = Folder(tmp_path)
    made.files(2)
    yield made
    for file in made.source.iterdir():
        file.unlink()
    made.close()


def start(folder: Folder, run_id: str) -> None:
    """Starts a local run, and waits until it is on."""
    folder.start("--run-id", run_id, "--max-replicas", "1", "--command", WAITING)
    made = names.slug(run_id)
    until(lambda: made in folder.on(), "the local run to be announced")
    until(lambda: runs_of(folder, made) == [made], "its run to be made")


def runs_of(folder: Folder, run_id: str) -> list[str]:
    """What the server of a local run has."""
    redis = Redis.from_url(folder.on()[run_id])
    try:
        return recent(redis)
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
        assert answer.stderr.startswith(NOWHERE)
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


def test_with_several_local_runs_on_each_is_found_by_its_id(folder: Folder) -> None:
    start(folder, "one")
    start(folder, "two.b")
    second = names.slug("two.b")
    for name, run_id in (("one", "one"), ("two.b", second), (second, second)):
        answer = call(folder, "status", name)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.startswith(f"run {run_id}: ")
        assert answer.stderr == f"(on the local run {run_id})\n"
    for command in ("status", "runs"):
        answer = call(folder, command)
        assert answer.returncode == 3
        assert answer.stderr.startswith(f"(several local runs are on: name one: one, {second})\n")
    assert call(folder, "cancel", "two.b").returncode == 0
    assert runs_of(folder, "one") == ["one"]
    assert "--run" in call(folder, "scale", "2").stderr
    assert "at most 2 replicas" in call(folder, "scale", "2", "--run", "one").stdout


def test_with_one_local_run_on_what_only_looks_may_leave_out_its_id(folder: Folder) -> None:
    start(folder, "here")
    assert call(folder, "status").stdout.startswith("run here: ")
    assert "here" in call(folder, "runs").stdout
    assert call(folder, "status", "elsewhere").stderr.startswith(NOWHERE)
