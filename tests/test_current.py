"""What is current: what people change between two calls, and what is done then."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imece.connection import raw
from imece.files import staging
from imece.files.current import Comparer, Reason
from imece.run.store import Run
from tests import forks
from tests.conftest import Workbench, until

PROCESSOR = """
import library

def convert(source, target):
    with open(source) as stream, open(target, "w") as made:
        made.write("{mark}" + library.MARK + stream.read())

other = convert
"""
DAY = 86400 * 10**9


class Folder:
    """A user's directory: inputs, the processor with a module that it imports, and calls of
    `imece local` there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source, self.target = path / "in", path / "out"
        self.source.mkdir()
        for name in ("a.txt", "b.txt", "c.txt"):
            (self.source / name).write_text(name)
        self.code()

    def code(self, mark: str = "", library: str = "") -> None:
        """Writes the processor anew."""
        (self.path / "mine.py").write_text(PROCESSOR.replace("{mark}", mark))
        (self.path / "library.py").write_text(f"MARK = {library!r}\n")

    def call(self, *options: str, code: int = 0, processor: str = "mine:convert") -> str:
        words = ["local", "in", "out", "--processor", processor, *options]
        environment = {**os.environ, "IMECE_STATE_DIR": str(self.path / "state")}
        done = forks.run(
            [sys.executable, "-m", "imece_producer", *words], cwd=self.path, env=environment
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def plan(self, *options: str, **told: Any) -> dict[str, Any]:
        """What would be done."""
        return dict(json.loads(self.call("--dry-run", "--json", *options, **told)))

    def reasons(self, *options: str, **told: Any) -> dict[str, int]:
        return dict(self.plan(*options, **told)["reasons"])

    def verdict(self, *options: str) -> dict[str, Any]:
        words = [sys.executable, "-m", "imece_producer", "verify", "out", "--json", *options]
        return dict(json.loads(forks.run(words, cwd=self.path).stdout))

    def code_now(self) -> str:
        words = [sys.executable, "-m", "imece_producer", "export", "out", "--format", "jsonl"]
        rows = map(json.loads, forks.run(words, cwd=self.path).stdout.splitlines())
        return str({row["file"]: row["code"] for row in rows}["c.txt"])

    def contents(self) -> list[str]:
        return [path.read_text() for path in sorted(self.target.glob("*.txt"))]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def later(path: Path, nanoseconds: int = DAY) -> None:
    now = path.stat().st_mtime_ns
    os.utime(path, ns=(now, now + nanoseconds))


def rewrite(path: Path, text: str) -> None:
    """With the same time, as `cp -p` of an older copy may have it."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Folder], object], dict[str, int]]] = {
    "nothing": (lambda folder: None, {}),
    "a new input": (lambda folder: (folder.source / "d.txt").write_text("d"), {"new": 1}),
    "an input": (lambda folder: (folder.source / "a.txt").write_text("other"), {"changed": 1}),
    "an input's time": (lambda folder: later(folder.source / "a.txt"), {"changed": 1}),
    "an input, which is older now": (
        lambda folder: later(folder.source / "a.txt", -DAY),
        {"changed": 1},
    ),
    "an input's size alone": (
        lambda folder: rewrite(folder.source / "a.txt", "longer text"),
        {"changed": 1},
    ),
    "an output is gone": (lambda folder: (folder.target / "a.txt").unlink(), {"gone": 1}),
    "an output's time": (lambda folder: later(folder.target / "a.txt"), {"replaced": 1}),
    "an output is cut off": (
        lambda folder: rewrite(folder.target / "a.txt", ""),
        {"replaced": 1},
    ),
    "all outputs are gone": (lambda folder: shutil.rmtree(folder.target), {"new": 3}),
    "permissions": (lambda folder: (folder.source / "a.txt").chmod(0o600), {}),
    "an input is gone": (lambda folder: (folder.source / "a.txt").unlink(), {}),
}


def test_what_is_changed_between_two_calls_is_done_again_and_nothing_else(folder: Folder) -> None:
    folder.call()
    made = folder.path / "made"
    for path in (folder.source, folder.target):
        shutil.copytree(path, made / path.name)
    for what, (change, expected) in CHANGES.items():
        for path in (folder.source, folder.target):
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(made / path.name, path)
        change(folder)
        assert folder.reasons() == expected, what
    folder.call()
    assert folder.contents() == ["a.txt", "b.txt", "c.txt"]


def test_another_processor_is_another_output(folder: Folder) -> None:
    folder.call()
    assert folder.reasons(processor="mine:other") == {"processor": 3}
    assert folder.reasons() == {}


def test_other_parameters_are_another_output(folder: Folder) -> None:
    (folder.path / "mine.py").write_text(
        "def convert(source, target, mark='', **others):\n"
        "    with open(source) as stream, open(target, 'w') as made:\n"
        "        made.write(mark + stream.read())\n"
    )
    folder.call()
    assert folder.reasons("--set", "mark=new") == {"processor": 3}
    folder.call("--set", "mark=new", "--set", "x=1")
    assert folder.contents() == ["newa.txt", "newb.txt", "newc.txt"]
    assert folder.reasons("--set", "x=1", "--set", "mark=new") == {}
    assert folder.reasons() == {"processor": 3}


def test_other_code_is_said_and_done_when_it_is_asked_for(folder: Folder) -> None:
    folder.call()
    folder.code(mark="fixed ")
    (folder.source / "d.txt").write_text("d.txt")
    told = folder.call()
    assert "3 done already\n  3 of these made by other code: --redo code" in told
    assert folder.contents() == ["a.txt", "b.txt", "c.txt", "fixed d.txt"]
    assert folder.reasons("--redo", "code") == {"code": 3}
    folder.call("--redo", "code")
    assert folder.contents() == [f"fixed {name}.txt" for name in "abcd"]
    assert folder.plan("--redo", "code")["files"] == 0


def test_a_module_that_the_processor_imports_is_its_code(folder: Folder) -> None:
    folder.call()
    folder.code(library="new ")
    assert folder.plan() | {"other_code": 3, "files": 0} == folder.plan()
    folder.call("--redo", "code")
    assert folder.contents() == ["new a.txt", "new b.txt", "new c.txt"]


def test_a_file_that_failed_is_done_again_though_an_old_output_is_there(folder: Folder) -> None:
    folder.call()
    (folder.path / "mine.py").write_text("def convert(source, target): raise ValueError('no')\n")
    (folder.source / "a.txt").write_text("other")
    folder.call(code=1)
    folder.code()
    assert folder.reasons() == {"failed": 1}
    folder.call()
    assert folder.contents() == ["other", "b.txt", "c.txt"]


def test_outputs_without_a_ledger_are_judged_by_their_times(folder: Folder) -> None:
    folder.call()
    shutil.rmtree(folder.target / ".imece")
    later(folder.source / "b.txt")
    assert folder.reasons() == {"changed": 1}
    later(folder.target / "b.txt", 2 * DAY)
    assert folder.plan()["done_already"] == 3


def test_one_input_may_have_an_output_of_each_suffix(folder: Folder) -> None:
    folder.call("--suffix", ".one")
    folder.call("--suffix", ".two")
    assert folder.reasons("--suffix", ".one") == folder.reasons("--suffix", ".two") == {}
    assert folder.reasons("--suffix", ".three") == {"new": 3}


def test_a_plan_says_how_many_files_are_processed_and_why(folder: Folder) -> None:
    assert folder.call("--dry-run").startswith("would process 3 files in 3 buckets")
    folder.call()
    later(folder.source / "a.txt")
    (folder.target / "b.txt").unlink()
    assert folder.call("--dry-run").splitlines()[1:] == [
        "  1 changed since",
        "  1 with an output that is gone",
        "  1 done already",
    ]
    assert "3 because of --overwrite" in folder.call("--dry-run", "--overwrite")
    folder.call()
    assert folder.call("--dry-run").splitlines() == ["no file to process", "  3 done already"]


def test_files_of_a_killed_call_that_were_done_are_not_done_again(folder: Folder) -> None:
    """All at once: nobody has put the rows into the ledger."""
    (folder.path / "mine.py").write_text(
        "import time\n"
        "def convert(source, target):\n"
        "    if source.endswith('c.txt'): time.sleep(60)\n"
        "    open(target, 'w').close()\n"
    )
    words = ["local", "in", "out", "--processor", "mine:convert", "-j", "1", "--buckets", "1"]
    environment = {**os.environ, "IMECE_STATE_DIR": str(folder.path / "state")}
    with forks.Popen(
        [sys.executable, "-m", "imece_producer", *words],
        cwd=folder.path,
        env=environment,
    ) as process:
        until(lambda: len(list(folder.target.glob("*.txt"))) == 2, "two outputs")
        process.kill()
    plan = folder.plan("--buckets", "1")
    assert (plan["done_already"], plan["files"]) == (2, 1)


# On a cluster


def test_a_producer_without_the_processor_compares_with_that_of_the_workers(
    workbench: Workbench,
) -> None:
    """As Airflow does, and whoever enqueues elsewhere."""
    workbench.files(3)
    del workbench.settings["processor"]
    workbench.enqueue("first")
    workbench.worker(processor="tests.processors:copy").started()
    assert workbench.ended("first").done == 3
    made = workbench.enqueue("same").plan
    assert made is not None
    assert (made.files, made.through) == (0, 3)
    workbench.workers[0].stop()
    workbench.worker(processor="tests.processors:slow")
    versions = "imece:imece:versions"
    until(lambda: b"slow" in raw(workbench.redis.hget(versions, "") or b""), "its version")
    made = workbench.enqueue("other").plan
    assert made is not None
    assert made.comparison.reasons == {Reason.PROCESSOR: 3}


def test_a_run_with_nothing_to_do_is_done_at_once_and_needs_no_worker(
    workbench: Workbench,
) -> None:
    workbench.files(3)
    workbench.enqueue("first")
    workbench.worker()
    workbench.ended("first")
    workbench.workers[0].stop()
    workbench.enqueue("second")
    now = workbench.status("second")
    assert (now.state, now.files, now.skipped, now.backlog.pending) == ("done", 3, 3, 0)


def test_a_producer_that_does_not_see_the_outputs_does_not_have_all_done_again(
    workbench: Workbench,
) -> None:
    workbench.files(3)
    workbench.enqueue("first")
    workbench.worker()
    workbench.ended("first")
    hidden = workbench.folder / "hidden"
    workbench.target.rename(hidden)
    workbench.settings["output"] = str(hidden)  # where workers see it
    workbench.workers[0].stop()
    workbench.enqueue("second")
    workbench.worker()
    until(lambda: workbench.status("second").is_held, "the run to be held")
    assert "has not seen the output directory" in str(workbench.status("second").blocking_reason)
    assert workbench.status("second").done == 0
    assert workbench.imece("resume", "second").returncode == 0
    assert workbench.ended("second").done == 3


def test_what_a_worker_finishes_while_the_next_round_is_enqueued_is_not_done_again(
    workbench: Workbench,
) -> None:
    go = workbench.folder / "go"
    for name in ("a", "b", "c"):
        workbench.file(name, f"wait-for {go}")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1)
    workbench.worker().runner()
    Run(workbench.redis, "imece", "run").cancel(600)
    go.touch()
    workbench.enqueue(buckets=1)
    now = workbench.ended()
    assert (now.state, now.done + now.skipped) == ("done", 3)
    blocks, _ = staging.noted(os.fsencode(workbench.target))
    assert sum(len(block.rows()) for block in blocks) == 3, "each file was tried once"


# Without workers


def test_a_part_of_the_ledger_that_cannot_be_read_is_told_and_times_count(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("a")
    where = tmp_path / "out" / ".imece" / "ledger"
    where.mkdir(parents=True)
    (where / "spoilt.rows").write_bytes(b"no ledger, but long enough for one")
    roots = os.fsencode(tmp_path / "in"), os.fsencode(tmp_path / "out")
    found = Comparer(*roots, None, None, {}).compare([b"a"])
    assert (found.current, len(found.flaws)) == ([b"a"], 1)


# imece redo


def redo(folder: Folder, *options: str, code: int = 0) -> str:
    words = [sys.executable, "-m", "imece_producer", "redo", "out", *options]
    environment = {**os.environ, "IMECE_STATE_DIR": str(folder.path / "state")}
    done = forks.run(words, cwd=folder.path, env=environment)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_outputs_are_made_again_by_name_and_by_version(folder: Folder) -> None:
    folder.call("--include", "a*", "--include", "b*")
    folder.code(mark="new ")
    folder.call()
    assert redo(folder, "--stale", "--processor", "mine:convert", "--dry-run") == (
        "2 outputs would be made again\n"
    )
    assert folder.reasons() == {}
    assert redo(folder, "--glob", "/b.*") == "1 output will be made again\n"
    assert folder.reasons() == {"asked": 1}
    verdict = folder.verdict()
    assert [version["outputs"] for version in verdict["versions"]] == [1, 1]
    old = {version["code"] for version in verdict["versions"]} - {folder.code_now()}
    assert redo(folder, "--made-by", old.pop()[:6]) == "1 output will be made again\n"
    assert folder.reasons() == {"asked": 2}
    folder.call()
    assert folder.contents() == ["new a.txt", "new b.txt", "new c.txt"]
    assert folder.reasons() == {}


def test_which_outputs_has_to_be_said(folder: Folder) -> None:
    folder.call()
    assert "--made-by, --stale or --glob" in redo(folder, code=2)
    assert "name what processes a file now" in redo(folder, "--stale", code=2)


def test_a_run_on_a_server_begins_its_next_round_at_once(workbench: Workbench) -> None:
    workbench.files(5)
    workbench.enqueue()
    workbench.worker()
    workbench.ended()
    told = workbench.imece("redo", "run", "--glob", "f-0001*")
    assert told.returncode == 0, told.stderr
    assert "1 as imece redo asked for" in told.stdout
    until(lambda: workbench.status().round == 2, "the next round")
    now = workbench.ended()
    assert (now.files, now.done) == (1, 1)


# Contents


def test_hashes_decide_where_times_lie(folder: Folder) -> None:
    folder.call("--hash")
    later(folder.source / "a.txt")
    later(folder.target / "b.txt")
    assert folder.reasons("--by", "content") == {}
    assert folder.reasons() == {"changed": 1, "replaced": 1}
    rewrite(folder.source / "c.txt", "C.txt")
    assert folder.reasons("--by", "content") == {"changed": 1}
    rewrite(folder.target / "a.txt", "A.txt")
    assert folder.reasons("--by", "content") == {"changed": 1, "replaced": 1}


def test_outputs_are_compared_with_their_hashes(folder: Folder) -> None:
    folder.call("--hash", "--include", "a*", "--include", "b*")
    folder.call()
    verdict = folder.verdict("--hash")
    assert (verdict["sound"], verdict["hashed"], verdict["changed"]) == (3, 2, [])
    rewrite(folder.target / "b.txt", "B.txt")
    assert folder.verdict()["changed"] == []
    assert folder.verdict("--hash")["changed"] == ["b.txt"]
