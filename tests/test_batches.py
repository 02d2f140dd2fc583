"""The promise: a class may get several files at a time; a file that fails, crashes or hangs fails
alone, and everything else counts."""

import signal
from pathlib import Path

import pytest

from tests.conftest import Workbench, until
from tests.test_classes import HERE, life, words  # noqa: F401 - a fixture
from tests.test_set import worker_says


@pytest.fixture
def batched(workbench: Workbench, life: Path) -> Workbench:  # noqa: F811
    """A run of sixteen files will be processed eight at a time."""
    workbench.files(16, b"fine")
    workbench.settings["processor"] = f"{HERE}:Batched"
    workbench.settings["batch"] = "8"
    workbench.settings["retries"] = "0"
    return workbench


def sizes(batched: Workbench) -> list[int]:
    """How many files each call got."""
    return [int(word) for word in words(batched.folder / "life")]


def enqueue(batched: Workbench, timeout: float | None = None, target: str | None = None) -> None:
    batched.enqueue(
        buckets=1, files_per_job=100, timeout=timeout, target=target or str(batched.target)
    )


def test_files_come_in_batches(batched: Workbench) -> None:
    batched.file("z-last", "fine")
    names = sorted(path.name for path in batched.source.iterdir())
    enqueue(batched)
    batched.worker()
    assert batched.ended().done == 17
    assert sizes(batched) == [8, 8, 1]
    assert batched.outputs() == names
    assert {(batched.target / name).read_text() for name in names} == {"fine"}
    assert batched.check_books().bytes_out == 17 * 4


def test_files_of_one_name_in_many_directories_may_be_in_one_batch(batched: Workbench) -> None:
    """More directories than are held open."""
    for number in range(40):
        batched.file(f"d-{number:02d}/same", f"content {number}")
    batched.settings["batch"] = "50"
    enqueue(batched)
    batched.worker()
    assert batched.ended().done == 56
    for number in range(40):
        assert (batched.target / f"d-{number:02d}" / "same").read_text() == f"content {number}"
    batched.check_books()


def test_a_bad_file_is_found_by_halves_and_everything_else_counts(batched: Workbench) -> None:
    batched.file("f-0002.txt", "fail")
    enqueue(batched)
    batched.worker()
    now = batched.ended()
    assert (now.done, now.failed) == (15, 1)
    assert sizes(batched) == [8, 4, 2, 2, 1, 1, 4, 8]
    failure = batched.failures()["f-0002.txt"]
    assert (failure.last_line, failure.tries) == ("ValueError: as asked", 1)
    assert failure.output == "a batch of 1"
    batched.check_books()


def test_a_file_without_output_fails_alone(batched: Workbench) -> None:
    batched.file("f-0002.txt", "no-output")
    enqueue(batched)
    batched.worker()
    assert batched.ended().done == 15
    assert sizes(batched) == [8, 1, 8]
    assert list(batched.failures()) == ["f-0002.txt"]
    assert batched.status().retried == 0
    batched.check_books()


def test_an_input_that_changes_meanwhile_is_processed_again(batched: Workbench) -> None:
    batched.file("f-0002.txt", "touch")
    enqueue(batched)
    batched.worker()
    assert batched.ended().done == 16
    assert (batched.target / "f-0002.txt").read_text() == "touched"
    batched.check_books()


def test_a_file_that_is_gone_fails_alone(batched: Workbench) -> None:
    enqueue(batched)
    (batched.source / "f-0002.txt").unlink()
    batched.worker()
    assert batched.ended().done == 15
    assert sizes(batched) == [7, 8]
    assert "no longer there" in batched.failures()["f-0002.txt"].reason
    batched.check_books()


def test_a_file_that_crashes_its_process_is_found_one_by_one(batched: Workbench) -> None:
    batched.file("f-0002.txt", "segfault")
    enqueue(batched)
    batched.worker()
    now = batched.ended()
    assert (now.done, now.failed) == (15, 1)
    assert "SIGSEGV" in batched.failures()["f-0002.txt"].reason
    assert sizes(batched) == [8, *[1] * 8, 8]
    batched.check_books()


