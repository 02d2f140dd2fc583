"""The command line, as a user calls it: what it prints, where, and with which exit code."""

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from imece.run.store import Run
from imece_producer.cli import app
from tests import forks
from tests.conftest import ROOT, Workbench, until


def enqueue(workbench: Workbench, *options: str, run_id: str = "run") -> str:
    """Enqueues by the command line, successfully; what it printed."""
    answer = workbench.imece(
        *("enqueue", str(workbench.source), str(workbench.target), "--run-id", run_id), *options
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    return answer.stdout


def told(workbench: Workbench, *arguments: str, code: int = 0) -> str:
    """What a command printed, given its exit code."""
    answer = workbench.imece(*arguments)
    assert answer.returncode == code, answer.stdout + answer.stderr
    assert answer.stderr == ""
    return answer.stdout


def told_json(workbench: Workbench, *arguments: str, code: int = 0) -> Any:
    return json.loads(told(workbench, *arguments, "--json", code=code))


def refusal(workbench: Workbench, *arguments: str, code: int = 2, **settings: str) -> str:
    """The one line a command says of why it will not."""
    answer = workbench.imece(*arguments, timeout=60.0, **settings)
    assert answer.returncode == code, answer.stdout + answer.stderr
    assert answer.stdout == ""
    [line] = answer.stderr.splitlines()
    assert line.startswith("imece: ")
    return line.removeprefix("imece: ")


def all_refusals(
    workbench: Workbench, calls: list[list[str]], code: int, **settings: str
) -> list[str]:
    """The one line each of many commands says, called side by side."""
    with ThreadPoolExecutor(4) as pool:
        started = [pool.submit(refusal, workbench, *call, code=code, **settings) for call in calls]
        return [one.result() for one in started]


def some_that_fail(workbench: Workbench) -> None:
    """Ten files, three of which fail at every try."""
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.files(7)
    for name in ("bad-1.txt", "bad-2.txt", "bad-3.txt"):
        workbench.file(name, f"raise {name} is bad")


@pytest.fixture
def failed(workbench: Workbench) -> Workbench:
    """A run that has ended with three of ten files failed, and no worker about."""
    some_that_fail(workbench)
    workbench.enqueue(buckets=2)
    worker = workbench.worker()
    assert workbench.ended().failed == 3
    worker.stop()
    return workbench


# enqueue


def test_enqueue_says_what_it_has_done_and_what_to_do_next(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.file(".hidden")
    assert enqueue(workbench) == (
        "run run: 3 files in 3 buckets, 3 bucket jobs of at most 1 file\n"
        "  1 hidden left out (--hidden takes them)\n"
        "`imece status run --watch` shows how far it is\n"
    )


def test_enqueue_tells_programs_in_json(workbench: Workbench) -> None:
    workbench.files(3)
    first = json.loads(enqueue(workbench, "--json"))
    assert (first["how"], first["run"], first["files"]) == ("enqueued", "run", 3)
    assert json.loads(enqueue(workbench, "--json"))["how"] == "attached"


def test_a_dry_run_needs_no_redis_and_does_nothing(workbench: Workbench) -> None:
    workbench.files(600)
    call = ["enqueue", str(workbench.source), str(workbench.target), "--dry-run"]
    workbench.settings["redis_url"] = "unix:///nowhere/redis.sock"
    text = told(workbench, *call, "--buckets", "10", "--files-per-job", "100")
    assert text == "would process 600 files in 10 buckets, 10 bucket jobs of at most 100 files\n"
    counts = told_json(workbench, *call)
    assert (counts["files"], counts["buckets"]) == (600, 256)
    assert counts["reasons"] == {"new": 600}
    assert not workbench.target.exists()


def test_names_come_from_standard_input_or_a_file_with_newline_or_nul(
    workbench: Workbench, tmp_path: Path
) -> None:
    call = [sys.executable, "-m", "imece_producer", "enqueue", "in", "out", "--dry-run", "--json"]
    (tmp_path / "list").write_bytes(b"a\nb\0c")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def files(*options: str) -> int:
        with (tmp_path / "list").open("rb") as stdin:
            words = [*call, "--from-file", *options]
            answer = forks.run(words, stdin=stdin, cwd=tmp_path, env=environment)
        count: int = json.loads(answer.stdout)["files"]
        return count

    assert files("-", "--null") == 2
    assert files("list", "-0") == 2
    (tmp_path / "list").write_bytes(b"a\nb\nc\n")
    assert files("-") == 3
    assert files("list") == 3


def test_settings_from_the_command_line_are_recorded_in_the_run(workbench: Workbench) -> None:
    workbench.files(1)
    enqueue(
        workbench,
        *("--suffix", ".json", "--overwrite", "--retries", "7", "--timeout", "2.5"),
        *("--buckets", "4", "--files-per-job", "9", "--include", "f-*", "--exclude", "x"),
    )
    found = Run(workbench.redis, "imece", "run").parameters()
    assert (found.suffix, found.overwrite, found.retries, found.timeout) == (".json", True, 7, 2.5)
    assert (found.buckets, found.files_per_job) == (4, 9)
    assert (found.include, found.exclude) == (("f-*",), ("x",))
    assert (found.input, found.output) == (str(workbench.source), str(workbench.target))


# status, runs


def test_status_is_of_the_newest_run_unless_one_is_named(workbench: Workbench) -> None:
    workbench.files(2)
    workbench.enqueue_apart("older")
    enqueue(workbench, run_id="newer")
    assert told(workbench, "status").startswith("run newer: queued\n")
    text = told(workbench, "status", "older")
    assert text.splitlines()[:2] == [
        "run older: queued",
        "  files    0 done, 0 failed, 0 skipped, 2 left of 2",
    ]
    assert f"  from     {workbench.source}\n" in text
    assert "bucket jobs in the queue imece: 4 pending, 0 in flight" in text
    assert told_json(workbench, "status")["run"] == "newer"
    assert told_json(workbench, "status", "older")["left"] == 2


def test_status_watches_until_the_run_ends(workbench: Workbench) -> None:
    workbench.files(20)
    workbench.enqueue()
    workbench.worker(processor="tests.processors:slow")
    text = told(workbench, "status", "run", "--watch")
    assert text.endswith(f"  to       {workbench.target}\n")
    assert "run run: done\n  files    20 done" in text
    assert [json.loads(line)["state"] for line in told_json_lines(workbench)] == ["done"]


def told_json_lines(workbench: Workbench) -> list[str]:
    return told(workbench, "status", "run", "--watch", "--json").splitlines()


def test_runs_are_listed_newest_first(workbench: Workbench) -> None:
    assert told(workbench, "runs") == "no runs\n"
    assert told_json(workbench, "runs") == []
    workbench.files(2)
    for run_id in ("first", "second", "third"):
        workbench.enqueue_apart(run_id)
    header, *rows = told(workbench, "runs").splitlines()
    assert header.split() == [
        "RUN",
        "STATE",
        "FILES",
        "DONE",
        "FAILED",
        "SKIPPED",
        "LEFT",
        "AGE",
        "WHERE",
    ]
    assert [row.split()[:7] for row in rows] == [
        [run_id, "queued", "2", "0", "0", "0", "2"] for run_id in ("third", "second", "first")
    ]
    assert [run["run"] for run in told_json(workbench, "runs")] == ["third", "second", "first"]


def test_a_run_that_has_expired_is_no_longer_listed(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue("gone")
    workbench.enqueue_apart("there")
    workbench.redis.delete("imece:imece:run:gone")
    assert [run["run"] for run in told_json(workbench, "runs")] == ["there"]
    assert workbench.redis.zrange("imece:imece:runs", 0, -1) == [b"there"]


def cost_of_status(workbench: Workbench, run_id: str) -> tuple[int, int]:
    """How many commands `imece status` sends, and how many bytes the server answers."""

    def counters() -> tuple[int, int]:
        info = workbench.redis.info("stats")
        return info["total_commands_processed"], info["total_net_output_bytes"]

    def difference() -> tuple[int, int]:
        before, _ = counters(), told(workbench, "status", run_id)
        after = counters()
        return after[0] - before[0], after[1] - before[1]

    return difference()


def test_status_costs_the_same_for_a_big_run_as_for_a_small_one(
    workbench: Workbench, tmp_path: Path
) -> None:
    for run_id, count in (("small", 10), ("bigger", 100_000)):
        names = "\n".join(f"part-{number:06d}.csv" for number in range(count))
        (tmp_path / "names").write_text(names)
        workbench.enqueue_apart(run_id, from_file=str(tmp_path / "names"))
    commands, size = cost_of_status(workbench, "small")
    commands_of_big, size_of_big = cost_of_status(workbench, "bigger")
    assert commands_of_big == commands
    assert abs(size_of_big - size) < 200
    assert commands < 25


# wait


def test_wait_ends_with_0_when_all_is_done(workbench: Workbench) -> None:
    workbench.files(10)
    workbench.enqueue()
    workbench.worker()
    text = told(workbench, "wait", "run")
    assert "run run: done\n  files    10 done, 0 failed" in text
    assert told_json(workbench, "wait", "run")["done"] == 10


def test_wait_ends_with_1_when_files_failed_or_the_run_was_cancelled(failed: Workbench) -> None:
    assert "run run: failed\n" in told(failed, "wait", "run", code=1)
    assert told_json(failed, "wait", "run", code=1)["failed"] == 3
    failed.enqueue("another")
    Run(failed.redis, "imece", "another").cancel(600)
    assert told_json(failed, "wait", "another", code=1)["state"] == "cancelled"


@pytest.fixture
def waiting(workbench: Workbench) -> Iterator[subprocess.Popen[str]]:
    """An `imece wait` for a run that nobody works on yet."""
    workbench.files(10)
    workbench.enqueue()
    with forks.Popen(
        [sys.executable, "-m", "imece_producer", "wait", "run"],
        env={**os.environ, **workbench.environment()},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "queued: 0 done" in process.stdout.readline()
        yield process
        process.kill()


def test_wait_survives_a_restart_of_redis(
    workbench: Workbench, waiting: subprocess.Popen[str]
) -> None:
    workbench.server.stop()
    assert waiting.stderr is not None
    assert waiting.stderr.readline() == "Redis is out of reach: waiting for it\n"
    workbench.server.start()
    workbench.worker()
    output, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert "run run: done" in output
    assert errors == ""


def test_wait_can_be_broken_off(waiting: subprocess.Popen[str]) -> None:
    waiting.send_signal(signal.SIGINT)
    _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert errors.strip() == ""


def test_wait_shows_a_bar_on_a_terminal(workbench: Workbench) -> None:
    workbench.files(10)
    workbench.enqueue()
    workbench.worker()
    workbench.ended()
    ours, theirs = pty.openpty()
    with forks.Popen(
        [sys.executable, "-m", "imece_producer", "wait", "run"],
        env={**os.environ, **workbench.environment(), "TERM": "xterm", "COLUMNS": "100"},
        cwd=ROOT,
        stdout=theirs,
        stderr=theirs,
    ):
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 4096):
                shown += block
        except OSError:
            pass  # all who could write have gone
    os.close(ours)
    assert "━━━" in shown.decode()
    assert b"10/10" in shown
    assert b"run run: done" in shown


# failures, retry


def test_failures_say_which_files_how_often_and_why(failed: Workbench) -> None:
    assert told(failed, "failures", "run").splitlines() == [
        f"bad-{number}.txt (2 tries): ValueError: bad-{number}.txt is bad" for number in (1, 2, 3)
    ]


def test_failures_in_full_show_the_traceback_and_what_was_printed(failed: Workbench) -> None:
    text = told(failed, "failures", "run", "--full")
    assert text.count("    printed: about to raise\n") == 3
    assert "    reason: Traceback (most recent call last):\n" in text
    assert 'raise ValueError(argument or "no reason")' in text


def test_failures_tell_programs_one_line_a_file(failed: Workbench) -> None:
    lines = told(failed, "failures", "run", "--json").splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["file"] for entry in entries] == ["bad-1.txt", "bad-2.txt", "bad-3.txt"]
    assert {entry["tries"] for entry in entries} == {2}
    assert entries[0]["reason"].endswith("ValueError: bad-1.txt is bad")


def test_a_run_without_failures_has_none_to_show(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue()
    answer = workbench.imece("failures", "run")
    assert (answer.stdout, answer.stderr) == ("", "no file has failed\n")


def test_retry_does_the_failed_files_and_no_others(failed: Workbench) -> None:
    before = failed.status()
    done_before = {name: (failed.target / name).stat().st_mtime_ns for name in failed.outputs()}
    failed.file("bad-1.txt", "fixed")
    failed.file("bad-2.txt", "fixed")
    assert told(failed, "retry", "run") == "run run: 3 files in the queue again\n"
    queued = failed.status()
    assert (queued.state, queued.done, queued.failed, queued.left) == ("queued", 0, 0, 3)
    assert (queued.files, queued.round) == (3, 2)
    assert queued.generation == before.generation + 1
    worker = failed.worker()
    now = failed.ended()
    worker.stop()
    assert (now.state, now.done, now.failed, now.skipped, now.left) == ("failed", 2, 1, 0, 0)
    assert failed.check_books(others=7).files == 3
    for name, moment in done_before.items():
        assert (failed.target / name).stat().st_mtime_ns == moment
    failed.file("bad-3.txt", "fixed")
    assert told_json(failed, "retry", "run")["requeued"] == 1
    failed.worker()
    assert failed.ended().state == "done"
    assert failed.check_books(others=9).done == 1
    assert failed.imece("failures", "run").stdout == ""


def test_retry_is_refused_while_there_is_nothing_to_retry(failed: Workbench) -> None:
    told(failed, "retry", "run")
    assert refusal(failed, "retry", "run") == (
        "run run is queued: call this again when it has ended"
    )
    told(failed, "cancel", "run")
    failed.enqueue("another", include=["f-*"])
    failed.worker()
    failed.ended("another")
    assert refusal(failed, "retry", "another") == (
        "run another is done: no file has failed, and none is left"
    )


def test_a_failed_run_that_is_retried_and_cancelled_and_resumed_loses_no_file(
    failed: Workbench,
) -> None:
    told(failed, "retry", "run")
    told(failed, "cancel", "run")
    cancelled = failed.status()
    assert (cancelled.done, cancelled.failed, cancelled.left) == (0, 0, 3)
    assert failed.enqueue(buckets=2).how == "resumed"
    failed.worker()
    now = failed.ended()
    assert (now.failed, now.skipped) == (3, 7)
    failed.check_books()


# cancel, and going on


def test_a_cancelled_run_starts_no_more_files_and_goes_on_where_it_was(
    workbench: Workbench,
) -> None:
    workbench.files(200)
    workbench.settings["processor"] = "tests.processors:slow"
    enqueue(workbench, "--buckets", "3", "--files-per-job", "10")
    worker = workbench.worker()
    until(lambda: workbench.status().done, "the first file")
    assert told(workbench, "cancel", "run") == (
        "run run is cancelled: files in hand are finished, no other is started\n"
    )
    until(lambda: workbench.status().backlog.in_flight == 0, "the worker to let go")
    cancelled = workbench.check_books()
    assert cancelled.state == "cancelled"
    assert 0 < cancelled.done < 200
    assert cancelled.backlog.pending == 0
    told(workbench, "cancel", "run")  # once more does no harm
    assert workbench.status().ended == cancelled.ended

    text = enqueue(workbench, "--buckets", "3", "--files-per-job", "10")
    assert text.startswith("run run continues: ")
    now = workbench.ended()
    assert (now.state, now.left, now.skipped) == ("done", 0, cancelled.done)
    assert worker.stop() == 0
    workbench.check_books()


def test_an_ended_run_cannot_be_cancelled(failed: Workbench) -> None:
    assert refusal(failed, "cancel", "run") == "run run is failed: there is nothing to cancel"


def test_cancel_takes_only_the_jobs_of_its_run_out_of_the_queue(workbench: Workbench) -> None:
    workbench.files(5)
    for run_id in ("one", "two", "three"):
        workbench.enqueue_apart(run_id)
    before = workbench.redis.lrange("rq:queue:imece", 0, -1)
    assert told_json(workbench, "cancel", "two") == {"run": "two", "state": "cancelled"}
    after = workbench.redis.lrange("rq:queue:imece", 0, -1)
    assert after == [job for job in before if not str(job).startswith("b'two-")]
    assert len(after) == 10


# delete


def keys_of(workbench: Workbench, run_id: str) -> list[bytes]:
    """Every key that has to do with a run, and its place in the list of runs."""
    patterns = (f"imece:imece:run:{run_id}", f"imece:imece:run:{run_id}:*")
    keys = [key for pattern in patterns for key in workbench.redis.scan_iter(pattern)]
    listed = workbench.redis.zscore("imece:imece:runs", run_id) is not None
    return sorted([*keys, *([b"imece:imece:runs"] if listed else [])])


def test_delete_leaves_no_key_of_the_run_and_every_output(failed: Workbench) -> None:
    outputs = failed.outputs()
    assert keys_of(failed, "run")
    assert told(failed, "delete", "run") == "run run is deleted; its outputs are where they were\n"
    assert keys_of(failed, "run") == []
    assert failed.outputs() == outputs
    assert failed.immortal_keys() == []
    assert refusal(failed, "status", "run") == (
        "there is no run run: `imece runs` lists those there are"
    )


def test_delete_of_a_cancelled_run_leaves_no_job(workbench: Workbench) -> None:
    workbench.files(5)
    workbench.enqueue()
    told(workbench, "cancel", "run")
    told(workbench, "delete", "run")
    assert keys_of(workbench, "run") == []
    assert workbench.immortal_keys() == []


def test_delete_does_not_touch_runs_with_longer_names(workbench: Workbench) -> None:
    workbench.files(5)
    workbench.enqueue("run")
    workbench.enqueue_apart("run-2")
    told(workbench, "cancel", "run")
    before = keys_of(workbench, "run-2")
    told(workbench, "delete", "run")
    assert keys_of(workbench, "run-2") == before


def test_a_run_that_has_not_ended_is_not_deleted(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue()
    assert refusal(workbench, "delete", "run") == "run run is queued: `imece cancel run` first"
    assert workbench.status().left == 1


# Trouble


def test_a_run_that_is_not_there_is_named(workbench: Workbench) -> None:
    commands = ("status", "wait", "failures", "retry", "cancel", "delete")
    for line in all_refusals(workbench, [[command, "nothing"] for command in commands], 2):
        assert line == "there is no run nothing: `imece runs` lists those there are"


def test_status_without_any_run_says_how_to_make_one(workbench: Workbench) -> None:
    assert refusal(workbench, "status") == (
        "there are no runs yet: `imece enqueue IN OUT` makes one"
    )


def test_exit_code_3_when_redis_is_away(workbench: Workbench) -> None:
    calls = [
        *(["status"], ["status", "run", "--watch"], ["runs"], ["wait", "run"]),
        *(["failures", "run"], ["retry", "run"], ["cancel", "run"], ["delete", "run"]),
        ["enqueue", "imece", "/tmp/imece-out"],
    ]
    for line in all_refusals(workbench, calls, 3, redis_url="unix:///nowhere/redis.sock"):
        assert line.startswith("Redis at unix:///nowhere/redis.sock is out of reach (")
        assert "correct IMECE_REDIS_URL" in line


def test_a_setting_that_is_wrong_is_named(workbench: Workbench) -> None:
    assert refusal(workbench, "runs", retries="many").startswith("IMECE_RETRIES: ")


def test_a_run_whose_keys_hold_something_else_is_no_traceback(workbench: Workbench) -> None:
    workbench.redis.set("imece:imece:run:text", "not a hash")
    workbench.redis.hset("imece:imece:run:hash", mapping={"state": "done", "parameters": "[1]"})
    for run_id in ("text", "hash"):
        for command in ("status", "wait", "cancel", "retry"):
            answer = workbench.imece(command, run_id)
            assert answer.returncode in (2, 3), (command, run_id)
            assert answer.stderr.startswith("imece: "), answer.stderr
            assert "Traceback" not in answer.stderr


def test_a_run_that_cannot_be_read_does_not_hide_the_others(workbench: Workbench) -> None:
    """One that another version of imece has made, say."""
    workbench.files(1)
    workbench.enqueue("strange")
    workbench.enqueue_apart("fine")
    workbench.redis.hset("imece:imece:run:strange", "parameters", '{"a": 1}')
    answer = workbench.imece("runs", "--json")
    assert answer.returncode == 0
    assert [run["run"] for run in json.loads(answer.stdout)] == ["fine"]
    assert answer.stderr.startswith(
        "imece: run strange cannot be used: it was not made by this version of imece"
    )


def test_a_wrong_call_is_exit_code_2_with_a_way_to_help(workbench: Workbench) -> None:
    for arguments in (
        ["nonsense"],
        ["enqueue", "only-one"],
        ["enqueue", "a", "b", "--buckets", "0"],
    ):
        answer = workbench.imece(*arguments)
        assert answer.returncode == 2
        assert "Traceback" not in answer.stderr
        assert "--help" in answer.stderr


def test_no_terminal_and_no_name_is_too_poor_for_a_path_or_a_name(workbench: Workbench) -> None:
    """Directories and files that are not UTF-8, on an output that takes ASCII alone."""
    workbench.settings["processor"] = "tests.processors:by_content"
    root = os.fsencode(workbench.folder) + b"/\xff\xc3\xb6"
    source = Path(os.fsdecode(root))
    source.mkdir()
    (source / os.fsdecode(b"bad-\xff\n.txt")).write_text("raise Grüße")
    call = [sys.executable, "-m", "imece_producer"]
    environment = {**os.environ, **workbench.environment(), "PYTHONIOENCODING": "ascii"}

    def call_imece(*arguments: str | bytes) -> str:
        answer = forks.run([*call, *arguments], env=environment, cwd=ROOT, encoding="ascii")
        assert "Traceback" not in answer.stderr, answer.stderr
        assert answer.returncode in (0, 1), answer.stderr
        return answer.stdout

    call_imece("enqueue", root, str(workbench.target), "--run-id", "run")
    workbench.worker()
    workbench.ended()
    assert "\\udcff" in call_imece("status", "run")
    assert call_imece("failures", "run").startswith("bad-\\xff\\n.txt (2 tries): ValueError: Gr")
    assert json.loads(call_imece("failures", "run", "--json"))["file"] == "bad-\udcff\n.txt"
    call_imece("runs")
    call_imece("wait", "run")
    call_imece("failures", "run", "--full")


def test_a_reader_that_goes_away_is_no_traceback(failed: Workbench) -> None:
    call = [sys.executable, "-m", "imece_producer", "failures", "run", "--full"]
    with forks.Popen[bytes](
        call,
        env={**os.environ, **failed.environment()},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    assert errors == ""


# Commands that are started, not forked (tests/forks.py)


@pytest.mark.slow
def test_each_command_works_as_a_process_of_its_own(workbench: Workbench) -> None:
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.file("good.txt")
    workbench.file("bad.txt", "raise it is bad")
    environment = {**os.environ, **workbench.environment()}
    tried = set()

    def call(*words: str) -> int:
        tried.add(words[0])
        command = [sys.executable, "-m", "imece_producer", *words]
        ended = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, timeout=60, check=False
        )
        assert b"Traceback" not in ended.stderr, ended.stderr.decode()
        return ended.returncode

    folders = (str(workbench.source), str(workbench.target))
    assert call("enqueue", *folders, "--run-id", "run", "--retries", "0") == 0
    workbench.worker(fresh=True)
    assert call("wait", "run") == 1
    for words in (("status",), ("runs",), ("failures", "run"), ("retry", "run")):
        assert call(*words) == 0, words
    workbench.ended()
    apart = ("--output", str(workbench.folder / "apart"))
    assert call("reproduce", "run", "good.txt", *apart) == 0
    assert call("export", "run") == call("verify", "run") == 0
    assert call("redo", "run", "--glob", "no such file") == 0
    assert call("delete", "run") == 0
    assert call("cancel", "run") == 2
    assert call("local", *folders, "--overwrite", "--retries", "0") == 1
    assert call("doctor") == 0
    for words in (("scale", "3"), ("pause",), ("resume",)):
        assert call(*words) == 2, words  # there is no cluster
    assert call("new", "pipeline", "imece", "--image", "a:1", "--processor", "a:b") == 2
    assert tried == set(commands())


# Help


def commands() -> dict[str, click.Command]:
    group: Any = typer.main.get_command(app)
    found: dict[str, click.Command] = group.commands
    return found


def test_every_command_and_every_option_has_a_help_text() -> None:
    assert set(commands()) == {
        *(
            "enqueue",
            "status",
            "runs",
            "wait",
            "failures",
            "reproduce",
            "retry",
            "cancel",
            "delete",
        ),
        *("export", "verify", "redo"),
        *("scale", "pause", "resume", "doctor", "local", "new"),
    }
    group: Any = commands()["new"]
    for name, command in (commands() | group.commands).items():
        assert command.help, name
        for parameter in command.params:
            text = getattr(parameter, "help", None)
            assert text, f"{name} {parameter.name}"


def test_help_comes_with_examples_that_can_be_copied(workbench: Workbench) -> None:
    for name in ("enqueue", "status", "failures", "scale", "doctor", "local"):
        lines = told(workbench, name, "--help").splitlines()
        assert max(map(len, lines)) <= 80, name
        examples = lines[lines.index("  Examples:") + 2 :]
        assert all(line.startswith("  ") for line in examples)
        calls = (commands()[name].epilog or "").split("\n")[3:]
        assert [line.strip() for line in examples] == calls
        assert any(f"imece {name}" in call for call in calls)


def test_the_list_of_commands_has_whole_sentences(workbench: Workbench) -> None:
    text = told(workbench, "--help")
    assert "..." not in text.partition("Commands:")[2]
    assert max(map(len, text.splitlines())) <= 80


def test_the_version_is_shown(workbench: Workbench) -> None:
    assert told(workbench, "--version") == f"imece {version('imece')}\n"
    worker = [sys.executable, "-m", "imece_worker", "--version"]
    assert subprocess.check_output(worker, text=True, cwd=ROOT) == f"imece {version('imece')}\n"


def test_a_variable_that_is_no_setting_is_named(workbench: Workbench) -> None:
    answer = workbench.imece("runs", redis_ulr="redis://elsewhere")
    assert answer.returncode == 0
    assert answer.stderr == (
        "(warning: IMECE_REDIS_ULR is not a setting of imece: do you mean IMECE_REDIS_URL?)\n"
    )
    worker = workbench.worker(redis_ulr="redis://elsewhere")
    worker.started()
    assert "do you mean IMECE_REDIS_URL?" in worker.log()


def test_help_names_every_command_and_the_exit_codes(workbench: Workbench) -> None:
    text = told(workbench, "--help")
    for name in commands():
        assert f"\n  {name} " in text
    assert "Exit codes: 0 done, 1 some files failed, 2 wrong usage" in " ".join(text.split())


def test_imece_is_installed_under_its_name(workbench: Workbench) -> None:
    program = Path(sys.executable).with_name("imece")
    text = subprocess.check_output([program, "runs", "--help"], text=True)
    assert text.startswith("Usage: imece runs")


@pytest.mark.parametrize(
    "call",
    [
        "enqueue IN OUT --run-id ''",
        "enqueue '' OUT",
        "enqueue IN ''",
        "enqueue IN OUT --include ''",
        "enqueue IN OUT --exclude ''",
        "enqueue IN OUT --from-file ''",
        "enqueue IN OUT --suffix ''",
        "local IN OUT --command 'cp {input} {output}' --run-id ''",
        "local IN OUT --command ''",
        "local IN OUT --processor ''",
        "status ''",
        "cancel ''",
        "delete ''",
        "resume ''",
        "scale 3 --run ''",
    ],
)
def test_what_is_empty_is_refused(workbench: Workbench, call: str) -> None:
    """An unset variable of a shell does not mean this directory, or all files."""
    workbench.files(1)
    places = {"IN": str(workbench.source), "OUT": str(workbench.target)}
    words = [places.get(word, word) for word in shlex.split(call)]
    answer = workbench.imece(*words, processor="")
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    assert workbench.redis.keys("imece:*") == []
