"""The forks of tests/forks.py are what a process is that was started."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.conftest import ROOT, is_running, until

TELL = """
import json, os, pathlib, resource, signal, sys, threading, warnings

def stream(one):
    return [one.fileno(), one.encoding, one.errors, one.line_buffering, one.isatty()]

dispositions = {}
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    found = signal.getsignal(number)
    dispositions[int(number)] = found if isinstance(found, int) else getattr(found, "__name__", "?")
print(json.dumps({
    "argv": sys.argv,
    "orig_argv": sys.orig_argv,
    "path": sys.path,
    "directory": os.getcwd(),
    "environment": dict(os.environ),
    "dispositions": dispositions,
    "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    "files": sorted(os.listdir("/proc/self/fd")),
    "family": [os.getppid(), os.getpgrp(), os.getsid(0)],
    "leads": os.getpid() == os.getpgrp() == os.getsid(0),
    "warnings": [str(one) for one in warnings.filters],
    "threads": threading.active_count(),
    "umask": os.umask(0),
    "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
    "streams": [stream(one) for one in (sys.stdin, sys.stdout, sys.stderr)],
    "read": sys.stdin.read(),
    "command line": pathlib.Path("/proc/self/cmdline").read_text().split("\\0")[1:-1],
}))
raise SystemExit
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the module path, with a module that a worker imports if it has a port for
    metrics."""
    (tmp_path / "prometheus_client.py").write_text(TELL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("IMECE_METRICS_PORT", "1")
    return tmp_path


TELLING = ("-m", "imece_worker", "--processor", "tests.processors:copy")


def told(popen: Any, *words: str, **options: Any) -> dict[str, Any]:
    """What a process says of itself."""
    pipe = subprocess.PIPE
    call = [sys.executable, *words]
    options.setdefault("env", dict(os.environ))
    with popen(call, stdin=pipe, stdout=pipe, stderr=pipe, **options) as process:
        output, errors = process.communicate(b"to read", timeout=60)
    assert (process.returncode, errors) == (0, b"")
    said: dict[str, Any] = json.loads(output)
    return said


@pytest.mark.parametrize(
    ("folder", "leads", "options", "encoding"),
    [(ROOT, False, (), ""), (None, False, (), "ascii"), (None, True, ("-P",), "")],
)
def test_a_fork_sees_what_a_process_sees_that_was_started(
    modules: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path | None,
    leads: bool,
    options: tuple[str, ...],
    encoding: str,
) -> None:
    if encoding:
        monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.setenv("IMECE_LEASE", "7")
    monkeypatch.setenv("TEST\udcff", "\udcff")
    started, forked = (
        told(popen, *options, *TELLING, cwd=folder or modules, start_new_session=leads)
        for popen in (subprocess.Popen, forks.Popen)
    )
    assert started["leads"] == forked["leads"] == leads
    if leads:
        del started["family"], forked["family"]
    assert started.pop("command line") == [*options, *TELLING]
    assert forked.pop("command line")[:2] == ["-m", "tests.forks"]
    # One more: the line to the template of the interpreter that imports processors.
    assert len(forked.pop("files")) == len(started.pop("files")) + 1
    assert forked == started


def test_a_fork_ends_by_a_signal_or_with_a_code_of_its_own() -> None:
    words = [sys.executable, "-m", "imece_producer", "runs", "--no-such-option"]
    assert forks.run(words, cwd=ROOT).returncode == 2
    words = [sys.executable, "-m", "imece_worker", "--processor", "tests.processors:copy"]
    environment = {**os.environ, "IMECE_REDIS_URL": "unix:///nowhere"}
    with forks.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        assert process.poll() is None
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_its_parent_is_the_process_of_the_tests() -> None:
    with forks.Popen(
        [sys.executable, "-m", "imece_worker"], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as one:
        assert os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT) is not None


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (("-B",), {}),
        ((), {"PYTHONWARNINGS": "default"}),
        ((), {"LC_ALL": "C"}),
    ],
)
def test_what_no_fork_can_be_is_started(
    modules: Path, words: tuple[str, ...], settings: dict[str, str]
) -> None:
    seen = told(forks.Popen, *words, *TELLING, cwd=ROOT, env={**os.environ, **settings})
    assert seen["command line"] == [*words, *TELLING]


def test_the_workers_of_a_forked_imece_local_are_its_children_and_forks(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text(f"wait-for {tmp_path / 'release'}")
    words = ["local", str(tmp_path / "in"), str(tmp_path / "out")]
    words += ["--processor", "tests.processors:by_content"]
    with forks.Popen(
        [sys.executable, "-m", "imece_producer", *words], cwd=ROOT, stdout=subprocess.DEVNULL
    ) as local:
        found = until(lambda: len(now := forks.children(local.pid)) == 2 and now, "both children")
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found]
        assert sum(b"tests.forks" in line for line in lines) == 1  # the other is the server
        (tmp_path / "release").touch()
        assert local.wait(60) == 0
    assert not any(is_running(pid) for pid in found)