def test_a_batch_has_the_time_of_all_its_files(batched: Workbench) -> None:
    """Together; and one that hangs is found, as one that crashes."""
    for number in range(3):
        batched.file(f"f-{number:04d}.txt", "sleep 0.4")
    batched.file("f-0009.txt", "hang")
    enqueue(batched, timeout=1.0)
    batched.worker()
    now = batched.ended(timeout=60)
    assert (now.done, now.failed) == (15, 1)
    assert "took longer than its limit of 1 s" in batched.failures()["f-0009.txt"].reason
    assert sizes(batched)[:2] == [8, 8]
    batched.check_books()


def test_a_worker_that_is_killed_leaves_its_batch_to_the_next(batched: Workbench) -> None:
    """Which tries the files one by one: nobody knows which it was."""
    batched.file("f-0002.txt", "sleep 60")
    enqueue(batched)
    first = batched.worker()
    until(lambda: sizes(batched) == [8], "a batch to be begun")
    batched.file("f-0002.txt", "fine")
    first.kill(signal.SIGKILL)
    batched.worker()
    assert batched.ended().done == 16
    assert sizes(batched) == [8, *[1] * 16]
    batched.check_books()


def test_a_worker_that_is_stopped_finishes_its_batch(batched: Workbench) -> None:
    batched.file("f-0002.txt", "sleep 1")
    enqueue(batched)
    worker = batched.worker()
    until(lambda: sizes(batched) == [8], "a batch to be begun")
    assert worker.stop() == 0
    now = batched.check_books()
    assert (now.done, now.left) == (8, 8)


def test_what_is_current_is_in_no_batch(batched: Workbench) -> None:
    enqueue(batched)
    batched.worker()
    batched.ended()
    (batched.target / "f-0002.txt").unlink()
    (batched.target / "f-0004.txt").unlink()
    enqueue(batched)
    until(lambda: batched.status().round == 2, "the next round")
    now = batched.ended()
    assert (now.done, now.skipped) == (2, 14)
    assert sizes(batched) == [8, 8, 2]


def test_a_run_without_outputs_has_batches_too(batched: Workbench) -> None:
    batched.settings["processor"] = f"{HERE}:Notes"
    enqueue(batched, target="-")
    batched.worker()
    assert batched.ended().done == 16
    assert words(batched.folder / "life") == ["8", "8"]


def test_files_that_a_batch_has_closed_harm_nothing(batched: Workbench) -> None:
    batched.settings["processor"] = f"{HERE}:BatchedAndClosing"
    batched.file("f-0002.txt", "close")
    enqueue(batched)
    batched.worker()
    assert batched.ended().done == 16
    batched.check_books()


def test_without_a_setting_it_gets_one_file_at_a_time(batched: Workbench) -> None:
    del batched.settings["batch"]
    enqueue(batched)
    batched.worker()
    assert batched.ended().done == 16
    assert sizes(batched) == [1] * 16


def test_a_local_run_has_the_option(batched: Workbench) -> None:
    del batched.settings["redis_url"], batched.settings["batch"]
    call = ["local", str(batched.source), str(batched.target), "-j", "1", "--batch", "16"]
    answer = batched.imece(*call, "--buckets", "1", "--files-per-job", "100")
    assert answer.returncode == 0, answer
    assert sizes(batched) == [16]


@pytest.mark.parametrize(
    ("processor", "says"),
    [
        (f"{HERE}:Model", "has no method process_batch(self, pairs)"),
        ("tests.processors:copy", "is no class with a method process_batch"),
    ],
)
def test_what_takes_no_batches_is_told(processor: str, says: str) -> None:
    code, told = worker_says("--check", "--processor", processor, "--batch", "4")
    assert (code, f"IMECE_BATCH: {processor} {says}" in told) == (2, True), told
    code, told = worker_says("--check", "--command", "cp {input} {output}", "--batch", "4")
    assert "IMECE_BATCH needs a class as IMECE_PROCESSOR" in told
