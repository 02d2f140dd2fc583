"""The promise: any file, whatever its name and whatever happens to it meanwhile, comes out right,
or fails with the reason."""

import os
import time
from pathlib import Path

import pytest

from imece.errors import ListingError
from imece.files import signature
from imece.run.store import Run
from tests import obstacles
from tests.conftest import Workbench, until

ODD_NAMES = [
    b"new\nline",
    b"-rf",
    b"--help.txt",
    b"with space and 'quotes' \"double\"",
    b"$(touch canary)",
    b"; touch canary;",
    b"`touch canary`",
    b"a&b|c>d<e",
    b"{input}{output}",
    b"%s%n{0}\\x",
    b"\xff\xfe not UTF-8",
    "çok güzel \N{GRINNING FACE}".encode(),
    b"\x1b[31mred\r\x07",
    b"x" * 255,
    b"y" * 250 + b".txt",
    b"*",
    b"~",
    b"#",
    b"dir with\nnewline/-f \xff",
    b"deep/" * 20 + b"file",
]


def make(root: Path, names: list[bytes]) -> None:
    for name in names:
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content of " + name)


def outputs(workbench: Workbench) -> dict[bytes, bytes]:
    return {
        os.fsencode(name): (workbench.target / name).read_bytes() for name in workbench.outputs()
    }


@pytest.mark.parametrize(
    "how",
    [{"processor": "tests.processors:copy"}, {"command": "cp {input} {output}"}],
    ids=["function", "command"],
)
def test_any_name_the_file_system_allows_comes_out_unchanged(
    workbench: Workbench, how: dict[str, str]
) -> None:
    make(workbench.source, ODD_NAMES)
    del workbench.settings["processor"]
    workbench.settings |= how
    workbench.enqueue(buckets=3)
    workbench.worker(log_format="json")
    now = workbench.ended()
    assert now.state == "done", workbench.failures()
    assert outputs(workbench) == {name: b"content of " + name for name in ODD_NAMES}
    assert workbench.check_books().done == len(ODD_NAMES)
    assert not list(workbench.folder.rglob("canary"))
    assert workbench.leaves_nothing_behind()


def test_odd_names_of_failed_files_are_kept_byte_for_byte(workbench: Workbench) -> None:
    make(workbench.source, ODD_NAMES)
    for name in ODD_NAMES:
        Path(os.fsdecode(os.fsencode(workbench.source) + b"/" + name)).write_text("raise no")
    workbench.enqueue(buckets=1, retries=0)
    worker = workbench.worker(processor="tests.processors:by_content", log_format="json")
    assert workbench.ended().state == "failed"
    assert {os.fsencode(name) for name in workbench.failures()} == set(ODD_NAMES)
    workbench.check_books()
    assert worker.events("job finished")


def test_a_file_that_crashes_is_logged_on_one_line_whatever_its_name(workbench: Workbench) -> None:
    make(workbench.source, [b"a\nb\r\x1b[2Jc\xff"])
    Path(os.fsdecode(os.fsencode(workbench.source) + b"/a\nb\r\x1b[2Jc\xff")).write_text("exit 1")
    workbench.enqueue(retries=0)
    worker = workbench.worker(processor="tests.processors:by_content")
    assert workbench.ended().state == "failed"
    [line] = [line for line in worker.log().split("\n") if "file killed its process" in line]
    assert line.isprintable()
    assert r"file=a\nb\r\x1b[2Jc\xff" in line


def test_inputs_that_vanish_before_their_turn_fail_and_the_others_are_done(
    workbench: Workbench,
) -> None:
    names = workbench.files(20)
    workbench.enqueue(buckets=1)
    for name in names[5:10]:
        (workbench.source / name).unlink()
    workbench.worker()
    assert workbench.ended().state == "failed"
    failures = workbench.failures()
    assert sorted(failures) == names[5:10]
    assert {failure.last_line for failure in failures.values()} == {"the input is no longer there"}
    assert {failure.tries for failure in failures.values()} == {2}
    assert workbench.check_books().done == 15


def test_an_input_that_comes_back_is_done_at_the_next_try(workbench: Workbench) -> None:
    workbench.file("f")
    workbench.enqueue(retries=100)
    (workbench.source / "f").unlink()
    workbench.worker()
    until(lambda: workbench.status().retried, "the first try to fail")
    workbench.file("f")
    assert workbench.ended().state == "done"
    assert workbench.check_books().done == 1


