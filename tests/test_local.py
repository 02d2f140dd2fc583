"""The promise: one command processes a folder on this machine, and can be stopped at any time."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from imece_producer.local import state
from imece_producer.local.server import Server, clear_socket_dirs
from tests import forks, obstacles
from tests.conftest import ROOT, is_running, until

ONE = ("--max-replicas", "1")


class Folder:
    """An input directory with files, and `imece local` over it."""

    def __init__(self, base: Path) -> None:
        self.source, self.target, self.state = base / "in", base / "out", base / "state"
        self.source.mkdir()
        self.calls: list[subprocess.Popen[str]] = []

    def files(self, count: int, content: str = "content") -> None:
        for number in range(count):
            (self.source / f"f-{number:03d}.txt").write_text(content)

    def start(
        self, *options: str, processor: str = "tests.processors:copy", fresh: bool = False
    ) -> "Call":
        """Starts `imece local` in a process of its own. `fresh`: one that has imported nothing."""
        words = ["local", str(self.source), str(self.target), *options]
        if "--command" not in options:
            words += ["--processor", processor]
        process = (subprocess.Popen if fresh else forks.Popen)(
            [sys.executable, "-m", "imece_producer", *words],
            cwd=ROOT,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.calls.append(process)
        return Call(process)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "IMECE_STATE_DIR": str(self.state), "IMECE_RETRY_PAUSE": "0.05"}

    def imece(self, *words: str) -> str:
        """Another command, in another terminal; its standard output."""
        command = [sys.executable, "-m", "imece_producer", *words]
        ended = forks.run(command, cwd=ROOT, env=self.environment())
        ended.check_returncode()
        return ended.stdout

    def done(self) -> int:
        return len(list(self.target.glob("f-*")))

    def on(self) -> dict[str, str]:
        return state.live(self.state)

    def close(self) -> None:
        for call in self.calls:
            if call.poll() is None:
                call.kill()
            call.communicate()


class Call:
    """A running `imece local`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ends(self, timeout: float = 60.0) -> tuple[int, str, str]:
        """Its exit code, standard output and standard error, when it has ended."""
        output, errors = self.process.communicate(timeout=timeout)
        assert "Traceback" not in errors
        return self.process.returncode, output, errors

    def family(self) -> set[int]:
        """The process ids of what it has started: server and workers."""
        return forks.children(self.process.pid)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    made.close()


def test_an_empty_folder_is_done_at_once(folder: Folder) -> None:
    code, output, _ = folder.start().ends()
    assert code == 0
    assert f"there are no files to process in {folder.source}" in output
    code, _, errors = folder.start("--require-files").ends()
    assert (code, errors) == (2, f"imece: there are no files to process in {folder.source}\n")


def test_a_dry_run_says_what_would_be_processed(folder: Folder) -> None:
    folder.files(5)
    code, output, _ = folder.start("--dry-run", "--limit", "2").ends()
    assert code == 0
    assert output.startswith("would process 2 files in ")
    assert not folder.target.exists()
    assert not folder.state.exists()


def test_a_folder_becomes_outputs_and_a_summary(folder: Folder) -> None:
    folder.files(30)
    code, output, _ = folder.start("-j", "2").ends()
    assert code == 0
    assert folder.done() == 30
    assert "30 done, 0 failed, 0 skipped" in output
    assert "slowest" in output
    assert "(most: 2)" in output
    assert list(folder.target.rglob(".imece-*")) == []
    assert folder.on() == {}


def test_what_imece_has_not_made_is_no_output(folder: Folder) -> None:
    before = obstacles.put(folder.target)
    for name in before:
        (folder.source / name).write_text("content")
    code, output, _ = folder.start("--retries", "0").ends()
    assert code == 1
    assert f"0 done, {len(before)} failed, 0 skipped" in output
    assert "is in the way of its output, as " in output
    assert obstacles.are_untouched(folder.target, before)


