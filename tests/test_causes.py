"""The promise: a user with thousands of failed files sees the few causes that they have, and can
retry one of them."""

import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest

from imece.run import causes
from imece.run.claim import Batch
from imece.run.failure import Failure
from imece.run.job import Cursor
from imece_producer import display
from imece_worker.causes import error_number, of_exception
from imece_worker.directories import PathError
from imece_worker.processor import CommandError
from tests.conftest import Workbench, until
from tests.processors import Unspeakable
from tests.test_lease import Hand

# The cause of one failure


def raised(path: Path, source: str, *arguments: Any) -> BaseException:
    """What the function `main` of a module with this source raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.main(*arguments)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def cause_of(path: Path, source: str, *arguments: Any, package: str = "convert") -> str:
    return of_exception(raised(path, source, *arguments), package, None)


def test_the_cause_is_the_innermost_frame_of_the_users_code(tmp_path: Path) -> None:
    source = (
        "import json\n\ndef main(text):\n    read(text)\n\ndef read(text):\n    json.loads(text)\n"
    )
    cause = cause_of(tmp_path / "convert.py", source, "{")
    assert cause == "JSONDecodeError in convert.py:7 read"


def test_a_method_and_a_function_in_a_function_have_their_names(tmp_path: Path) -> None:
    source = (
        "class Reader:\n    def read(self):\n        def inner():\n            1 / 0\n"
        "        inner()\n"
        "def main():\n    Reader().read()\n"
    )
    cause = cause_of(tmp_path / "convert.py", source)
    assert cause == "ZeroDivisionError in convert.py:4 Reader.read.inner"


def test_a_comprehension_has_the_name_of_its_function(tmp_path: Path) -> None:
    """In Python 3.11 it has a frame of its own, later not."""
    source = "def main(words):\n    return [float(word) for word in words]\n"
    cause = cause_of(tmp_path / "convert.py", source, ["x"])
    assert cause == "ValueError in convert.py:2 main"


def test_paths_and_numbers_in_messages_do_not_split_a_cause(tmp_path: Path) -> None:
    source = "def main(path):\n    raise ValueError(f'{path}: no header')\n"
    found = {cause_of(tmp_path / "convert.py", source, f"/data/{n}.csv") for n in range(5)}
    assert found == {"ValueError in convert.py:2 main"}


def test_one_kind_of_error_in_two_functions_is_two_causes(tmp_path: Path) -> None:
    source = (
        "def main(first):\n    one() if first else two()\n"
        "def one():\n    raise ValueError('x')\ndef two():\n    raise ValueError('x')\n"
    )
    found = [cause_of(tmp_path / "convert.py", source, first) for first in (True, False)]
    assert found == ["ValueError in convert.py:4 one", "ValueError in convert.py:6 two"]


def test_an_error_raised_from_another_names_both(tmp_path: Path) -> None:
    source = (
        "def main(key):\n    try:\n        read(key)\n    except KeyError as error:\n"
        "        raise RuntimeError('cannot convert') from error\n"
        "def read(key):\n    {}[key]\n"
    )
    cause = cause_of(tmp_path / "convert.py", source, "a")
    assert cause == "RuntimeError in convert.py:5 main, from KeyError in convert.py:7 read"


def test_errors_that_are_raised_from_each_other_have_a_cause(tmp_path: Path) -> None:
    error = raised(tmp_path / "convert.py", "def main():\n    1 / 0\n")
    other = ValueError("x")
    error.__cause__, other.__cause__ = other, error
    assert of_exception(error, "convert", None).startswith("ZeroDivisionError in convert.py:2 main")


def test_wrong_syntax_in_a_module_that_is_imported_late_names_that_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_by_hand.py").write_text("def f():\n    return (\n")
    monkeypatch.syspath_prepend(tmp_path)
    lines = ("import broken_by_hand", "import importlib; importlib.import_module('broken_by_hand')")
    for line in lines:
        cause = cause_of(tmp_path / "convert.py", f"def main():\n    {line}\n")
        assert cause == "SyntaxError in broken_by_hand.py:2"
    assert "broken_by_hand" not in sys.modules


def test_wrong_syntax_in_an_input_names_the_user_who_parses_it(tmp_path: Path) -> None:
    source = "import ast\ndef main(text):\n    ast.parse(text)\n"
    found = {cause_of(tmp_path / "convert.py", source, text) for text in ("(", "1\n2\n)")}
    assert found == {"SyntaxError in convert.py:3 main"}


LIBRARY = "def main():\n    raise OSError(5, 'no')\n"


def test_frames_of_an_installed_library_come_after_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "site-packages" / "library.py"
    error = raised(library, LIBRARY)
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without ours
    assert of_exception(error, "convert", None) == "OSError in library.py:2 main"
    monkeypatch.syspath_prepend(library.parent)
    source = "import library\ndef main():\n    library.main()\n"
    assert cause_of(tmp_path / "convert.py", source) == "OSError in convert.py:3 main"


def test_an_installed_processor_is_the_users_code(tmp_path: Path) -> None:
    installed = tmp_path / "site-packages" / "convert.py"
    cause = cause_of(installed, "import json\ndef main():\n    json.loads('{')\n")
    assert cause == "JSONDecodeError in convert.py:3 main"


def test_an_error_that_cannot_say_anything_has_a_cause() -> None:
    try:
        raise Unspeakable
    except Unspeakable as error:
        assert re.fullmatch(
            r"Unspeakable in test_causes.py:\d+ \w+", of_exception(error, "tests", None)
        )


@pytest.mark.parametrize(
    ("error", "limit", "cause"),
    [
        (CommandError("convert ended with exit code 3: /a/b.csv", 3), None, "exit code 3"),
        (CommandError("convert was killed by signal 11", -11), None, "killed by SIGSEGV"),
        (CommandError("convert was killed by signal 40", -40), None, "killed by signal 40"),
        (CommandError("convert was told to stop", 0), None, "told by a signal to stop"),
        (MemoryError(), 2**29, "more than its memory limit of 512 MiB"),
        (MemoryError(), None, "MemoryError"),
        (PathError("the input is no longer there"), None, "the input is no longer there"),
        (PathError("a link leads it to /a/b", cause="a link"), None, "a link"),
    ],
)
def test_what_is_no_error_of_a_function_has_a_short_cause(
    error: Exception, limit: int | None, cause: str
) -> None:
    assert of_exception(error, "convert", limit) == cause


def test_an_error_that_may_pass_by_itself_has_no_number(tmp_path: Path) -> None:
    """Also if it was raised from one that may, or while one was handled."""
    source = (
        "def main(error, how):\n    try:\n        raise error\n    except Exception as found:\n"
        "        if how == 'from': raise RuntimeError from found\n"
        "        if how == 'while': raise RuntimeError\n"
        "        raise\n"
    )
    for how in ("from", "while", ""):
        numbers = [
            error_number(raised(tmp_path / "convert.py", source, error, how), f"cause {how}")
            for error in (ConnectionError(), CalledProcessError(1, "x"), ValueError(), KeyError())
        ]
        assert numbers[:2] == [0, 0]
        assert numbers[2] == numbers[3] != 0


def test_a_cause_is_one_short_line(tmp_path: Path) -> None:
    source = f"class {'E' * 500}(Exception): pass\ndef main():\n    raise {'E' * 500}\n"
    assert len(cause_of(tmp_path / "convert.py", source)) == causes.LONGEST


# Counted in Redis


def told(workbench: Workbench) -> list[tuple[int, int, str]]:
    found = workbench.run().causes()
    return [(one.number, one.count, re.sub(r":\d+", "", one.text)) for one in found]


@pytest.fixture
def failing(workbench: Workbench) -> Workbench:
    """3 files fail in read_header, 2 in read_body, 1 is done."""
    for number, word in enumerate(("header", "body", "header", "fine", "body", "header")):
        workbench.file(f"f-{number}", f"{word} {number}")
    workbench.settings["processor"] = "tests.processors_that_fail:by_word"
    return workbench


def process(workbench: Workbench, **options: Any) -> None:
    workbench.enqueue(buckets=1, retries=0, **options)
    workbench.worker()
    workbench.ended()


HEADER = "ValueError in processors_that_fail.py read_header"
BODY = "ValueError in processors_that_fail.py read_body"


def test_failures_are_counted_by_their_cause(failing: Workbench) -> None:
    process(failing)
    assert told(failing) == [(1, 3, HEADER), (2, 2, BODY)]
    assert failing.status().causes == failing.run().causes()
    first = failing.run().causes()[0]
    assert first.file == b"f-0"
    assert first.message == f"ValueError: header {failing.source / 'f-0'} has no header"
    assert {why.cause for why in failing.failures().values()} == {
        one.text for one in failing.run().causes()
    }
    assert failing.leaves_nothing_behind()


def test_each_way_to_fail_is_a_cause(workbench: Workbench) -> None:
    for word in ("parse", "length", "convert", "exit", "crash", "hang"):
        for number in range(2):
            workbench.file(f"{word}-{number}", word)
    workbench.file("gone", "fine")
    workbench.settings["processor"] = "tests.processors_that_fail:by_word"
    workbench.enqueue(retries=0, timeout=0.5, files_per_job=20, buckets=1)
    (workbench.source / "gone").unlink()
    workbench.worker()
    assert workbench.ended().failed == 13
    assert sorted((count, text) for _, count, text in told(workbench)) == [
        (1, "the input is no longer there"),
        (2, "JSONDecodeError in processors_that_fail.py parse"),
        (2, f"RuntimeError in processors_that_fail.py convert, from {HEADER}"),
        (2, "WrongLengthError in processors_that_fail.py measure"),
        (2, "exit code 3"),
        (2, "killed by SIGSEGV"),
        (2, "took longer than 0.5 s"),
    ]


def test_a_program_has_its_exit_code_as_cause(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.settings["command"] = "sh -c 'echo $0 is wrong >&2; exit 4' {input}"
    del workbench.settings["processor"]
    process(workbench)
    assert told(workbench) == [(1, 3, "exit code 4")]


def test_the_next_round_counts_from_the_beginning(failing: Workbench) -> None:
    process(failing)
    (failing.folder / "fixed-header").touch()
    failing.enqueue(buckets=1, retries=0)
    assert told(failing) == []
    failing.ended()
    assert told(failing) == [(1, 2, BODY)]


def test_a_retry_of_one_cause_leaves_the_others_failed(failing: Workbench) -> None:
    process(failing)
    text = {
        name: why.reason for name, why in failing.failures().items() if "no header" in why.reason
    }
    (failing.folder / "fixed-body").touch()
    answer = failing.imece("retry", "run", "--cause", "2", "--json")
    assert json.loads(answer.stdout)["requeued"] == 2, answer
    now = failing.ended()
    assert (now.state, now.files, now.done, now.failed, now.left) == ("failed", 5, 2, 3, 0)
    assert told(failing) == [(1, 3, HEADER), (2, 0, BODY)]
    assert {name: why.reason for name, why in failing.failures().items()} == text
    failing.check_books(others=1)
    assert failing.immortal_keys() == []
    # What has no file any more cannot be retried; the rest can, by its number or as a whole.
    answer = failing.imece("retry", "run", "--cause", "2")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert (
        "run run has no failed file with cause 2: `imece failures run --by-cause`" in answer.stderr
    )
    (failing.folder / "fixed-header").touch()
    assert failing.imece("retry", "run").returncode == 0
    now = failing.ended()
    assert (now.state, now.done, now.failed) == ("done", 3, 0)
    assert told(failing) == []


def test_a_cause_that_comes_again_keeps_its_number(failing: Workbench) -> None:
    process(failing)
    failing.imece("retry", "run", "--cause", "2")
    failing.ended()
    assert told(failing) == [(1, 3, HEADER), (2, 2, BODY)]
    failing.imece("retry", "run", "--cause", "1")
    failing.ended()
    assert told(failing) == [(1, 3, HEADER), (2, 2, BODY)]
    failing.check_books(others=1)


def test_a_cause_is_not_retried_while_the_run_is_on(failing: Workbench) -> None:
    failing.file("f-9", "wait")
    failing.enqueue(buckets=1, retries=0)
    failing.worker()
    until(lambda: sum(count for _, count, _ in told(failing)) == 5, "the failures")
    before = told(failing)
    answer = failing.imece("retry", "run", "--cause", "1")
    assert answer.returncode == 2
    assert "run run is running: call this again when it has ended" in answer.stderr
    (failing.folder / "go").touch()
    failing.ended()
    assert told(failing) == before


def test_a_cause_of_a_cancelled_run_is_retried_with_the_files_that_are_left(
    failing: Workbench,
) -> None:
    failing.file("f-9", "wait")
    failing.file("g", "fine")
    failing.enqueue(buckets=1, retries=0)
    failing.worker()
    until(lambda: len(told(failing)) == 2, "the failures")
    failing.run().cancel(600)
    (failing.folder / "fixed-header").touch()
    until(lambda: failing.imece("retry", "run", "--cause", "1").returncode == 0, "the retry")
    (failing.folder / "go").touch()
    now = failing.ended()
    assert (now.failed, now.left, now.done) == (2, 0, now.files - 2)
    assert [entry for entry in told(failing) if entry[1]] == [(2, 2, BODY)]
    assert len(failing.outputs()) == 6


def test_the_201st_cause_is_counted_with_all_that_come_after(workbench: Workbench) -> None:
    names = workbench.files(300)
    workbench.enqueue(buckets=1, files_per_job=300)
    hand = Hand(workbench, "one")
    hand.hold()
    failures = [
        (name.encode(), Failure("why", 1, 1.0, "w", cause=f"cause {min(number, 250)}"))
        for number, name in enumerate(names)
    ]
    hand.lease.checkpoint("finish", 1, Cursor(300, 300), Batch(failed=300, failures=failures))
    found = workbench.run().causes()
    assert [one.number for one in found] == list(range(1, 202))
    assert {one.count for one in found[:-1]} == {1}
    assert (found[-1].text, found[-1].count) == ("other causes", 100)
    listed = workbench.imece("failures", "run", "--cause", "201").stdout.splitlines()
    assert [line.partition(" ")[0] for line in listed] == names[200:]
    assert workbench.imece("retry", "run", "--cause", "201").returncode == 0
    now = workbench.status()
    assert (now.files, now.failed, now.left) == (300, 200, 100)
    assert [one.count for one in workbench.run().causes()] == [1] * 200 + [0]


def test_a_failure_of_a_version_without_causes_is_not_known(failing: Workbench) -> None:
    process(failing)
    key = failing.run().key
    record = json.loads(failing.redis.hget(f"{key}:failures", "f-0") or b"")
    del record["cause"]
    failing.redis.hset(f"{key}:failures", "f-7", json.dumps(record))
    assert told(failing) == [(0, 1, "not known"), (1, 3, HEADER), (2, 2, BODY)]
    listed = failing.imece("failures", "run", "--cause", "0").stdout
    assert listed.startswith("f-7 (1 try): ValueError")
    failing.redis.delete(f"{key}:causes")
    assert told(failing) == [(0, 6, "not known")]
    assert "not known" in failing.imece("status", "run").stdout


@pytest.mark.parametrize(
    "fields",
    [
        {"1:text": b"x" * 20_000},
        {"1:count": b"-1"},
        {"1:count": b"many"},
        {f"more-{number}": b"x" for number in range(2000)},
    ],
)
def test_causes_that_imece_has_not_written_are_refused(
    failing: Workbench, fields: dict[str, bytes]
) -> None:
    process(failing)
    failing.redis.hset(f"{failing.run().key}:causes", mapping=fields)  # type: ignore[arg-type]
    for words in (["failures", "run", "--by-cause"], ["status", "run"]):
        answer = failing.imece(*words)
        assert answer.returncode == 2, answer
        assert "run run cannot be used" in answer.stderr
        assert "Traceback" not in answer.stderr


# What a person sees


def test_failures_by_cause_are_a_table(failing: Workbench) -> None:
    process(failing)
    answer = failing.imece("failures", "run", "--by-cause")
    lines = [re.sub(r":\d\d ", ":NN ", line) for line in answer.stdout.splitlines()]
    assert lines[0].split() == ["CAUSE", "FILES", "WHY", "AN", "EXAMPLE"]
    assert lines[1:] == [
        "    1      3  ValueError in processors_that_fail.py:NN read_header  f-0",
        "    2      2  ValueError in processors_that_fail.py:NN read_body    f-1",
    ]
    assert (
        "first: ValueError: header"
        in failing.imece("failures", "run", "--by-cause", "--full").stdout
    )
    entries = failing.imece("failures", "run", "--by-cause", "--json").stdout.splitlines()
    assert [json.loads(entry)["file"] for entry in entries] == ["f-0", "f-1"]
    listed = failing.imece("failures", "run", "--cause", "2").stdout.splitlines()
    assert [line.partition(" ")[0] for line in listed] == ["f-1", "f-4"]
    for words in (["--cause", "3"], ["--by-cause", "--cause", "1"]):
        answer = failing.imece("failures", "run", *words)
        assert (answer.returncode, answer.stdout) == (2, "")


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_of_causes_keeps_to_its_columns(width: int) -> None:
    found = [
        causes.Cause(
            1, 2_431, "ValueError in convert.py:12 " + "read" * 20, b"d/" * 40 + b"a.csv", ""
        ),
        causes.Cause(2, 12, "exit code 3", b"b.csv", ""),
    ]
    lines = list(display.table_of_causes(found, width))
    assert max(map(len, lines)) == width
    assert lines[1].endswith("d/a.csv")
    assert lines[2].split() == ["2", "12", "exit", "code", "3", "b.csv"]


def test_status_and_summary_show_the_three_commonest_causes(workbench: Workbench) -> None:
    for word, times in {"header": 4, "body": 3, "length": 2, "parse": 1}.items():
        for number in range(times):
            workbench.file(f"{word}-{number}", word)
    workbench.settings["processor"] = "tests.processors_that_fail:by_word"
    process(workbench)
    block = re.sub(r":\d+ ", ":N ", workbench.imece("status", "run").stdout)
    shown = block.partition("  failed\n")[2].splitlines()[:4]
    for line, start in zip(
        shown,
        [
            "        4  ValueError in processors_that_fail.py:N read_header, as header-0: ValueE",
            "        3  ValueError in processors_that_fail.py:N read_body, as body-0: ValueError",
            "        2  WrongLengthError in processors_that_fail.py:N measure, as length-0: ",
            "           1 more cause (1 file)",
        ],
        strict=True,
    ):
        assert line.startswith(start)
    [*_, file] = list(display.failures(workbench.run(), workbench.status(), workbench.folder / "f"))
    assert file.startswith("  all failures")


def test_an_ended_local_run_tells_its_causes(failing: Workbench) -> None:
    del failing.settings["redis_url"]
    paths = (str(failing.source), str(failing.target))
    answer = failing.imece("local", *paths, "--run-id", "here", "--retries", "0", "-j", "1")
    assert answer.returncode == 1
    assert re.search(
        r" 3  ValueError in processors_that_fail.py:\d+ read_header, as f-", answer.stdout
    )
    table = failing.imece("failures", "here", "--by-cause", "--json").stdout.splitlines()
    numbers = {entry["count"]: entry["number"] for entry in map(json.loads, table)}
    assert set(numbers) == {2, 3}
    listed = failing.imece("failures", "here", "--cause", str(numbers[2])).stdout.splitlines()
    assert [line.partition(" ")[0] for line in listed] == ["f-1", "f-4"]
    assert failing.imece("failures", "here", "--cause", "7").returncode == 2


@pytest.mark.slow
def test_twenty_thousand_failures_are_told_by_cause_at_once(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue()
    key = workbench.run().key
    record = Failure("Traceback\n" * 50, 3, 1.0, "w", cause="exit code 1").encode()
    names = [f"folder/f-{number}" for number in range(20_000)]
    for start in range(0, 20_000, 1000):
        workbench.redis.hset(
            f"{key}:failures", mapping=dict.fromkeys(names[start : start + 1000], record)
        )
    texts = {"last": "1", "=exit code 1": "1", "1:text": "exit code 1", "1:count": "20000"}
    workbench.redis.hset(f"{key}:causes", mapping=texts)  # type: ignore[arg-type]
    took = min(duration(workbench.run().causes) for _ in range(3))
    assert took < 0.1
    assert workbench.imece("failures", "run", "--by-cause").stdout.split()[-2:] == ["code", "1"]
    assert len(workbench.imece("failures", "run", "--cause", "1").stdout.splitlines()) == 20_000


def duration(call: Callable[[], Any]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_causes_that_have_no_files_any_more_are_not_shown(failing: Workbench) -> None:
    process(failing)
    for name in failing.source.iterdir():
        name.write_text("fine")
    for number in ("1", "2"):
        assert failing.imece("retry", "run", "--cause", number).returncode == 0
        failing.ended()
    assert told(failing) == [(1, 0, HEADER), (2, 0, BODY)]
    answer = failing.imece("failures", "run", "--by-cause")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "no file has failed\n")
    assert failing.status().summary()["causes"] == []
    assert "  failed" not in failing.imece("status", "run").stdout


def test_names_that_are_not_utf8_come_back(failing: Workbench) -> None:
    (failing.source / os.fsdecode(b"\xff")).write_text("header")
    process(failing, include=[os.fsdecode(b"\xff")])
    [one] = failing.run().causes()
    assert one.file == b"\xff"
    assert causes.Cause.of_entry(json.loads(json.dumps(one.entry()))) == one
