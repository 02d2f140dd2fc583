"""The promise: a class is made once for all files with the same parameters, at nobody's cost, and
closed at the end; one that cannot be made processes no file, and the run says why."""

import re
import time
from pathlib import Path

import pytest

from tests.conftest import Workbench, until
from tests.test_reproduce import reproduce
from tests.test_set import worker_says

HERE = "tests.processors_as_classes"


@pytest.fixture
def life(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What became of the instances, a line for each word."""
    path = workbench.folder / "life"
    monkeypatch.setenv("LIFE", str(path))
    workbench.settings["processor"] = f"{HERE}:Model"
    return path


def words(life: Path) -> list[str]:
    return life.read_text().splitlines() if life.exists() else []


def said(workbench: Workbench, name: str) -> list[str]:
    return (workbench.target / name).read_text().split()


def test_one_instance_does_all_files_and_jobs(workbench: Workbench, life: Path) -> None:
    names = workbench.files(6)
    workbench.enqueue(buckets=3, set={"size": 7})
    worker = workbench.worker()
    assert workbench.ended().done == 6
    assert {said(workbench, name)[1] for name in names} == {"7"}
    assert sorted(said(workbench, name)[2] for name in names) == list("123456")
    assert words(life) == ["made 7"]
    assert worker.stop() == 0
    assert words(life) == ["made 7", "closed 7"]
    workbench.check_books()


def test_other_parameters_make_another_instance_and_close_the_first(
    workbench: Workbench, life: Path
) -> None:
    workbench.files(1)
    workbench.worker()
    for size in (1, True, 1.0, 1.0):
        workbench.enqueue(overwrite=True, set={"size": size})
        workbench.ended()
    made = ["made 1", "closed 1", "made True", "closed True", "made 1.0"]
    assert words(life) == made
    assert said(workbench, "f-0000.txt")[2] == "2"


def test_a_file_that_fails_leaves_the_instance(workbench: Workbench, life: Path) -> None:
    workbench.file("a", "fail")
    workbench.file("b")
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker()
    assert workbench.ended().failed == 1
    assert said(workbench, "b")[2] == "2"
    assert workbench.failures()["a"].output == ""  # what was printed when it was made
    assert words(life) == ["made 1"]


def test_a_runner_that_is_worn_closes_it(workbench: Workbench, life: Path) -> None:
    workbench.files(3)
    workbench.enqueue(buckets=1)
    workbench.worker(runner_max_files="1").process.poll()
    assert workbench.ended().done == 3
    assert words(life) == ["made 1", "closed 1"] * 2 + ["made 1"]


def test_what_it_takes_to_be_made_is_charged_to_no_file(workbench: Workbench, life: Path) -> None:
    """Its time is no part of a try's, nor does a time limit count it."""
    workbench.files(2)
    workbench.settings["processor"] = f"{HERE}:Slow"
    workbench.enqueue(buckets=1, timeout=0.3, retries=0)
    workbench.worker()
    assert workbench.ended().done == 2
    assert max(seconds for _, seconds in workbench.status().slowest) < 0.3


def test_an_error_of_close_is_in_the_log(workbench: Workbench, life: Path) -> None:
    workbench.settings["processor"] = f"{HERE}:Unclosed"
    workbench.files(1)
    worker = workbench.worker(log_format="json")
    for size in (1, 2):
        workbench.enqueue(overwrite=True, set={"size": size})
        assert workbench.ended().state == "done"
    assert worker.stop() == 0
    reasons = [entry["reason"] for entry in worker.events("processor not closed")]
    assert reasons == [f"{HERE}:Unclosed: close() failed: RuntimeError: cannot close"] * 2


# One that cannot be made


def why(life: Path, word: str) -> None:
    life.with_name("why").write_text(word)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("raise", r"ValueError: no model of this name \(ValueError in .*:\d+ Broken.__init__\)"),
        ("exit", r"SystemExit: 7 \(SystemExit in .*:\d+ Broken.__init__\)"),
    ],
)
def test_one_that_cannot_be_made_holds_the_run_and_no_file_loses_a_try(
    workbench: Workbench, life: Path, word: str, says: str
) -> None:
    workbench.settings["processor"] = f"{HERE}:Broken"
    why(life, word)
    workbench.files(3)
    workbench.enqueue(buckets=3)
    worker = workbench.worker()
    until(lambda: workbench.status().is_held, "the run to be held")
    reason = workbench.status().blocking_reason or ""
    assert re.search(f"the processor cannot be made: {says}$", reason), reason
    until(lambda: workbench.status().backlog.in_flight == 0, "the job to be given back")
    assert workbench.check_books().left == 3
    assert words(life) == ["made 1"]
    why(life, "fine")
    assert workbench.imece("resume", "run").returncode == 0
    assert workbench.ended().done == 3
    assert worker.stop() == 0


