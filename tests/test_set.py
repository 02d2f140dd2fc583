"""The promise: what a run sets reaches the processor, as it was given; a processor that does not
take it processes no file, and the run says which parameter is wrong."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from imece.errors import UsageError
from imece.run.parameters import DEEPEST_SET, LARGEST_SET, set_flaw, set_of
from imece_worker.processor import misfit
from tests import forks
from tests.conftest import ROOT, Workbench, until
from tests.test_reproduce import reproduce

SHOW = "tests.processors_with_parameters:show"
SHOW_ALL = "tests.processors_with_parameters:show_all"


def made(workbench: Workbench, name: str = "f") -> Any:
    return json.loads((workbench.target / name).read_text())


# What may be set


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a=32", 32),
        ("a=0.5", 0.5),
        ("a=true", True),
        ("a=null", None),
        ("a=fast", "fast"),
        ("a=", ""),
        ("a=x=y", "x=y"),
        ('a="32"', "32"),
        ('a=[1, {"b": 2}]', [1, {"b": 2}]),
        ("a=NaN", "NaN"),
        ("a=01", "01"),
        ("a=[1", "[1"),
        ("größe=\udcff", "\udcff"),
    ],
)
def test_a_value_is_json_or_text(word: str, value: object) -> None:
    assert list(set_of([word]).values()) == [value]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["size"], "--set size: takes NAME=VALUE"),
        (["a b=1"], "'a b': this is not the name of a parameter"),
        (["=1"], "'': this is not the name"),
        (["class=1"], "'class': this is not the name"),
        (["a=1", "a=2"], "--set a: it is given twice"),
        (["a=1e999"], "the number Infinity is not finite"),
        (["a=99999999999999999999"], "is too large"),
        ([f"a={'x' * LARGEST_SET}"], f"larger than {LARGEST_SET} bytes"),
        (["a=" + "[" * 60 + "]" * 60], "nested too deeply"),
    ],
)
def test_what_cannot_be_set_is_said(words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        set_of(words)


def test_what_is_no_json_cannot_be_set() -> None:
    assert "cannot be kept as JSON" in (set_flaw({"a": {1, 2}}) or "")
    assert set_flaw({"a": [[]] * 9}) is None
    deep: Any = []
    for _ in range(DEEPEST_SET * 100):
        deep = [deep]
    assert "nested too deeply" in (set_flaw({"a": deep}) or "")


# What a function takes


def takes_two(source: str, target: str, /, size: int = 1, *, mode: str) -> None: ...
def takes_one(source: str) -> None: ...
def takes_all(*paths: str, **given: object) -> None: ...


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mode": "fast"}, None),
        ({"mode": "fast", "size": 2}, None),
        ({"mode": "fast", "sise": 2}, "has no parameter sise: it has size, mode"),
        ({"mode": "fast", "source": 2}, "has no parameter source: it has size, mode"),
        ({"size": 2}, "needs the parameter mode: --set mode=VALUE"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(given: dict[str, Any], says: str | None) -> None:
    assert misfit(takes_two, 2, given) == says


def test_functions_of_other_kinds_are_not_misjudged() -> None:
    assert misfit(takes_all, 2, {"anything": 1}) is None
    assert misfit(print, 2, {}) is None
    assert misfit(dict.update, 2, {"a": 1}) is None  # has no signature
    assert "cannot be called with 2 paths" in (misfit(takes_one, 2, {}) or "")


# In a run


def test_a_function_gets_them_by_name(workbench: Workbench) -> None:
    workbench.settings["processor"] = SHOW
    workbench.file("f")
    words = ["--set", "size=32", "--set", 'mode=["fast", null]']
    answer = workbench.imece("enqueue", str(workbench.source), str(workbench.target), *words)
    assert answer.returncode == 0, answer
    workbench.worker()
    until(lambda: workbench.outputs() == ["f"], "the output")
    assert made(workbench) == [32, ["fast", None]]
    told = workbench.imece("status").stdout
    assert '\n  set      mode=["fast", null], size=32\n' in told


def test_a_function_that_changes_one_does_not_change_it_for_the_next_file(
    workbench: Workbench,
) -> None:
    workbench.settings["processor"] = "tests.processors_with_parameters:change_what_it_got"
    names = workbench.files(3)
    workbench.enqueue(buckets=1, set={"names": []})
    workbench.worker()
    assert workbench.ended().state == "done"
    assert [made(workbench, name) for name in names] == [[name] for name in names]


def test_a_program_gets_them_in_its_environment(workbench: Workbench) -> None:
    workbench.file("f")
    del workbench.settings["processor"]
    command = """sh -c 'echo "$IMECE_SET_size $IMECE_SET_mode" > "$2"' - {input} {output}"""
    workbench.enqueue(set={"size": [1, 2], "mode": "two words"})
    workbench.worker(command=command)
    assert workbench.ended().state == "done"
    assert (workbench.target / "f").read_text() == "[1, 2] two words\n"


def test_the_next_round_and_another_run_get_their_own(workbench: Workbench) -> None:
    """One runner serves them all."""
    workbench.settings["processor"] = SHOW_ALL
    workbench.file("f")
    workbench.worker()
    for run, given in (("run", {"a": 1}), ("run", {"b": 2}), ("other", {})):
        workbench.enqueue(run, overwrite=True, set=given)
        assert workbench.ended(run).state == "done"
        assert made(workbench) == given
    assert workbench.workers[0].log().count("job finished") == 3


def test_a_run_that_is_on_is_refused_with_others(workbench: Workbench) -> None:
    workbench.files(1)
    call = ["enqueue", str(workbench.source), str(workbench.target), "--run-id", "run"]
    assert workbench.imece(*call, "--set", "a=1").returncode == 0
    assert workbench.imece(*call, "--set", "a=1").returncode == 0
    answer = workbench.imece(*call, "--set", "a=2")
    assert answer.returncode == 2
    assert "the run id run is in use with another set: take another --run-id" in answer.stderr


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": 1, "sise": 2}, f"{SHOW} has no parameter sise: it has size, mode"),
        ({}, f"{SHOW} needs the parameter size: --set size=VALUE"),
    ],
)
def test_a_worker_holds_a_run_that_sets_what_its_processor_does_not_take(
    workbench: Workbench, given: dict[str, Any], says: str
) -> None:
    """No file loses a try, and the next round with other parameters goes on."""
    workbench.settings["processor"] = SHOW
    workbench.files(3)
    workbench.enqueue(buckets=3, set=given)
    worker = workbench.worker()
    until(lambda: workbench.status().is_held, "the run to be held")
    assert says in (workbench.status().blocking_reason or "")
    until(lambda: workbench.status().backlog.in_flight == 0, "the job to be given back")
    now = workbench.check_books()
    assert (now.left, now.failed, now.retried) == (3, 0, 0)
    assert "Traceback" not in worker.log()
    workbench.enqueue(set={"size": 2})
    assert workbench.ended().done == 3
    assert worker.stop() == 0
    assert made(workbench, "f-0000.txt") == [2, "slow"]
    workbench.check_books()
    assert workbench.leaves_nothing_behind()


def test_a_local_run_is_refused_before_anything_is_enqueued(workbench: Workbench) -> None:
    del workbench.settings["redis_url"]
    workbench.file("f")
    call = ["local", str(workbench.source), str(workbench.target), "--processor", SHOW]
    answer = workbench.imece(*call, "--set", "sise=2")
    assert answer.returncode == 2
    assert answer.stderr == f"imece: {SHOW} has no parameter sise: it has size, mode\n"
    assert not workbench.target.exists()
    answer = workbench.imece(*call, "--set", "size=32")
    assert answer.returncode == 0, answer
    assert made(workbench) == [32, "slow"]


def worker_says(*words: str, **settings: str) -> tuple[int, str]:
    """The exit code of a worker, and its log."""
    given = {f"IMECE_{name.upper()}": value for name, value in settings.items()}
    ended = forks.run(
        [sys.executable, "-m", "imece_worker", *words], env={**os.environ, **given}, cwd=ROOT
    )
    return ended.returncode, ended.stderr


def test_a_check_of_the_worker_looks_at_them() -> None:
    call = ["--check", "--processor", SHOW]
    assert worker_says(*call) == (0, "")
    assert worker_says(*call, "--set", "size=1") == (0, "")
    code, says = worker_says(*call, "--set", "sise=1")
    assert (code, says) == (2, f"imece-worker: {SHOW} has no parameter sise: it has size, mode\n")
    code, says = worker_says("--set", "size=1")
    assert code == 2
    assert "--set needs --bucket-id and --bucket-count, or --check: a run has its own" in says


def test_a_static_bucket_has_parameters_too(workbench: Workbench) -> None:
    workbench.file("f")
    places = {"input": str(workbench.source), "output": str(workbench.target)}
    call = ["--bucket-id", "0", "--bucket-count", "1", "--processor", SHOW]
    code, says = worker_says(*call, **places)
    assert code == 2
    assert "needs the parameter size: --set size=VALUE" in says
    code, says = worker_says(*call, "--set", "size=7", **places)
    assert code == 0, says
    assert made(workbench) == [7, "slow"]


def test_reproduce_takes_them_from_the_run(workbench: Workbench) -> None:
    workbench.settings["processor"] = SHOW_ALL
    workbench.file("f")
    workbench.enqueue(set={"size": 32})
    answer = reproduce(workbench, "run", "f", "--output", "mine")
    assert answer.returncode == 0, answer
    assert (Path(workbench.folder) / "desk/mine/f").read_text() == '{"size": 32}'
    command = "sh -c 'echo $IMECE_SET_size > $2' - {input} {output}"
    del workbench.settings["processor"]
    answer = reproduce(workbench, "run", "f", "--output", "other", "--command", command)
    assert (Path(workbench.folder) / "desk/other/f").read_text() == "32\n"
    function = "tests.processors:copy"
    answer = reproduce(workbench, "run", "f", "--processor", function)
    assert answer.returncode == 2
    assert f"imece: {function} has no parameter size: it has none" in answer.stderr