def test_failed_files_are_named_and_make_the_exit_code_one(folder: Folder) -> None:
    folder.files(5)
    (folder.source / "bad.txt").write_text("raise out of tune")
    call = folder.start(processor="tests.processors:by_content")
    code, output, _ = call.ends()
    assert code == 1
    assert re.search(r"ValueError in \S+ by_content, as bad.txt: ValueError: out of tune", output)
    (list_of_all,) = folder.state.glob("*/failures.jsonl")
    (entry,) = map(json.loads, list_of_all.read_text().splitlines())
    assert entry["file"] == "bad.txt"
    assert "about to raise" in entry["output"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_hands_back_and_the_same_call_goes_on(
    folder: Folder, number: signal.Signals
) -> None:
    """Ctrl-C, a service manager, a terminal that is closed."""
    folder.files(60)
    call = folder.start("--max-replicas", "2", processor="tests.processors:slow")
    until(lambda: folder.done() >= 5, "the first outputs")
    call.process.send_signal(number)
    code, output, errors = call.ends()
    assert code == 128 + number
    assert "to continue, call the same again" in errors
    assert "stopped" in output
    before = {path.name: path.stat().st_mtime_ns for path in folder.target.glob("f-*")}
    assert 5 <= len(before) < 60
    assert list(folder.target.rglob(".imece-*")) == []

    code, output, _ = folder.start("--max-replicas", "2", processor="tests.processors:slow").ends()
    assert code == 0
    assert "continues" in output
    assert f"{60 - len(before)} done, 0 failed, {len(before)} skipped" in output
    assert folder.done() == 60
    after = {name: (folder.target / name).stat().st_mtime_ns for name in before}
    assert after == before  # nothing was done twice


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_says_which_files_it_waits_for(folder: Folder, number: signal.Signals) -> None:
    folder.files(2)
    go_on = folder.source.parent / "go-on"
    (folder.source / "big.txt").write_text(f"wait-for {go_on}")
    call = folder.start("--timeout", "600", processor="tests.processors:by_content")
    until(lambda: folder.done() == 2, "the other files")
    call.process.send_signal(number)
    assert call.process.stderr is not None
    said = ""
    while "waiting for big.txt: " not in said:
        said += (line := call.process.stderr.readline())
        assert line, said
    go_on.touch()
    code, _, errors = call.ends()
    assert code == 0  # it was the last one
    assert "finish their current files, for 10 min 00 s at most" in said
    assert re.search(r"waiting for big.txt: [0-9.]+ s so far, 9 min 5. s more at most", said)
    assert "waiting for" not in errors
    assert len(list(folder.target.glob("*.txt"))) == 3


def test_a_stop_before_everything_is_imported_says_nothing(folder: Folder) -> None:
    folder.files(1)
    call = folder.start(fresh=True)
    maps = Path(f"/proc/{call.process.pid}/maps")
    until(lambda: "pydantic_core" in maps.read_text(), "its imports to be on")
    call.process.send_signal(signal.SIGINT)
    assert call.ends()[0] == 130


@pytest.mark.slow
def test_what_is_gone_is_made_again_by_the_call_that_goes_on(folder: Folder) -> None:
    """Nothing counts as done at the end whose output is not there."""
    folder.files(60)
    call = folder.start("--max-replicas", "2", processor="tests.processors:slow")
    until(lambda: folder.done() >= 16, "the first outputs")
    call.process.send_signal(signal.SIGINT)
    assert call.ends()[0] == 130
    shutil.rmtree(folder.target)
    (folder.source / "new.txt").write_text("new")
    code, output, _ = folder.start("--max-replicas", "2", processor="tests.processors:slow").ends()
    assert code == 0
    assert "61 done, 0 failed, 0 skipped" in output
    assert len(list(folder.target.glob("*.txt"))) == 61


def test_the_same_call_after_the_end_takes_what_is_new(folder: Folder) -> None:
    folder.files(3)
    assert folder.start().ends()[0] == 0
    (folder.source / "f-new.txt").write_text("new")
    code, output, _ = folder.start().ends()
    assert code == 0
    assert "1 done, 0 failed, 3 skipped" in output


def test_the_limit_can_be_changed_while_it_is_on(folder: Folder) -> None:
    folder.files(40, "sleep 0.5")
    call = folder.start("--max-replicas", "1", "--json", processor="tests.processors:by_content")
    until(folder.on, "the local run to be announced")
    until(lambda: folder.done() >= 1, "the first output")
    assert "at most 4 replicas (it was 1)" in folder.imece("scale", "4")
    shown = json.loads(folder.imece("status", "--json"))
    assert shown["state"] == "running"
    until(lambda: len(call.family()) == 1 + 4, "four workers beside the server")
    code, output, _ = call.ends()
    assert code == 0
    assert max(json.loads(output)["replicas"]) == 4


@pytest.mark.slow
def test_a_lower_limit_stops_workers_and_loses_nothing(folder: Folder) -> None:
    folder.files(40, "sleep 0.25")
    call = folder.start("--max-replicas", "4", processor="tests.processors:by_content")
    until(lambda: folder.done() >= 2, "the first outputs")
    folder.imece("scale", "1")
    until(lambda: len(call.family()) == 1 + 1, "one worker beside the server")
    code, output, _ = call.ends()
    assert code == 0
    assert "40 done" in output


@pytest.fixture
def release(folder: Folder, tmp_path: Path) -> Path:
    """Five files in `folder` wait for it to be there."""
    path = tmp_path / "release"
    folder.files(5, f"wait-for {path}")
    return path


def is_attached(call: Call) -> bool:
    """Waits until it shows the run."""
    assert call.process.stdout is not None
    return any("running" in line for line in iter(call.process.stdout.readline, ""))


@pytest.mark.parametrize("ending", ["done", "failed"])
def test_a_second_call_attaches_and_ends_as_the_first(
    folder: Folder, release: Path, ending: str
) -> None:
    if ending == "failed":
        (folder.source / "bad.txt").write_text("raise out of tune")
    first = folder.start(*ONE, processor="tests.processors:by_content")
    until(folder.on, "the first to be announced")
    second = folder.start(*ONE, processor="tests.processors:by_content")
    assert is_attached(second)
    release.touch()
    code, output, errors = second.ends()
    assert "is on already" in errors
    assert "5 done" in output
    assert code == first.ends()[0] == (0 if ending == "done" else 1)
    assert folder.done() == 5


def test_ctrl_c_detaches_and_the_run_goes_on(folder: Folder, release: Path) -> None:
    first = folder.start(*ONE, processor="tests.processors:by_content")
    until(folder.on, "the first to be announced")
    second = folder.start(*ONE, processor="tests.processors:by_content")
    assert is_attached(second)
    second.process.send_signal(signal.SIGINT)
    code, _, errors = second.ends()
    assert code == 130
    assert "continues" in errors
    release.touch()
    assert first.ends()[0] == 0
    assert folder.done() == 5


def test_a_second_call_with_other_options_is_refused(folder: Folder, release: Path) -> None:
    named = ("--run-id", "mine", *ONE)
    first = folder.start(*named, processor="tests.processors:by_content")
    until(folder.on, "the first to be announced")
    options = ("--run-id", "mine", "--retries", "7")
    code, _, errors = folder.start(*options, processor="tests.processors:copy").ends()
    assert code == 2
    assert "another processor, another retries" in errors
    release.touch()
    assert first.ends()[0] == 0


def test_nothing_outlives_a_killed_call(folder: Folder) -> None:
    folder.files(50)
    call = folder.start("--max-replicas", "2", processor="tests.processors:slow")
    until(lambda: folder.done() >= 2, "the first outputs")
    family = call.family()
    assert len(family) == 3
    call.process.kill()
    until(lambda: not any(map(is_running, family)), "server and workers to be gone", 60)
    assert folder.on() == {}
    code, _, _ = folder.start("--max-replicas", "2", processor="tests.processors:slow").ends()
    assert code == 0
    assert folder.done() == 50
    assert list(folder.target.rglob(".imece-*")) == []


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for child in forks.children(pid):
        found |= {child, *descendants(child)}
    return found


def test_a_killed_call_ends_its_workers_in_the_middle_of_their_files(folder: Folder) -> None:
    """Nobody waits for these, and Redis is gone: to go on would only cost."""
    folder.files(2, "sleep 600")
    call = folder.start("--max-replicas", "2", processor="tests.processors:by_content")
    until(lambda: len(descendants(call.process.pid)) == 1 + 2 * 3, "two files in hand")
    family = descendants(call.process.pid)  # the server; workers, runners, drainers
    call.process.kill()
    until(lambda: not any(map(is_running, family)), "all to be gone", 10)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for sockets below it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


def test_a_temporary_directory_whose_path_is_too_long_for_a_socket_will_do(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    folder.files(3)
    assert folder.start().ends()[0] == 0
    assert folder.done() == 3


@pytest.mark.slow
def test_a_call_that_is_killed_leaves_its_socket_only_until_the_next_one(
    folder: Folder, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    folder.files(20)
    for _ in range(2):
        call = folder.start(processor="tests.processors:slow")
        until(call.family, "its server to be started")  # what was there is cleared up then
        until(lambda: list(short.glob("imece-server-*/redis.sock")), "its server to listen")
        family = call.family()
        call.process.kill()
        call.process.wait()
        until(lambda: not any(map(is_running, family)), "its server to be gone")  # noqa: B023
        assert len(list(short.glob("imece-server-*"))) == 1
    (short / "imece-server-link").symlink_to(folder.source)
    assert folder.start(processor="tests.processors:slow").ends()[0] == 0
    assert [path.name for path in short.glob("imece-server-*")] == ["imece-server-link"]
    assert len(list(folder.source.iterdir())) == 20


@pytest.mark.skipif(not Path("/proc").exists(), reason="there is no /proc")
def test_a_server_never_starts_with_half_of_its_configuration(server: Server) -> None:
    """Without one it would listen on port 6379 and write into the current directory: so it reads a
    file that is whole, and no pipe whose writer may be killed."""
    with Redis(unix_socket_path=str(server.socket)) as redis:
        number = redis.info("server")["process_id"]
    assert stat.S_ISREG(Path(f"/proc/{number}/fd/0").stat().st_mode)


def test_the_sockets_of_others_that_run_are_left_alone(tmp_path: Path) -> None:
    with Server(tmp_path / "one") as first, Server(tmp_path / "two") as second:
        clear_socket_dirs()
        assert first.socket.exists()
        assert second.socket.exists()
    assert not first.socket.parent.exists()


def test_workers_share_the_cores_by_the_limit(folder: Folder) -> None:
    folder.files(4)
    call = folder.start("--max-replicas", "3", processor="tests.processors:write_replicas")
    assert call.ends()[0] == 0
    assert {path.read_text() for path in folder.target.glob("f-*")} == {"3"}


@pytest.mark.slow
def test_an_import_that_never_ends_is_told(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After half a minute."""
    folder.files(1)
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    call = folder.start("--run-id", "run", processor="sleeper:f")
    log = folder.state / "run" / "workers.log"
    until(
        lambda: log.exists() and "importing sleeper takes longer than" in log.read_text(),
        "the log",
        60,
    )
    call.process.send_signal(signal.SIGINT)
    code, _, errors = call.ends()
    assert code == 128 + signal.SIGINT
    assert f"no worker has imported the processor yet: see {log}" in errors


@pytest.mark.slow
def test_a_killed_worker_is_replaced(folder: Folder) -> None:
    folder.files(20)
    (folder.source / "deadly.txt").write_text("kill-worker")
    call = folder.start("--retries", "0", processor="tests.processors:by_content")
    code, output, _ = call.ends(100)
    assert code == 1
    assert "20 done, 1 failed" in output
    assert "1  its worker died while at it, as deadly.txt" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--processor", "no_such_module:convert"), "no_such_module"),
        (("--processor", "tests.processors:no_such"), "no_such"),
        (("--command", "no-such-program {input} {output}"), "no-such-program"),
    ],
)
def test_a_processor_that_cannot_be_had_is_said_at_once(
    folder: Folder, options: tuple[str, str], message: str
) -> None:
    folder.files(3)
    spec = options[1] if options[0] == "--processor" else ""
    rest = () if spec else options
    code, _, errors = folder.start(*rest, processor=spec).ends()
    assert code == 2
    assert message in errors


@pytest.mark.slow
def test_users_modules_may_have_the_names_of_our_folders(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").touch()
    (tmp_path / "worker" / "tasks.py").write_text("from producer import f as convert\n")
    (tmp_path / "producer.py").write_text("from shutil import copyfile as f\n")
    folder.files(3)
    words = ["local", str(folder.source), str(folder.target)]
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "imece_producer", *words, "--processor=worker.tasks:convert"],
        cwd=tmp_path,
        env=folder.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert folder.done() == 3


def test_the_workers_of_one_host_do_not_quarrel_about_a_port(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMECE_METRICS_PORT", "9090")
    folder.files(20)
    code, _, errors = folder.start("--max-replicas", "2", processor="tests.processors:slow").ends()
    assert (code, folder.done()) == (0, 20), errors
