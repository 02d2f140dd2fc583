"""Static buckets: the way it was, without Redis."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imece.run.parameters import SEED
from imece_producer.grouping import group
from imece_worker.stops import STOP_SIGNALS
from tests import forks, obstacles
from tests.conftest import ROOT, catches, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `in` of 40 files."""
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    for number in range(40):
        (source / "deep" / f"f-{number:02d}.txt").write_text(f"file {number}")
    return tmp_path


WHOLE = ("--bucket-id", "0", "--bucket-count", "1")
"""The one bucket there is."""


def start(
    folder: Path,
    *arguments: str,
    cwd: Path = ROOT,
    popen: type["subprocess.Popen[Any]"] = forks.Popen,
    **settings: str | None,
) -> "subprocess.Popen[str]":
    """A worker with no Redis to speak to."""
    given = {
        "redis_url": "unix:///nowhere",
        "input": str(folder / "in"),
        "output": str(folder / "out"),
        "processor": "tests.processors:by_content",
        "retries": "0",
        **settings,
    }
    environment = {f"IMECE_{name.upper()}": value for name, value in given.items() if value}
    return popen(
        [sys.executable, "-m", "imece_worker", *arguments],
        env={**os.environ, **environment},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, bucket: int, count: int, *options: str, **settings: Any) -> tuple[int, str]:
    """A worker for one bucket, to its end: exit code and log."""
    numbers = ("--bucket-id", str(bucket), "--bucket-count", str(count))
    worker = start(folder, *numbers, *options, **settings)
    _, log = worker.communicate(timeout=30)
    return worker.returncode, log


def outputs(folder: Path) -> set[bytes]:
    """Without the ledger."""
    out = folder / "out"
    found = [path for path in out.rglob("*") if out / ".imece" not in path.parents]
    return {os.fsencode(path.relative_to(out)) for path in found if path.is_file()}


def test_each_worker_does_its_bucket_the_one_the_producer_would_make(folder: Path) -> None:
    names = [f"deep/f-{number:02d}.txt".encode() for number in range(40)]
    sizes = {bucket.number: bucket.files for bucket in group(names, 3, SEED)}
    made: set[bytes] = set()
    for number in range(3):
        code, log = run(folder, number, 3)
        assert (code, outputs(folder) & made) == (0, made)
        assert len(outputs(folder) - made) == sizes[number]
        assert f"bucket done bucket={number} done={sizes[number]} failed=0" in log
        made = outputs(folder)
    assert made == set(names)


def test_what_is_there_is_skipped(folder: Path) -> None:
    run(folder, 0, 1)
    code, log = run(folder, 0, 1)
    assert code == 0
    assert "done=0 failed=0 skipped=40 left=0" in log


def test_what_imece_has_not_made_is_no_output(folder: Path) -> None:
    before = obstacles.put(folder / "out")
    for name in before:
        (folder / "in" / name).write_text("content")
    code, log = run(folder, 0, 1)
    assert code == 1
    assert f"done=40 failed={len(before)} skipped=0 left=0" in log
    assert log.count("is in the way: ") == len(before)
    assert obstacles.are_untouched(folder / "out", before)


def test_globs_and_suffix_are_as_in_a_run(folder: Path) -> None:
    code, _ = run(folder, 0, 1, "--include", "f-0*", "--include", "f-10.txt", "--suffix", ".json")
    assert code == 0
    expected = [f"deep/f-{number:02d}.json".encode() for number in range(11)]
    assert outputs(folder) == set(expected)


def test_a_file_that_fails_or_kills_its_process_is_told_and_the_rest_is_done(folder: Path) -> None:
    (folder / "in" / "bad").write_text("raise no good")
    (folder / "in" / "worse").write_text("segfault")
    code, log = run(folder, 0, 1, retries="1", retry_pause="0.01")
    assert code == 1
    assert 'file failed file=bad tries=2 reason="ValueError: no good"' in log
    assert "file failed file=worse tries=2" in log
    assert "done=40 failed=2 skipped=0 left=0" in log