def test_an_input_that_changes_while_it_is_processed_is_not_taken_for_done(
    workbench: Workbench,
) -> None:
    workbench.file("f")
    workbench.enqueue(retries=1)
    workbench.worker(processor="tests.processors:touch_input")
    assert workbench.ended().state == "failed"
    assert workbench.failures()["f"].last_line == "the input changed while it was processed"
    assert workbench.check_books().failed == 1


def test_a_processor_may_consume_its_input(workbench: Workbench) -> None:
    names = workbench.files(10)
    workbench.enqueue(buckets=1)
    workbench.worker(processor="tests.processors:consume")
    assert workbench.ended().state == "done"
    assert workbench.outputs() == names
    assert list(workbench.source.iterdir()) == []
    assert workbench.check_books().done == 10


def test_an_input_that_became_something_else_is_not_read(workbench: Workbench) -> None:
    for name in ("pipe", "folder", "fine"):
        workbench.file(name)
    workbench.enqueue(buckets=1, retries=0)
    (workbench.source / "pipe").unlink()
    os.mkfifo(workbench.source / "pipe")  # to read it would hang
    (workbench.source / "folder").unlink()
    (workbench.source / "folder").mkdir()
    workbench.worker()
    assert workbench.ended().state == "failed"
    causes = {name: failure.last_line for name, failure in workbench.failures().items()}
    assert causes == dict.fromkeys(("folder", "pipe"), "the input is not a regular file")
    assert workbench.check_books().done == 1


def test_outputs_newer_than_their_inputs_are_skipped_and_counted(workbench: Workbench) -> None:
    names = workbench.files(10)
    workbench.target.mkdir()
    for name in names[:4]:
        (workbench.target / name).write_text("made before")
    for name in names[4:6]:
        older = workbench.target / name
        older.write_text("made before, and its input has changed since")
        os.utime(older, (0, 0))
    workbench.enqueue(buckets=1)
    workbench.worker()
    assert workbench.ended().state == "done"
    now = workbench.check_books()
    assert (now.done, now.skipped) == (6, 4)
    assert {(workbench.target / name).read_text() for name in names[:4]} == {"made before"}
    assert [(workbench.target / name).read_text() for name in names[4:]] == names[4:]


def test_a_second_run_over_the_same_folder_has_nothing_to_do(workbench: Workbench) -> None:
    workbench.files(20)
    workbench.enqueue("first")
    workbench.worker()
    assert workbench.ended("first").done == 20
    workbench.enqueue("second")
    assert workbench.ended("second").skipped == 20
    workbench.check_books("second")


def test_with_overwrite_every_file_is_processed_whatever_is_there(workbench: Workbench) -> None:
    names = workbench.files(10)
    workbench.target.mkdir()
    for name in names[:4]:
        (workbench.target / name).write_text("made before")
    workbench.enqueue(buckets=1, overwrite=True)
    workbench.worker()
    assert workbench.ended().state == "done"
    now = workbench.check_books()
    assert (now.done, now.skipped) == (10, 0)
    assert [(workbench.target / name).read_text() for name in names] == names


def test_a_suffix_takes_the_place_of_the_inputs_ending(workbench: Workbench) -> None:
    for name in ("a.txt", "b.tar.gz", "noending", "sub/c.csv"):
        workbench.file(name)
    workbench.enqueue(suffix=".json")
    workbench.worker()
    assert workbench.ended().state == "done"
    assert workbench.outputs() == ["a.json", "b.tar.json", "noending.json", "sub/c.json"]
    workbench.check_books()


def test_a_suffix_that_makes_a_name_too_long_is_refused(workbench: Workbench) -> None:
    workbench.file("d/" + "n" * 250)
    with pytest.raises(ListingError, match="more than 255 bytes: take a shorter --suffix"):
        workbench.enqueue(suffix=".measured")
    assert workbench.enqueue(suffix=".json").plan


def test_without_outputs_everything_is_done_and_nothing_is_written(workbench: Workbench) -> None:
    workbench.files(50)
    workbench.enqueue(target="-")
    workbench.worker(processor="tests.processors:nothing")
    assert workbench.ended().state == "done"
    now = workbench.status()
    assert (now.done, now.skipped, now.bytes_out) == (50, 0, 0)
    assert now.bytes_in == 50 * len("f-0000.txt")
    assert not workbench.target.exists()
    assert workbench.leaves_nothing_behind()


