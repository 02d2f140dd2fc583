"""The promise: two runs never make the same outputs at once; a dead one keeps nobody out."""

import errno
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from imece.errors import RunError
from imece.files import occupancy
from tests.conftest import Workbench, until
from tests.test_local import Call, Folder

SLOW = "tests.processors:by_content"


@pytest.fixture
def local(workbench: Workbench) -> Iterator[Folder]:
    """Calls of `imece local` from another input, beside a cluster with the same output."""
    base = workbench.folder / "local"
    base.mkdir()
    made = Folder(base)
    made.target = workbench.target
    yield made
    made.close()


def begin(folder: Folder, go_on: Path, *options: str) -> Call:
    """A local run with a file that waits for a path."""
    (folder.source / "waits.txt").write_text(f"wait-for {go_on}")
    folder.files(3)
    call = folder.start(*options, processor=SLOW)
    until(lambda: folder.done() == 3 and folder.on(), "the call to be at work")
    return call


# Local runs, each with a server of its own


def test_a_second_local_run_into_the_same_directory_is_refused(
    workbench: Workbench, local: Folder
) -> None:
    go_on = workbench.folder / "go-on"
    first = begin(local, go_on, "--run-id", "first")
    code, output, errors = local.start("--run-id", "second").ends()
    assert (code, output) == (2, "")
    assert errors == (
        f"imece: the local run first (process {first.process.pid} on {os.uname().nodename}) makes "
        f"outputs in {local.target}: wait until it has ended, or take another output directory\n"
    )
    assert not (local.state / "second" / "record.json").exists()
    go_on.touch()
    assert first.ends()[0] == 0
    code, output, _ = local.start("--run-id", "second", processor=SLOW).ends()
    assert code == 0
    assert "4 skipped" in output


def test_it_is_the_directory_that_counts_and_not_its_path(
    workbench: Workbench, local: Folder
) -> None:
    go_on = workbench.folder / "go-on"
    first = begin(local, go_on)
    link = workbench.folder / "link"
    link.symlink_to(local.target)
    local.target = link
    code, _, errors = local.start("--run-id", "second").ends()
    assert code == 2
    assert "makes outputs in" in errors
    go_on.touch()
    assert first.ends()[0] == 0


def test_a_local_run_that_was_killed_keeps_nobody_out(workbench: Workbench, local: Folder) -> None:
    first = begin(local, workbench.folder / "never", "--run-id", "first")
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    (local.source / "waits.txt").unlink()
    code, output, _ = local.start("--run-id", "second", processor=SLOW).ends()
    assert code == 0
    assert "3 skipped" in output


def test_a_local_run_of_no_files_makes_no_directory(local: Folder) -> None:
    assert local.start().ends()[0] == 0
    assert not local.target.exists()


# A local run and a cluster


def test_a_local_run_waits_for_no_worker_that_is_at_work_there(
    workbench: Workbench, local: Folder
) -> None:
    workbench.file("waits.txt", f"wait-for {workbench.folder / 'go-on'}")
    workbench.settings["processor"] = SLOW
    workbench.enqueue("nightly")
    worker = workbench.worker().took()
    local.files(1)
    until(workbench.temporaries, "the worker to be at work")
    code, _, errors = local.start().ends()
    assert code == 2
    assert errors == (
        f"imece: workers of run nightly make outputs in {workbench.target}: wait until it has "
        "ended, or take another output directory\n"
    )
    worker.kill()
    worker.wait()
    assert local.start().ends()[0] == 0


def test_a_worker_leaves_the_directory_to_a_local_run(workbench: Workbench, local: Folder) -> None:
    go_on = workbench.folder / "go-on"
    workbench.files(3)
    workbench.enqueue("nightly")
    call = begin(local, go_on, "--run-id", "mine")
    workbench.worker()

    def reason() -> str:
        return workbench.status("nightly").blocking_reason or ""

    until(lambda: "the local run mine (process" in reason(), "the reason")
    assert "wait until it has ended, or take another output directory" in reason()
    assert workbench.status("nightly").done == 0
    go_on.touch()
    assert call.ends()[0] == 0
    now = workbench.ended("nightly")
    assert (now.state, now.done + now.skipped) == ("done", 3)


def test_a_run_is_not_enqueued_into_the_directory_of_a_local_run(
    workbench: Workbench, local: Folder
) -> None:
    go_on = workbench.folder / "go-on"
    call = begin(local, go_on, "--run-id", "mine")
    workbench.files(1)
    with pytest.raises(RunError, match=r"the local run mine \(process .*\) makes outputs in"):
        workbench.enqueue()
    assert workbench.run().state() is None
    go_on.touch()
    assert call.ends()[0] == 0
    assert workbench.enqueue().how == "enqueued"


def test_workers_of_several_servers_may_share_a_directory(tmp_path: Path) -> None:
    """Which of their outputs are the same, their servers know."""
    output = os.fsencode(tmp_path)
    shared = [occupancy.share(output, server) for server in ("redis://one", "redis://two")]
    assert all(number is not None for number in shared)
    with (
        pytest.raises(RunError, match="workers of another run make outputs in"),
        occupancy.alone(output, "run", "unix:///mine"),
    ):
        pass
    for number in shared:
        assert number is not None
        os.close(number)
    with occupancy.alone(output, "run", "unix:///mine"):
        assert occupancy.share(output, "unix:///mine") is None  # its own workers
        with pytest.raises(RunError, match="the local run run"):
            occupancy.check(output, "redis://one")
    occupancy.check(output, "redis://one")
    assert (tmp_path / ".imece" / "in-use").read_text() == ""


# Where it cannot be known


def test_where_there_are_no_locks_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(number: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    output = os.fsencode(tmp_path)
    with (
        occupancy.alone(output, "one", "unix:///one"),
        occupancy.alone(output, "two", "unix:///two"),
    ):
        occupancy.check(output, "redis://three")


@pytest.mark.parametrize("written", ["", "garbage", "[1]", json.dumps({"run": "\x1b[2J"})])
def test_whatever_is_written_there_is_read(tmp_path: Path, written: str) -> None:
    output = os.fsencode(tmp_path)
    with occupancy.alone(output, "one", "unix:///one"):
        (tmp_path / ".imece" / "in-use").write_text(written)
        with pytest.raises(RunError, match=r"local run .*makes outputs in") as refused:
            occupancy.check(output, "redis://two")
    assert str(refused.value).isprintable()


def test_a_directory_that_is_not_seen_is_in_nobodys_use(tmp_path: Path) -> None:
    occupancy.check(os.fsencode(tmp_path / "nothing"), "redis://one")
    assert list(tmp_path.iterdir()) == []