def test_one_that_may_be_made_later_is_tried_again_after_a_pause(
    workbench: Workbench, life: Path
) -> None:
    workbench.settings["processor"] = f"{HERE}:Broken"
    why(life, "away")
    workbench.files(1)
    workbench.enqueue()
    workbench.worker()
    until(lambda: workbench.status().blocking_reason, "the run to pause")
    reason = workbench.status().blocking_reason or ""
    assert "the processor cannot be made: ConnectionError: the model is not there yet" in reason
    assert workbench.status().state == "running"
    why(life, "fine")
    assert workbench.ended().done == 1


def test_one_that_crashes_when_it_is_made_makes_the_run_pause(
    workbench: Workbench, life: Path
) -> None:
    workbench.settings["processor"] = f"{HERE}:Broken"
    why(life, "segfault")
    workbench.files(1)
    workbench.enqueue()
    workbench.worker()
    until(lambda: workbench.status().blocking_reason, "the run to pause")
    assert "its processes die before their first file" in (workbench.status().blocking_reason or "")
    assert workbench.status().failed == 0


def test_a_worker_stops_while_it_is_made(workbench: Workbench, life: Path) -> None:
    workbench.settings["processor"] = f"{HERE}:Hanging"
    workbench.files(1)
    workbench.enqueue()
    worker = workbench.worker()
    until(lambda: words(life), "the instance to be made")
    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < 10
    assert "job returned" in worker.log()
    assert workbench.check_books().left == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NoCall", "the class needs a method __call__(self, source, target)"),
    ],
)
def test_a_class_that_is_no_processor_is_told_at_the_start(name: str, says: str) -> None:
    code, told = worker_says("--check", "--processor", f"{HERE}:{name}")
    assert code == 2
    assert says in told


def test_a_class_whose_call_takes_something_else_holds_the_run(
    workbench: Workbench, life: Path
) -> None:
    workbench.settings["processor"] = f"{HERE}:WrongCall"
    workbench.files(1)
    workbench.enqueue()
    workbench.worker()
    until(lambda: workbench.status().is_held, "the run to be held")
    assert "its __call__ cannot be called with 2 paths" in (
        workbench.status().blocking_reason or ""
    )


def test_parameters_of_a_class_are_those_it_is_made_with(workbench: Workbench, life: Path) -> None:
    code, told = worker_says("--check", "--processor", f"{HERE}:Slow", "--set", "size=1")
    assert (code, told) == (
        2,
        f"imece-worker: {HERE}:Slow has no parameter size: it has none that a run may set\n",
    )
    assert words(life) == []  # it is not made to look


def test_reproduce_makes_and_closes_one(workbench: Workbench, life: Path) -> None:
    workbench.file("f")
    workbench.enqueue(set={"size": 3})
    answer = reproduce(workbench, "run", "f", "--output", "mine")
    assert answer.returncode == 0, answer
    assert words(life) == ["made 3", "closed 3"]
    why(life, "raise")
    answer = reproduce(workbench, "run", "f", "--processor", f"{HERE}:Unclosed")
    assert "close() failed: RuntimeError: cannot close" in answer.stderr
    workbench.run().cancel(600)
    workbench.enqueue("other")
    answer = reproduce(workbench, "other", "f", "--processor", f"{HERE}:Broken")
    assert answer.returncode == 1
    assert "in __init__" in answer.stderr
    assert "failed: ValueError in processors_as_classes.py" in answer.stderr
