"""The promise: what imece prints does nothing to a terminal, whatever stands in Redis or in the
names of files.

Escape sequences in every text of a run; then each command's output is looked at byte by byte.
"""

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from imece import names
from imece.errors import ServiceError
from imece.run.failure import Failure
from imece.run.store import Run
from imece_producer.follow import Follower, Line
from imece_worker.log import HumanLines, JsonLines
from tests import forks
from tests.conftest import ROOT, Workbench

EVIL = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\x7f\u202e\b"
"""Titles, colours, an empty screen: in C0 and C1, a DEL, right to left, a backspace."""


def obeyed(printed: str) -> set[str]:
    """The characters of it that a terminal would obey."""
    return {char for char in printed if not char.isprintable()} - {"\n"}


@pytest.fixture
def hostile(workbench: Workbench) -> Workbench:
    """A failed run with escape sequences in each of its texts."""
    folder = workbench.folder / f"in{EVIL}"
    folder.mkdir()
    workbench.source = folder
    workbench.target = workbench.folder / f"out{EVIL}\n"
    workbench.file(f"bad{EVIL}.txt", f"raise {EVIL}")
    workbench.file("fine")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, retries=0, include=["*"])
    worker = workbench.worker()
    assert workbench.ended().failed == 1
    worker.stop()
    redis, run = workbench.redis, "imece:imece:run:run"
    failure = Failure(f"first\n{EVIL}", 1, 1.5, f"worker{EVIL}").encode()
    redis.hset(f"{run}:failures", f"worse{EVIL}\n".encode(), failure)
    redis.hset(f"{run}:outputs", f"worse{EVIL}\n".encode(), f"printed{EVIL}\nmore{EVIL}".encode())
    redis.zadd(f"{run}:slowest", {f"slow{EVIL}".encode(): 10**12})
    redis.zadd(f"{run}:current", {f"0-0-0:current{EVIL}".encode(): 10})
    return workbench


def spoil(workbench: Workbench, **fields: str) -> None:
    for name, value in fields.items():
        workbench.redis.hset("imece:imece:run:run", name, value)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_no_command_prints_what_a_terminal_obeys(
    hostile: Workbench, options: tuple[str, ...]
) -> None:
    calls = [("failures", "run"), ("failures", "run", "--full"), ("wait", "run")]
    calls += [("status", "run"), ("runs",), ("status", EVIL), ("enqueue", f"/no{EVIL}", "/out")]
    for call in calls:
        check(hostile, *call, *options)
    check(hostile, "doctor", str(hostile.source), str(hostile.target), *options)
    check(hostile, "doctor", *options, command=f"no{EVIL}")
    spoil(hostile, state="running", blocking_reason=f"trouble{EVIL}", blocked_at=str(2**40))
    for call in [("status", "run"), ("runs",)]:
        check(hostile, *call, *options)
    spoil(hostile, state=f"state{EVIL}")
    for call in [("status", "run"), ("runs",), ("cancel", "run"), ("retry", "run")]:
        check(hostile, *call, *options)
    check(hostile, "delete", "run")
    spoil(hostile, parameters=EVIL)
    for call in [("status", "run"), ("runs",), ("cancel", "run")]:
        check(hostile, *call, *options)


def check(workbench: Workbench, *call: str, command: str = "") -> None:
    settings = {"command": command, "processor": ""} if command else {}
    answer = workbench.imece(*call, timeout=60.0, **settings)
    assert answer.stdout or answer.stderr, call
    assert obeyed(answer.stdout) == set(), call
    assert obeyed(answer.stderr) == set(), call
    assert "Traceback" not in answer.stderr, answer.stderr
    if "--json" in call:
        for line in answer.stdout.splitlines():
            json.loads(line)


def test_enqueue_and_dry_run_print_nothing_a_terminal_obeys(hostile: Workbench) -> None:
    folders = (str(hostile.source), str(hostile.target))
    check(hostile, "enqueue", *folders, "--dry-run")
    check(hostile, "enqueue", *folders, "--run-id", f"id{EVIL}")
    check(hostile, "enqueue", *folders, "--run-id", f"id{EVIL}", "--suffix", f".x{EVIL}")


