"""The promise: workers may have several processors by name, and a run asks for one; Redis names no
code. A worker that does not have it leaves the run to others, and the run says so."""

import json
import re
from pathlib import Path

import pytest

from imece.errors import SettingsError
from imece.settings import load
from tests.conftest import Workbench, until
from tests.test_reproduce import reproduce

HERE = "tests.processors"
NAMES = json.dumps({"copy": f"{HERE}:copy", "digest": f"{HERE}:digest", "pid": f"{HERE}:write_pid"})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package whose entry points name two processors."""
    folder = tmp_path / "installed"
    about = folder / "thumbs-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: thumbs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[imece.processors]\nthumb = thumbs:thumb\ncopy = thumbs:thumb\n"
    )
    (folder / "thumbs.py").write_text(
        "import pathlib\ndef thumb(source, target): pathlib.Path(target).write_text('thumb')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


def enqueue(workbench: Workbench, run: str, processor: str, *words: str) -> None:
    call = ["enqueue", str(workbench.source), str(workbench.folder / run), "--run-id", run]
    answer = workbench.imece(*call, "--processor", processor, *words)
    assert answer.returncode == 0, answer


def output(workbench: Workbench, run: str, name: str = "f") -> str:
    return (workbench.folder / run / name).read_text()


def test_runs_of_one_queue_ask_for_different_processors(workbench: Workbench) -> None:
    workbench.file("f", "text")
    worker = workbench.worker(processors=NAMES)
    for run, processor in (("one", "copy"), ("two", "digest"), ("three", "copy")):
        enqueue(workbench, run, processor)
        assert workbench.ended(run).state == "done"
    assert output(workbench, "one") == output(workbench, "three") == "text"
    assert len(output(workbench, "two")) == 64
    workbench.enqueue()  # by the one without a name
    assert workbench.ended().state == "done"
    assert worker.stop() == 0
    told = workbench.imece("status", "one").stdout
    assert "\n  by       the processor copy\n" in told
    rows = workbench.imece("export", str(workbench.folder / "two"), "--format", "csv").stdout
    assert f"{HERE}:digest" in rows


def test_runs_with_the_same_processor_share_a_process(workbench: Workbench) -> None:
    workbench.file("f")
    workbench.worker(processors=NAMES)
    for run in ("one", "two"):
        enqueue(workbench, run, "pid")
        workbench.ended(run)
    assert output(workbench, "one") == output(workbench, "two")


def test_entry_points_of_installed_packages_are_names(workbench: Workbench, package: None) -> None:
    workbench.file("f", "text")
    del workbench.settings["processor"]
    workbench.worker(processors=json.dumps({"copy": f"{HERE}:copy"}), fresh=True)
    enqueue(workbench, "one", "thumb")
    enqueue(workbench, "two", "copy")
    assert workbench.ended("one").done == workbench.ended("two").done == 1
    assert (output(workbench, "one"), output(workbench, "two")) == ("thumb", "text")


def test_a_worker_without_it_leaves_the_run_to_one_that_has_it(workbench: Workbench) -> None:
    workbench.files(60)
    without = workbench.worker().started()
    enqueue(workbench, "one", "digest", "--files-per-job", "20", "--buckets", "1")
    until(lambda: workbench.status("one").blocking_reason, "the run to say why")
    reason = workbench.status("one").blocking_reason or ""
    assert re.fullmatch(
        r"no worker has the processor digest: worker imece\.\S+ has none by a name", reason
    )
    assert reason in workbench.imece("status", "one").stdout
    workbench.worker(processors=NAMES)
    assert workbench.ended("one").done == 60
    assert workbench.status("one").failed == 0
    assert "job taken" not in without.log()
    assert workbench.status("one").blocking_reason is None


def test_a_worker_without_it_makes_no_run_pause_that_another_works_on(
    workbench: Workbench,
) -> None:
    """However long that takes for a file."""
    workbench.file("a", f"wait-for {workbench.folder / 'go'}")
    workbench.file("b")
    names = json.dumps({"waits": f"{HERE}:by_content"})
    worker = workbench.worker(processors=names).started()
    enqueue(workbench, "one", "waits", "--buckets", "2", "--files-per-job", "1")
    worker.took()
    without = workbench.worker()
    until(lambda: "job stalled" in without.log(), "the other worker to meet the run")
    until(lambda: workbench.status("one").backlog.in_flight == 1, "it to leave the run")
    assert workbench.status("one").blocking_reason is None
    assert workbench.redis.hget(workbench.run("one").key, "pauses") is None
    (workbench.folder / "go").touch()
    assert workbench.ended("one").done == 2


def test_a_worker_with_names_only_leaves_a_run_that_names_none(workbench: Workbench) -> None:
    workbench.file("f")
    del workbench.settings["processor"]
    workbench.worker(processors=NAMES)
    workbench.enqueue()
    until(lambda: workbench.status().blocking_reason, "the run to say why")
    reason = workbench.status().blocking_reason or ""
    assert "the run names no processor, and worker " in reason
    assert reason.endswith(" has only copy, digest, pid")


def test_one_that_cannot_be_imported_holds_its_run_and_no_other(workbench: Workbench) -> None:
    workbench.file("f", "text")
    names = json.dumps({"broken": "no_such_module:f", "copy": f"{HERE}:copy"})
    worker = workbench.worker(processors=names)
    for run in ("one", "two"):
        enqueue(workbench, run, "broken")
        until(lambda: workbench.status(run).is_held, "the run to be held")  # noqa: B023
        assert "No module named 'no_such_module'" in (workbench.status(run).blocking_reason or "")
    enqueue(workbench, "three", "copy")
    assert workbench.ended("three").done == 1
    assert worker.stop() == 0


def test_local_and_reproduce_take_a_name_too(workbench: Workbench) -> None:
    workbench.file("f", "text")
    workbench.settings["processors"] = NAMES
    enqueue(workbench, "one", "digest")
    answer = reproduce(workbench, "one", "f", "--output", "mine")
    assert answer.returncode == 0, answer
    assert len((workbench.folder / "desk" / "mine" / "f").read_text()) == 64
    del workbench.settings["redis_url"]
    call = ["local", str(workbench.source), str(workbench.target), "--processor"]
    assert workbench.imece(*call, "digest").returncode == 0
    assert len((workbench.target / "f").read_text()) == 64
    answer = workbench.imece(*call, "thumb")
    assert answer.returncode == 2
    assert "IMECE_PROCESSOR: 'thumb': takes package.module:function, or a name that" in (
        answer.stderr
    )


def test_a_queue_names_no_code(workbench: Workbench) -> None:
    workbench.file("f")
    call = ["enqueue", str(workbench.source), str(workbench.target), "--processor"]
    answer = workbench.imece(*call, "os:system")
    assert answer.returncode == 2
    assert "imece: --processor os:system: takes the name of a processor" in answer.stderr
    enqueue(workbench, "one", "copy")
    parameters = workbench.redis.hget(workbench.run("one").key, "parameters") or b""
    spoilt = json.loads(parameters) | {"processor": "os:system"}
    workbench.redis.hset(workbench.run("one").key, "parameters", json.dumps(spoilt))
    workbench.worker(processors=NAMES)
    answer = workbench.imece("status", "one")
    assert answer.returncode == 2
    assert "the run's parameter processor 'os:system' is not a name" in answer.stderr


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("thumb", "takes a JSON object"),
        ('["a:b"]', "takes a JSON object"),
        ('{"a b": "c:d"}', "'a b': a name has letters"),
        ('{"a": "c"}', "a: takes package.module:function"),
        ('{"a": 1}', "a: takes package.module:function"),
    ],
)
def test_names_that_are_none_are_told(given: str, says: str) -> None:
    with pytest.raises(SettingsError, match=f"IMECE_PROCESSORS: {re.escape(says)}"):
        load(processors=given, processor="thumb")