def test_an_output_may_be_a_directory(workbench: Workbench) -> None:
    names = workbench.files(5)
    workbench.enqueue()
    workbench.worker(processor="tests.processors:directory")
    assert workbench.ended().state == "done"
    assert workbench.outputs() == [f"{name}/part-1" for name in names]
    assert workbench.check_books().done == 5


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_directory_takes_the_place_of_its_older_version_whole(
    workbench: Workbench, overwrite: bool
) -> None:
    """Its input has changed since, or it is to be overwritten."""
    names = workbench.files(3)
    workbench.settings["processor"] = "tests.processors:directory"
    workbench.enqueue("first")
    workbench.worker()
    assert workbench.ended("first").done == 3
    for name in names:
        (workbench.target / name / "part-2").write_text("older")
        if not overwrite:
            later = time.time() + 10
            (workbench.source / name).write_text("changed")
            os.utime(workbench.source / name, (later, later))
    workbench.enqueue("second", overwrite=overwrite)
    assert workbench.ended("second").done == 3
    assert workbench.outputs() == [f"{name}/part-1" for name in names]
    expected = names if overwrite else ["changed"] * 3
    assert [(workbench.target / name / "part-1").read_text() for name in names] == expected
    assert workbench.check_books("second").done == 3


def test_a_directory_is_known_as_an_output_without_extended_attributes(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    parent = os.open(tmp_path, os.O_RDONLY)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("setxattr", "getxattr"):
            patch.delattr(os, name)
        assert not signature.is_signed(parent, b"made", b"d/output")
        signature.sign(parent, b"made", b"d/output")
        assert signature.is_signed(parent, b"made", b"d/output")
        assert not signature.is_signed(parent, b"made", b"d/another")
    os.close(parent)


def a_users_directory(workbench: Workbench) -> Path:
    """Where an output goes; older than the input."""
    theirs = workbench.target / "f"
    theirs.mkdir(parents=True)
    (theirs / "precious").write_text("precious")
    os.utime(theirs, (0, 0))
    return theirs


@pytest.mark.parametrize(
    ("processor", "overwrite"), [("copy", False), ("copy", True), ("directory", False)]
)
def test_a_directory_that_imece_has_not_made_is_never_removed(
    workbench: Workbench, processor: str, overwrite: bool
) -> None:
    workbench.file("f")
    workbench.file("g")
    theirs = a_users_directory(workbench)
    workbench.enqueue(retries=1, overwrite=overwrite)
    workbench.worker(processor=f"tests.processors:{processor}")
    assert workbench.ended().state == "failed"
    [(name, failure)] = workbench.failures().items()
    assert name == "f"
    assert f"{theirs} is in the way: a directory that imece has not made" in failure.last_line
    assert "Move it away, then: imece retry RUN" in failure.last_line
    assert (theirs / "precious").read_text() == "precious"
    assert workbench.temporaries() == []
    assert workbench.status().done == 1


@pytest.mark.parametrize("age", ["newer", "older"])
def test_what_imece_has_not_made_is_no_output(workbench: Workbench, age: str) -> None:
    before = obstacles.put(workbench.target)
    for name in (*before, "fine", "current"):
        workbench.file(name)
        if age == "older":
            later = time.time() + 100
            os.utime(workbench.source / name, (later, later))
    workbench.file("current")
    (workbench.target / "current").write_text("made before")
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker()
    now = workbench.ended()
    assert (now.state, now.done, now.skipped, now.failed) == ("failed", 1, 1, len(before))
    for name, failure in workbench.failures().items():
        what = obstacles.KINDS[name][1]
        assert f"{workbench.target / name} is in the way: {what}. Move it away" in failure.last_line
    assert obstacles.are_untouched(workbench.target, before)
    assert workbench.temporaries() == []


def test_what_comes_in_the_way_while_a_file_is_processed_is_not_removed(
    workbench: Workbench,
) -> None:
    go = workbench.folder / "go"
    for name in ("a", *obstacles.KINDS):
        workbench.file(name, f"wait-for {go}")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker().runner()
    before = obstacles.put(workbench.target)
    go.touch()
    now = workbench.ended()
    assert (now.done, now.skipped, now.failed) == (1, 0, len(before))
    assert all("is in the way" in why.last_line for why in workbench.failures().values())
    assert obstacles.are_untouched(workbench.target, before)


def test_with_overwrite_a_link_is_replaced_and_nothing_else_that_is_no_file(
    workbench: Workbench,
) -> None:
    before = obstacles.put(workbench.target)
    for name in before:
        workbench.file(name)
    workbench.enqueue(buckets=1, retries=0, overwrite=True)
    workbench.worker()
    assert workbench.ended().done == 2
    assert sorted(workbench.failures()) == ["directory", "pipe", "socket"]
    for link in ("link", "dangling"):
        del before[link]
        assert (workbench.target / link).read_text() == "content"
    assert (workbench.target / "linked").read_text() == "precious"
    assert obstacles.are_untouched(workbench.target, before)


def test_a_file_is_processed_again_when_what_is_in_its_way_is_gone(workbench: Workbench) -> None:
    workbench.file("f")
    (workbench.target / "f").mkdir(parents=True)
    workbench.enqueue(retries=0)
    workbench.worker()
    assert workbench.ended().state == "failed"
    (workbench.target / "f").rmdir()
    assert workbench.imece("retry", "run").returncode == 0
    until(lambda: workbench.status().state == "done", "the retry to be done")
    assert workbench.check_books().done == 1


@pytest.mark.parametrize("attributes", [True, False])
def test_a_directory_output_is_current_until_somebody_empties_it(
    workbench: Workbench, attributes: bool
) -> None:
    """One that had nothing in it when it was made is current as it is."""
    workbench.files(3)
    module = "tests.processors" if attributes else "tests.processors_without_attributes"
    workbench.settings["processor"] = f"{module}:directory"
    workbench.file("empty", "")
    workbench.enqueue("first")
    workbench.worker()
    assert workbench.ended("first").done == 4
    workbench.enqueue("second")
    assert workbench.ended("second").skipped == 4
    (workbench.target / "f-0001.txt" / "part-1").unlink()
    workbench.enqueue("third")
    now = workbench.ended("third")
    assert (now.done, now.skipped) == (1, 3)
    assert (workbench.target / "f-0001.txt" / "part-1").read_text() == "f-0001.txt"


def test_with_overwrite_a_directory_takes_the_place_of_any_directory(workbench: Workbench) -> None:
    workbench.file("f")
    a_users_directory(workbench)
    workbench.enqueue(overwrite=True)
    workbench.worker(processor="tests.processors:directory")
    assert workbench.ended().state == "done"
    assert workbench.outputs() == ["f/part-1"]
    assert workbench.check_books().done == 1


def test_an_output_that_was_a_directory_may_become_a_file_and_back(workbench: Workbench) -> None:
    workbench.file("f")
    for number, processor in enumerate(("directory", "copy", "directory")):
        workbench.enqueue(f"run-{number}", overwrite=True)
        worker = workbench.worker(processor=f"tests.processors:{processor}")
        assert workbench.ended(f"run-{number}").state == "done"
        assert workbench.outputs() == ["f" if processor == "copy" else "f/part-1"]
        workbench.check_books(f"run-{number}")
        worker.stop()


def test_no_half_written_output_is_ever_seen(workbench: Workbench) -> None:
    """Somebody watches the output directory while files are written in two halves."""
    names = workbench.files(30)
    whole = {name: name.encode() for name in names}
    workbench.enqueue(buckets=2)
    workbench.worker(processor="tests.processors:slow")
    seen = 0
    while not workbench.status().has_ended:
        if not workbench.target.exists():
            continue
        for path in workbench.target.glob("f-*"):
            assert path.read_bytes() == whole[path.name]
            seen += 1
        time.sleep(0.005)
    assert seen > 30
    assert workbench.check_books().done == 30


def test_outputs_that_came_while_a_run_was_cancelled_are_skipped(workbench: Workbench) -> None:
    names = workbench.files(40)
    workbench.settings["processor"] = "tests.processors:slow"
    workbench.enqueue(buckets=1, files_per_job=10)
    worker = workbench.worker()
    until(lambda: workbench.status().done >= 11, "the second job to be begun")
    Run(workbench.redis, "imece", "run").cancel(600)
    worker.stop()
    assert workbench.status().state == "cancelled"
    for name in names:
        if not (workbench.target / name).exists():
            (workbench.target / name).write_text("by hand")
    assert workbench.enqueue(buckets=1, files_per_job=10).how == "resumed"
    workbench.worker()
    assert workbench.ended().skipped == 40
    workbench.check_books()