def test_a_progress_bar_shows_a_hostile_state_as_escapes(hostile: Workbench) -> None:
    """On a terminal, which shows Rich's own sequences: none of ours may be among them."""
    spoil(hostile, state="done")
    leader, follower = pty.openpty()
    process = forks.Popen(
        [sys.executable, "-m", "imece_producer", "wait", "run"],
        env={**os.environ, **hostile.environment(), "TERM": "xterm"},
        cwd=ROOT,
        stdout=follower,
        stderr=follower,
        stdin=subprocess.DEVNULL,
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    process.wait()
    os.close(leader)
    assert b"\\x1b]0;owned" in seen
    assert b"\x1b]0;" not in seen
    assert b"\x1b[2J" not in seen


def test_a_follower_of_a_terminal_escapes_what_it_shows(hostile: Workbench) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=400, color_system=None)
    with Live(console=console, auto_refresh=False) as live:
        Follower(live).show(hostile.status(), f"extra{EVIL}")
    ours = screen.getvalue().replace("\x1b[?25l", "").replace("\x1b[?25h", "")
    assert "owned" in ours
    assert b"\x1b]0;" not in ours.encode()
    assert b"\x1b[2J" not in ours.encode()


@pytest.mark.parametrize("width", [20, 40, 70, 80, 200])
def test_a_narrow_terminal_shows_the_count(workbench: Workbench, width: int) -> None:
    """The count before all else, then a bar, then as much of the rest as fits."""
    workbench.files(1)
    workbench.enqueue()
    now = replace(workbench.status(), state="running", files=1_234_567, done=600_000, rate=25.0)
    now = replace(now, time_left=24_666.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with console.capture() as seen:
        console.print(Line(now, "2 of at most 2 replicas"))
    [line] = seen.get().splitlines()
    assert len(line) <= width
    assert line.startswith("600,000/1,234,567")
    assert ("━" in line) == (width >= 40)
    assert ("0 failed" in line) == (width >= 40)
    assert ("6 h 51 min left" in line) == (width >= 70)
    assert ("replicas" in line) == (width >= 200)


def test_causes_of_failures_are_told_as_they_come(workbench: Workbench) -> None:
    workbench.file("bad.txt", "raise too bad")
    workbench.file("late.txt", "hang")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, files_per_job=2, retries=0)
    workbench.worker()
    waiting = forks.Popen(
        [sys.executable, "-m", "imece_producer", "wait", "run"],
        env={**os.environ, **workbench.environment()},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert waiting.stdout is not None
    with waiting.stdout as printed:
        failed = next(line for line in printed if line.startswith("failed: "))
        cause = (
            r"failed: ValueError in processors.py:\d+ by_content, as bad.txt: ValueError: too bad"
        )
        assert re.fullmatch(cause, failed.rstrip())
        Run(workbench.redis, "imece", "run").cancel(600)
        printed.read()
    assert waiting.wait() == 1


def test_a_worker_logs_nothing_that_a_terminal_obeys(workbench: Workbench) -> None:
    workbench.file(f"bad{EVIL}.txt", "exit 3")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, retries=0)
    workbench.redis.hset(f"rq:job:{EVIL}", "data", EVIL)
    workbench.redis.lpush("rq:queue:imece", EVIL)
    for log_format in ("human", "json"):
        worker = workbench.worker(log_format=log_format)
        workbench.ended()
        worker.stop()
        assert obeyed(worker.log()) == set()
    assert "owned" in workbench.workers[0].log()


def test_a_workers_last_words_do_nothing_to_a_terminal(workbench: Workbench) -> None:
    worker = workbench.worker(processor="", command=f"no-such{EVIL}\n")
    assert worker.wait() == 2
    [line] = worker.log().splitlines()
    assert line.isprintable()


@pytest.mark.parametrize("formatter", [HumanLines(), JsonLines()])
def test_no_detail_of_an_event_is_printed_raw(formatter: logging.Formatter) -> None:
    details: dict[str, Any] = {"one": EVIL, "two": f"{EVIL}\n words", "three": f'"{EVIL}'}
    details["error"] = ServiceError(EVIL)
    try:
        raise ServiceError(EVIL)
    except ServiceError:
        record = logging.LogRecord("x", 30, "x", 1, f"job {EVIL}", (), sys.exc_info())
    record.details = details
    line = formatter.format(record)
    assert obeyed(line) == set()
    if isinstance(formatter, JsonLines):
        assert json.loads(line)["one"] == EVIL


def test_json_for_programs_keeps_every_text() -> None:
    assert json.loads(names.json_line({"text": EVIL})) == {"text": EVIL}
    assert obeyed(names.json_line(EVIL)) == set()
