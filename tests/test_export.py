"""What the ledger says of runs, and of their outputs: `imece export`, `imece verify`."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from imece.files.rows import MAGIC
from tests.conftest import Workbench, until


def exported(workbench: Workbench, where: str | None = None) -> dict[str, dict[str, Any]]:
    done = workbench.imece("export", where or str(workbench.target), "--format", "jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["file"]: row for row in rows}


def processed(workbench: Workbench, **options: Any) -> None:
    """One round, to its end, by one worker."""
    workbench.enqueue(**options)
    worker = workbench.worker()
    workbench.ended()
    assert worker.stop() == 0


def test_each_file_has_a_row_with_what_it_was_made_of_and_at_what_cost(
    workbench: Workbench,
) -> None:
    workbench.file("sub/ä.txt", "copied")
    workbench.file("busy.txt", "sleep 0.2")
    workbench.file("bad.txt", "no-output")
    os.utime(workbench.source / "busy.txt", ns=(1, 1_600_000_000_123_456_789))
    workbench.settings["processor"] = "tests.processors:by_content"
    processed(workbench, suffix=".out")
    rows = exported(workbench)
    assert rows.keys() == {"sub/ä.txt", "busy.txt", "bad.txt"}
    row = rows["busy.txt"]
    assert (row["outcome"], row["output"], row["tries"]) == ("done", "busy.out", 1)
    assert (row["size"], row["output_size"]) == (9, 9)
    assert row["modified"] == "2020-09-13T12:26:40.123+00:00"
    assert row["seconds"] >= 0.2 > row["cpu_seconds"]
    assert row["peak_memory"] > 2**20
    assert (row["run"], row["processor"]) == ("run", "tests.processors:by_content")
    assert row["worker"].startswith("imece.")
    failed = rows["bad.txt"]
    assert (failed["outcome"], failed["tries"], failed["output"]) == ("failed", 2, None)


def test_a_table_opens_in_other_programs(workbench: Workbench) -> None:
    workbench.file('a "quoted", name.txt')
    processed(workbench)
    done = workbench.imece("export", "run", "--format", "csv")
    assert [row["file"] for row in csv.DictReader(io.StringIO(done.stdout))] == [
        'a "quoted", name.txt'
    ]
    refused = workbench.imece("export", "run", "--format", "parquet")
    assert refused.returncode == 2
    assert "--to" in refused.stderr


def test_the_last_try_counts_and_a_run_is_asked_for_its_own(workbench: Workbench) -> None:
    workbench.files(3)
    processed(workbench)
    workbench.enqueue("again", overwrite=True, include=["f-0001.txt"])
    worker = workbench.worker()
    workbench.ended("again")
    assert worker.stop() == 0
    assert {name: row["run"] for name, row in exported(workbench).items()} == {
        "f-0000.txt": "run",
        "f-0001.txt": "again",
        "f-0002.txt": "run",
    }
    assert exported(workbench, "again").keys() == {"f-0001.txt"}


@pytest.mark.slow
def test_the_ledger_outlives_redis_and_its_files_are_put_together(workbench: Workbench) -> None:
    names = workbench.files(200)
    processed(workbench, buckets=50)
    workbench.redis.flushall()
    assert exported(workbench).keys() == set(names)
    assert len(list((workbench.target / ".imece" / "ledger").glob("*.rows"))) < 50


def test_a_file_that_is_current_keeps_the_row_of_its_making(workbench: Workbench) -> None:
    workbench.files(3)
    processed(workbench)
    before = exported(workbench)
    workbench.enqueue()
    workbench.worker()
    assert workbench.ended().skipped == 3
    assert exported(workbench) == before


def test_a_killed_worker_leaves_its_rows_to_the_next(workbench: Workbench) -> None:
    names = workbench.files(60)
    workbench.settings |= {"processor": "tests.processors:slow", "checkpoint": "30", "lease": "3"}
    workbench.enqueue(buckets=1)
    victim = workbench.worker()
    until(lambda: len(workbench.outputs()) > 10, "some outputs")
    victim.kill()
    workbench.worker()
    assert workbench.ended().state == "done"
    assert workbench.check_books().done == 60
    rows = exported(workbench)
    assert {name: row["outcome"] for name, row in rows.items()} == dict.fromkeys(names, "done")
    verdict = workbench.imece("verify", "run", "--json")
    assert json.loads(verdict.stdout)["sound"] == 60


def test_a_run_goes_on_where_no_ledger_can_be_written_and_says_so(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.target.mkdir()
    (workbench.target / ".imece").write_text("in the way")
    workbench.enqueue()
    worker = workbench.worker()
    assert workbench.ended().state == "done"
    assert len([path for path in workbench.target.iterdir() if path.suffix == ".txt"]) == 3
    assert "ledger cannot be written" in worker.log()
    assert workbench.temporaries() == []
    answer = workbench.imece("export", "run")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "has no ledger" in answer.stderr


def test_a_ledger_is_no_input_of_the_next_run(workbench: Workbench) -> None:
    names = workbench.files(3)
    processed(workbench)
    second = workbench.folder / "second"
    done = workbench.imece(
        *("local", str(workbench.target), str(second), "--hidden"),
        *("--processor", "tests.processors:copy"),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in second.iterdir()) == [".imece", *names]


# Verify


@pytest.fixture
def made(workbench: Workbench) -> Workbench:
    workbench.files(4)
    processed(workbench, suffix=".out")
    return workbench


def test_outputs_that_are_as_they_were_made(made: Workbench) -> None:
    done = made.imece("verify", "run")
    assert (done.returncode, done.stdout) == (0, "4 outputs as made\n")


def test_what_is_missing_or_was_changed_is_named(made: Workbench) -> None:
    (made.target / "f-0000.out").unlink()
    (made.target / "f-0001.out").write_text("somebody's own")
    done = made.imece("verify", str(made.target))
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "2 outputs as made",
        "1 missing",
        "    f-0000.out",
        "1 changed since they were made",
        "    f-0001.out",
    ]
    told = json.loads(made.imece("verify", "run", "--json").stdout)
    assert [version["outputs"] for version in told.pop("versions")] == [4]
    assert told.pop("hashed") == 0
    assert told == {
        "sound": 2,
        "missing": ["f-0000.out"],
        "changed": ["f-0001.out"],
        "orphaned": [],
    }


def test_outputs_without_an_input_are_removed_if_asked(made: Workbench) -> None:
    (made.source / "f-0002.txt").unlink()
    said = made.imece("verify", "run")
    assert said.returncode == 0
    assert said.stdout.splitlines()[1:] == ["1 orphaned: their inputs are gone", "    f-0002.out"]
    done = made.imece("verify", "run", "--delete-orphans", "--yes")
    assert done.returncode == 0
    assert made.outputs() == ["f-0000.out", "f-0001.out", "f-0003.out"]


def test_inputs_that_are_not_seen_from_here_are_not_called_gone(made: Workbench) -> None:
    made.source.rename(made.folder / "elsewhere")
    done = made.imece("verify", str(made.target), "--delete-orphans", "--yes")
    assert done.returncode == 0
    assert done.stdout == "4 outputs as made\n"
    assert "not seen from here" in done.stderr
    assert len(made.outputs()) == 4


def test_a_part_that_cannot_be_read_is_named(made: Workbench) -> None:
    (made.target / ".imece" / "ledger" / "x.rows").write_bytes(MAGIC)
    done = made.imece("verify", "run")
    assert done.returncode == 1
    assert ".imece/ledger/x.rows" in done.stderr


def test_a_directory_without_a_ledger_gets_a_sentence(workbench: Workbench, tmp_path: Path) -> None:
    done = workbench.imece("verify", str(tmp_path))
    assert done.returncode == 2
    assert "has no ledger" in done.stderr
