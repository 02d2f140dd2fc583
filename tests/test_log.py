"""The promise: a worker logs one line an event, for people or as JSON, and its heartbeat file tells
whether it lives."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import Workbench, until

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 (DEBUG|INFO|WARNING|ERROR) +[a-z].*"
)


def a_run_with_every_kind_of_file(workbench: Workbench) -> None:
    workbench.files(10)
    workbench.file("f-0003.txt", "raise on purpose")
    workbench.file("f-0005.txt", "exit 3")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, retries=0)


def test_as_json_every_line_is_an_object_with_time_level_event_and_details(
    workbench: Workbench,
) -> None:
    a_run_with_every_kind_of_file(workbench)
    worker = workbench.worker(log_format="json")
    workbench.ended()
    assert worker.stop() == 0
    entries = worker.events()
    assert [entry["event"] for entry in entries] == [
        "worker started",
        "job taken",
        "file killed its process",
        "job finished",
        "worker stopped",
    ]
    for entry in entries:
        age = datetime.now(UTC) - datetime.fromisoformat(entry["time"])
        assert 0 <= age.total_seconds() < 60
        assert entry["level"] in ("info", "warning")
    _, taken, killed, finished, _ = entries
    assert (taken["run"], taken["files"], taken["retries"]) == ("run", 10, 0)
    assert (killed["run"], killed["file"], killed["tries"]) == ("run", "f-0005.txt", 1)
    assert killed["reason"] == "its process ended itself with exit code 3"
    assert finished["job"] == taken["job"]
    assert finished["seconds"] >= 0
    workbench.check_books()


def test_for_people_every_line_has_time_level_event_and_details(workbench: Workbench) -> None:
    a_run_with_every_kind_of_file(workbench)
    worker = workbench.worker()
    workbench.ended()
    assert worker.stop() == 0
    lines = worker.log().splitlines()
    assert len(lines) == 5
    for line in lines:
        assert LINE.fullmatch(line), line
    assert "job taken run=run job=" in lines[1]
    assert 'reason="its process ended itself with exit code 3"' in lines[2]
    workbench.check_books()


@pytest.mark.parametrize(("level", "events"), [("warning", 1), ("error", 0)])
def test_the_level_leaves_out_what_is_below_it(
    workbench: Workbench, level: str, events: int
) -> None:
    a_run_with_every_kind_of_file(workbench)
    worker = workbench.worker(log_format="json", log_level=level)
    workbench.ended()
    assert worker.stop() == 0
    assert len(worker.events()) == events


def test_a_password_in_the_redis_url_is_never_logged(workbench: Workbench) -> None:
    worker = workbench.worker(redis_url="redis://user:hush-hush@localhost:1/0", log_format="json")
    until(lambda: worker.events("redis out of reach"), "the worker to notice")
    assert worker.stop() == 0
    assert "hush-hush" not in worker.log()


def test_the_heartbeat_file_is_touched_while_idle_and_while_busy_with_one_long_file(
    workbench: Workbench,
) -> None:
    beat = workbench.folder / "beat"
    workbench.worker(heartbeat_file=str(beat), processor="tests.processors:by_content").started()
    assert is_touched_again(beat)
    assert is_touched_again(beat)
    workbench.file("long", "sleep 1000")
    workbench.enqueue()
    workbench.workers[0].took().runner()
    for _ in range(5):
        assert is_touched_again(beat)


def is_touched_again(path: Path) -> bool:
    until(path.exists, "the first sign of life")
    os.utime(path, (0, 0))
    return bool(until(lambda: path.stat().st_mtime > 0, "a sign of life"))


def test_there_is_no_heartbeat_before_the_processor_is_imported(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = workbench.folder / "beat"
    beat.touch()  # from a container before this one, in the same pod
    (workbench.folder / "slow_import.py").write_text(
        "import pathlib, shutil, time\n"
        f"while not pathlib.Path({str(workbench.folder / 'go')!r}).exists():\n"
        f"    pathlib.Path({str(workbench.folder / 'begun')!r}).touch()\n"
        "    time.sleep(0.02)\n"
        "copy = shutil.copyfile\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(workbench.folder))
    workbench.worker(heartbeat_file=str(beat), processor="slow_import:copy")
    until((workbench.folder / "begun").exists, "the import to begin")
    assert not beat.exists()
    (workbench.folder / "go").touch()
    until(beat.exists, "the first sign of life")


def test_a_heartbeat_file_that_cannot_be_touched_is_told_at_the_start(
    workbench: Workbench,
) -> None:
    beat = workbench.folder / "nowhere" / "beat"
    worker = workbench.worker(fresh=True, heartbeat_file=str(beat))
    assert worker.wait() == 2
    assert "IMECE_HEARTBEAT_FILE" in worker.log()
    assert "No such file or directory" in worker.log()
