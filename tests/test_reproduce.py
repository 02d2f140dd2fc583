"""The promise: one failed file can be processed again under a person's eyes, and the run stays as
it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Workbench


@pytest.fixture
def failed(workbench: Workbench) -> Workbench:
    """A run of which two files have failed."""
    workbench.file("sub/bad.txt", "header of it")
    workbench.file("crash.txt", "crash")
    workbench.file("good.txt", "fine")
    workbench.settings["processor"] = "tests.processors_that_fail:by_word"
    workbench.enqueue(buckets=1, retries=0, suffix=".out", timeout=5.0)
    workbench.worker()
    workbench.ended()
    return workbench


def reproduce(
    workbench: Workbench, *words: str, typed: str = "", **settings: str
) -> "subprocess.CompletedProcess[str]":
    """As a person would, in a folder of its own."""
    folder = workbench.folder / "desk"
    folder.mkdir(exist_ok=True)
    named = {f"IMECE_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "imece_producer", "reproduce", *words],
        env={**os.environ, **workbench.environment(), "PYTHONPATH": str(ROOT), **named},
        cwd=folder,
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_failed_file_fails_again_with_its_traceback(failed: Workbench) -> None:
    before = {path: path.stat().st_mtime_ns for path in failed.target.rglob("*")}
    status = failed.status()
    answer = reproduce(failed, "run", "sub/bad.txt")
    assert answer.returncode == 1, answer
    path = failed.source / "sub" / "bad.txt"
    assert f"ValueError: header {path} has no header\n" in answer.stderr
    assert "in read_header\n" in answer.stderr
    assert "imece_worker" not in answer.stderr
    assert "failed: ValueError in processors_that_fail.py:" in answer.stderr
    assert answer.stdout == ""
    assert list((failed.folder / "desk" / "reproduce-run").iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in failed.target.rglob("*")} == before
    after = failed.status()
    assert (after.failed, after.round, after.causes) == (2, status.round, status.causes)


def test_a_fixed_file_is_done_and_its_output_is_in_a_place_of_its_own(failed: Workbench) -> None:
    (failed.source / "fixed-header").touch()  # beside the folder that the file is in
    for number in (1, 2):
        answer = reproduce(failed, "run", str(failed.source / "sub" / "bad.txt"))
        assert answer.returncode == 0, answer
        made = failed.folder / "desk" / "reproduce-run" / str(number) / "sub" / "bad.out"
        assert made.read_text() == "header of it"
        assert f"sub/bad.txt: what it has written is in reproduce-run/{number}" in answer.stdout
    answer = reproduce(failed, "run", "sub/bad.txt", "--output", "mine")
    assert (failed.folder / "desk" / "mine" / "sub" / "bad.out").read_text() == "header of it"
    answer = reproduce(failed, "run", "sub/bad.txt", "--output", "mine")
    assert answer.returncode == 2
    assert "--output mine: takes a new directory, or an empty one" in answer.stderr
    assert not (failed.target / "sub" / "bad.out").exists()


@pytest.mark.slow
def test_what_the_processor_prints_is_shown_and_it_sees_no_secret(failed: Workbench) -> None:
    function = "tests.processors_that_fail:say_and_copy"
    answer = reproduce(failed, "run", "good.txt", "--processor", function)
    assert answer.returncode == 0, answer
    assert answer.stdout.startswith("at good.txt\n")


@pytest.mark.slow
def test_the_debugger_stands_where_the_error_was_raised(failed: Workbench) -> None:
    answer = reproduce(failed, "run", "sub/bad.txt", "--pdb", typed="p text\nup\np word\nq\n")
    assert answer.returncode == 1, answer
    assert f"'header {failed.source / 'sub' / 'bad.txt'}'" in answer.stdout
    assert "'header'" in answer.stdout.splitlines()[-2] + answer.stdout.splitlines()[-3]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("hang_in_c", "failed: took longer than 5 s"),
        ("hoard", "failed: more than its memory limit of 2048 MiB"),
        ("nothing_like_it", "has no attribute 'nothing_like_it'"),
    ],
)
def test_the_limits_are_those_of_the_run(failed: Workbench, function: str, says: str) -> None:
    failed.settings["memory_limit"] = "2048"
    answer = reproduce(
        failed, "run", "good.txt", "--processor", f"tests.processors_that_fail:{function}"
    )
    assert says in answer.stderr
    assert answer.returncode == (2 if function == "nothing_like_it" else 1)
    if function == "hang_in_c":
        assert "in hang_in_c" in answer.stderr


@pytest.mark.slow
def test_a_file_that_kills_its_process_is_told_so(failed: Workbench) -> None:
    answer = reproduce(failed, "run", "crash.txt")
    assert answer.returncode == 1
    assert "failed: killed by SIGSEGV" in answer.stderr
    for word, code in {"exit": "3"}.items():
        failed.file("ends.txt", word)
        answer = reproduce(failed, "run", "ends.txt")
        assert answer.returncode == 1
        assert f"failed: the processor ended its process with exit code {code}" in answer.stderr


@pytest.mark.slow
def test_a_program_has_the_terminal_too(failed: Workbench) -> None:
    del failed.settings["processor"]
    words = ["--command", "sh -c 'echo to the terminal; cat $0 >&2; exit 4' {input} {output}"]
    answer = reproduce(failed, "run", "good.txt", *words)
    assert answer.returncode == 1
    assert answer.stdout.startswith("to the terminal\n")
    assert answer.stderr.startswith("fine")
    assert "failed: exit code 4" in answer.stderr
    answer = reproduce(failed, "run", "good.txt", "--command", "cp {input} {output}")
    assert answer.returncode == 0, answer
    answer = reproduce(failed, "run", "good.txt", "--shell", 'tr a-z A-Z < "$1"', "--stdout")
    assert answer.returncode == 0, answer
    made = failed.folder / "desk" / "reproduce-run" / "2" / "good.out"
    assert made.read_text() == "FINE"
    answer = reproduce(failed, "run", "good.txt", "--command", "true {input}")
    assert "failed: the processor returned without writing its output" in answer.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "no-such.txt"], "there is no file"),
        (["run", "../other"], "has an empty, '.' or '..' part"),
        (["run", "/etc/passwd"], "it is no file of the run's input directory"),
        (["run", "good.txt", "--output", "{OUT}"], "a directory of the run: take --output DIR"),
        (["run", "good.txt", "--output", "{OUT}/sub"], "a directory of the run: take --output DIR"),
        (["run", "good.txt", "--output", "{IN}/new"], "a directory of the run: take --output DIR"),
        (["other", "good.txt"], "there is no run other"),
    ],
)
def test_what_cannot_be_reproduced_is_said(failed: Workbench, words: list[str], says: str) -> None:
    given = [word.format(OUT=failed.target, IN=failed.source) for word in words]
    answer = reproduce(failed, *given)
    assert answer.returncode == 2, answer
    assert says in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_without_a_processor_nothing_is_done(failed: Workbench) -> None:
    del failed.settings["processor"]
    answer = reproduce(failed, "run", "good.txt")
    assert answer.returncode == 2
    assert "name what processes a file: --processor module:function" in answer.stderr
    answer = reproduce(failed, "run", "good.txt", "--command", "cp {input} {output}", "--pdb")
    assert answer.returncode == 2
    assert "--pdb: takes a processor in Python, and no program" in answer.stderr


@pytest.mark.slow
def test_a_local_run_that_has_ended_is_reproduced_from_what_it_has_left(
    failed: Workbench,
) -> None:
    del failed.settings["redis_url"]
    paths = (str(failed.source), str(failed.target), "--suffix", ".json")
    assert failed.imece("local", *paths, "--run-id", "here", "--retries", "0").returncode == 1
    (failed.source / "fixed-header").touch()
    answer = reproduce(failed, "here", "sub/bad.txt")
    assert answer.returncode == 0, answer
    assert (failed.folder / "desk" / "reproduce-here" / "1" / "sub" / "bad.json").exists()


@pytest.mark.slow
def test_a_run_without_outputs_has_none_here(workbench: Workbench) -> None:
    workbench.file("f")
    workbench.settings["processor"] = "tests.processors_that_fail:say_and_copy"
    workbench.enqueue(target="-")
    answer = reproduce(workbench, "run", "f")
    assert (answer.returncode, answer.stdout) == (0, "at f\n")
    assert list(Path(workbench.folder / "desk").iterdir()) == []