def made(folder: Path) -> set[bytes]:
    """The outputs that are in their places."""
    return {name for name in outputs(folder) if not name.startswith(b".imece-")}


def test_two_workers_of_one_bucket_do_not_get_into_each_others_way(folder: Path) -> None:
    """As when a pod that was given up as lost lives on beside the one that is to do its work."""
    first = start(folder, *WHOLE, processor="tests.processors:slow")
    until(lambda: made(folder), "the first output")
    second = start(folder, *WHOLE, processor="tests.processors:slow")
    for worker in (first, second):
        _, log = worker.communicate(timeout=30)
        assert worker.returncode == 0, log
    assert len(outputs(folder)) == 40
    for path in (folder / "in" / "deep").iterdir():
        assert (folder / "out" / "deep" / path.name).read_bytes() == path.read_bytes()
    assert list((folder / "out").glob(".imece-*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_worker_finishes_its_file_and_does_not_look_done(
    folder: Path, number: signal.Signals
) -> None:
    worker = start(folder, *WHOLE, processor="tests.processors:slow")
    until(lambda: made(folder), "the first output")
    worker.send_signal(number)
    _, log = worker.communicate(timeout=30)
    assert worker.returncode == 128 + number
    assert "bucket stopped" in log
    left = outputs(folder)
    assert 0 < len(left) < 40
    assert not any(b".imece-" in name for name in left)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_worker_stopped_while_it_imports_the_processor_does_not_look_done(
    folder: Path, number: signal.Signals
) -> None:
    # Not one long sleep: Python cannot see a signal that comes right before a blocking call.
    (folder / "heavy.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\n"
        "for _ in range(600): time.sleep(0.05)\n"
    )
    worker = start(folder, *WHOLE, processor="heavy:work", cwd=folder)
    until((folder / "importing").exists, "the import to begin")
    worker.send_signal(number)
    worker.communicate(timeout=30)
    assert worker.returncode == 128 + number


def test_a_worker_stopped_in_its_first_moments_does_not_look_done(folder: Path) -> None:
    worker = start(folder, *WHOLE, popen=subprocess.Popen)
    until(lambda: catches(worker.pid, signal.SIGTERM), "it to listen at all")
    worker.terminate()
    worker.communicate(timeout=30)
    assert worker.returncode == 128 + signal.SIGTERM


def test_neither_redis_nor_rq_is_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    worker = start(folder, *WHOLE, processor="tests.processors:copy", popen=subprocess.Popen)
    _, log = worker.communicate(timeout=30)
    assert worker.returncode == 0, log
    imported = {line.rpartition("|")[2].strip() for line in log.splitlines() if "|" in line}
    assert "imece_worker.execution" in imported
    assert imported & {"redis", "rq", "rich"} == set()


def test_what_a_killed_worker_has_left_is_removed_by_the_next_one_of_its_bucket(
    folder: Path,
) -> None:
    worker = start(folder, *WHOLE, processor="tests.processors:slow")
    until(lambda: made(folder), "the first output")
    worker.kill()
    worker.communicate(timeout=30)
    assert len(list((folder / "out").glob(".imece-*"))) == 1
    code, _ = run(folder, 0, 1)
    assert code == 0
    assert len(outputs(folder)) == 40
    assert list((folder / "out").glob(".imece-*")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bucket-id", "3", "--bucket-count", "3"), "--bucket-id 3: takes 0 to 2"),
        (("--bucket-id", "0"), "--bucket-id and --bucket-count go together"),
        (("--suffix", ".json"), "--include and --suffix need --bucket-id"),
    ],
)
def test_wrong_usage_is_said(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    worker = start(folder, *arguments)
    _, log = worker.communicate(timeout=30)
    assert worker.returncode == 2
    assert said in log


def test_input_and_output_must_be_set(folder: Path) -> None:
    code, log = run(folder, 0, 1, output=None)
    assert code == 2
    assert "IMECE_INPUT and IMECE_OUTPUT: a static bucket needs both" in log
