"""The promise: nothing is read or written outside the run's two directories; a place that cannot be
used is a reason that is told, and the work waits for it."""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Workbench, WorkerProcess, until
from tests.forks import without_roots_powers

MIB = 2**20


@pytest.fixture
def workbench(workbench: Workbench) -> Iterator[Workbench]:
    yield workbench
    for path in [workbench.folder, *workbench.folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


def gives_back(workbench: Workbench, blocking_reason: str) -> None:
    """Waits until a worker has said why it can do nothing, and given the job back."""
    until(lambda: workbench.status().blocking_reason, "trouble to be told")
    assert blocking_reason in str(workbench.status().blocking_reason)
    until(lambda: workbench.status().backlog.in_flight == 0, "the job back")
    now = workbench.status()
    assert (now.done, now.failed, now.retried) == (0, 0, 0)
    assert now.backlog.in_flight == 0


def test_an_output_directory_that_cannot_be_listed_is_written_to(workbench: Workbench) -> None:
    names = workbench.files(3)
    workbench.target.mkdir()
    workbench.target.chmod(0o333)
    workbench.enqueue()
    workbench.worker(before=without_roots_powers)
    assert workbench.ended().done == 3
    workbench.target.chmod(0o755)
    assert workbench.outputs() == names


def test_an_output_directory_that_cannot_be_written_to_costs_no_file_a_try(
    workbench: Workbench,
) -> None:
    names = workbench.files(10)
    workbench.target.mkdir()
    workbench.target.chmod(0o555)
    workbench.enqueue(buckets=2)
    worker = workbench.worker(before=without_roots_powers, log_format="json")
    gives_back(workbench, "cannot be written to")
    assert worker.events("job stalled")
    workbench.target.chmod(0o755)
    workbench.worker()  # at once; the first one would look again after a pause
    assert workbench.ended().state == "done"
    assert workbench.status().blocking_reason is None
    assert workbench.outputs() == names
    assert workbench.check_books().done == 10
    assert workbench.leaves_nothing_behind()


def test_an_output_directory_that_cannot_be_made_costs_no_file_a_try(workbench: Workbench) -> None:
    workbench.files(10)
    parent = workbench.folder / "parent"
    parent.mkdir()
    parent.chmod(0o555)
    workbench.target = parent / "out"
    workbench.enqueue(buckets=2)
    workbench.worker(before=without_roots_powers)
    gives_back(workbench, "Permission denied")
    parent.chmod(0o755)
    workbench.worker()
    assert workbench.ended().state == "done"
    assert workbench.check_books().done == 10


def test_an_input_directory_that_this_worker_does_not_see_costs_no_file_a_try(
    workbench: Workbench,
) -> None:
    """A volume that is not mounted here; another worker, that has it, does the work."""
    workbench.files(10)
    workbench.enqueue(buckets=2)
    workbench.worker(input=str(workbench.folder / "not mounted"))
    gives_back(workbench, "is not there")
    workbench.worker()
    assert workbench.ended().state == "done"
    assert workbench.check_books().done == 10


def test_an_input_directory_that_cannot_be_read_costs_no_file_a_try(workbench: Workbench) -> None:
    workbench.files(10)
    workbench.enqueue(buckets=2)
    workbench.source.chmod(0o000)
    workbench.worker(before=without_roots_powers)
    gives_back(workbench, "cannot be read")
    workbench.source.chmod(0o755)
    workbench.worker()
    assert workbench.ended().state == "done"
    assert workbench.check_books().done == 10


def test_a_worker_may_see_the_directories_under_other_paths(workbench: Workbench) -> None:
    names = workbench.files(10)
    workbench.enqueue()
    source = workbench.source.rename(workbench.folder / "mounted-in")
    workbench.worker(input=str(source), output=str(workbench.folder / "mounted-out"))
    assert workbench.ended().state == "done"
    workbench.target = workbench.folder / "mounted-out"
    assert workbench.outputs() == names
    workbench.check_books()


def test_a_file_that_cannot_be_read_fails_alone(workbench: Workbench) -> None:
    workbench.files(5)
    (workbench.source / "f-0002.txt").chmod(0o000)
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker(before=without_roots_powers)
    assert workbench.ended().state == "failed"
    [(name, failure)] = workbench.failures().items()
    assert name == "f-0002.txt"
    assert failure.last_line.startswith("PermissionError")
    assert workbench.check_books().done == 4


def test_a_directory_among_the_outputs_that_cannot_be_written_to_is_the_files_reason(
    workbench: Workbench,
) -> None:
    workbench.file("fine/f")
    workbench.file("closed/f")
    (workbench.target / "closed").mkdir(parents=True)
    (workbench.target / "closed").chmod(0o555)
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker(before=without_roots_powers)
    assert workbench.ended().state == "failed"
    assert workbench.outputs() == ["fine/f"]
    [(name, failure)] = workbench.failures().items()
    assert name == "closed/f"
    assert "Permission denied" in failure.reason
    workbench.check_books()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MIB}", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    """As root of the file system: a worker that writes at this moment makes it busy."""
    mount = ["mount", "-o", f"remount,{options}", str(path)]
    until(lambda: subprocess.run(mount, capture_output=True, check=False).returncode == 0, "mount")


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB))


@pytest.mark.slow
def test_a_file_too_large_for_the_limit_fails_leaves_no_half_and_a_retry_mends_it(
    workbench: Workbench, tmp_path: Path
) -> None:
    """A limit on the size of files ends a write in its middle, and the place has room."""
    for number in range(4):
        (workbench.source / f"small-{number}").write_bytes(b"x" * 1000)
    (workbench.source / "large").write_bytes(b"x" * 9 * MIB)
    workbench.enqueue(buckets=1, retries=1)
    worker = workbench.worker(before=limit_file_size)
    assert workbench.ended().state == "failed"
    [(name, failure)] = workbench.failures().items()
    assert (name, failure.tries) == ("large", 2)
    assert "File too large" in failure.last_line
    now = workbench.check_books()
    assert (now.done, now.failed) == (4, 1)
    assert worker.stop() == 0

    assert workbench.imece("retry", "run").returncode == 0
    workbench.worker()
    until(lambda: workbench.status().state == "done", "the retry to be done")
    assert workbench.check_books(others=4).done == 1
    assert (workbench.target / "large").stat().st_size == 9 * MIB
    assert workbench.leaves_nothing_behind()


def stalled(worker: WorkerProcess, said: str) -> bool:
    """Whether a worker has given a job back for its directories, and said so."""
    events = worker.events("directories cannot be used")
    return any(said in event["reason"] for event in events)


@pytest.mark.parametrize(
    "how",
    [{"processor": "tests.processors:copy"}, {"command": "cp {input} {output}"}],
    ids=["function", "command"],
)
def test_a_full_disk_costs_no_file_a_try(
    workbench: Workbench, small_disk: Path, how: dict[str, str]
) -> None:
    workbench.target = small_disk / "out"
    for number in range(10):
        (workbench.source / f"large-{number}").write_bytes(b"x" * 2 * MIB)
    del workbench.settings["processor"]
    workbench.enqueue(buckets=2, retries=0)
    worker = workbench.worker(log_format="json", **how)
    until(lambda: stalled(worker, f"{workbench.target} is full"), "the disk to be full")
    until(lambda: len(worker.events("job stalled")) >= 2, "the job to be given back again")
    now = workbench.status()
    assert (now.done, now.failed, now.retried) == (0, 0, 0)
    remount(small_disk, f"size={64 * MIB}")
    assert workbench.ended().state == "done"
    now = workbench.check_books()
    assert (now.done, now.failed, now.retried) == (10, 0, 0)
    assert workbench.leaves_nothing_behind()


def test_a_disk_that_is_read_only_for_a_while_costs_no_file_a_try(
    workbench: Workbench, small_disk: Path
) -> None:
    workbench.target = small_disk / "out"
    workbench.files(20)
    gate = workbench.folder / "gate"
    workbench.file("f-0010.txt", f"wait-for {gate}")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, files_per_job=10, retries=0)
    worker = workbench.worker(log_format="json")
    until(lambda: workbench.status().done == 10, "half of the files to be done")
    remount(small_disk, "ro")  # nobody writes at this moment
    gate.touch()
    until(lambda: stalled(worker, f"{workbench.target} is read-only"), "the fault to be told")
    before = workbench.status()
    assert (before.failed, before.retried) == (0, 0)
    assert before.left > 0
    remount(small_disk, "rw")
    assert workbench.ended().state == "done"
    now = workbench.check_books()
    assert (now.done + now.skipped, now.failed, now.retried) == (20, 0, 0)
    assert workbench.leaves_nothing_behind()


@pytest.mark.parametrize("victim", ["source", "target"])
def test_a_directory_that_goes_away_while_a_job_is_on_costs_no_file_a_try(
    workbench: Workbench, victim: str
) -> None:
    workbench.files(60)
    workbench.settings["processor"] = "tests.processors:slow"
    workbench.enqueue(buckets=1, retries=0)
    worker = workbench.worker(log_format="json")
    until(lambda: workbench.status().done >= 3, "files to be done")
    runner = worker.runner()
    place: Path = getattr(workbench, victim)
    away = workbench.folder / "away"
    shutil.copytree(place, away, ignore=shutil.ignore_patterns(".imece-*"))
    os.kill(runner, signal.SIGSTOP)  # for it the directory goes with all that is in it
    shutil.rmtree(place, ignore_errors=True)
    os.kill(runner, signal.SIGCONT)
    until(lambda: stalled(worker, f"{place} is gone"), "the fault to be told")
    assert (workbench.status().failed, workbench.status().retried) == (0, 0)
    if victim == "source":
        away.rename(place)
    assert workbench.ended().state == "done"
    assert workbench.status().failed == 0


def move_away(workbench: Workbench, number: int) -> tuple[Path, int]:
    """Moves OUT away as a whole; where it is, and when it was gone."""
    away = workbench.folder / f"away-{number}"
    workbench.target.rename(away)
    return away, time.time_ns()


def put_in_time(away: Path, gone: int) -> set[str]:
    """The outputs that were in their places before their directory was moved away."""
    found = [path for path in away.glob("f-*") if path.lstat().st_ctime_ns <= gone]
    return {path.name for path in found}


@pytest.mark.slow
def test_an_output_that_was_moved_away_before_it_was_in_its_place_is_made_again(
    workbench: Workbench,
) -> None:
    names = workbench.files(4000)
    workbench.enqueue(buckets=1, files_per_job=4000, retries=0)
    workbench.worker()
    in_place: set[str] = set()
    for number in range(2):
        until(lambda: len(workbench.outputs()) > 100, "some outputs")
        in_place |= put_in_time(*move_away(workbench, number))
        until(workbench.target.exists, "the job to be begun again")
    now = workbench.ended()
    assert (now.done, now.failed, now.skipped) == (4000, 0, 0)
    assert sorted(set(names) - in_place - set(workbench.outputs())) == []


def test_no_output_is_done_that_was_moved_away_with_its_directory(workbench: Workbench) -> None:
    """The runner dies between the rename and its word, and OUT is moved away meanwhile."""
    workbench.file("f", f"move-the-directory-and-die {workbench.folder / 'away'}")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(retries=1)
    workbench.worker()
    assert workbench.ended().done == 1
    assert (workbench.folder / "away" / "f").exists()
    assert workbench.outputs() == ["f"]


def test_a_link_swapped_in_after_listing_leads_nowhere(workbench: Workbench) -> None:
    secret = workbench.folder / "secret"
    secret.write_text("secret")
    names = workbench.files(5)
    workbench.enqueue(buckets=1, retries=0)
    (workbench.source / names[2]).unlink()
    (workbench.source / names[2]).symlink_to(secret)
    (workbench.source / names[3]).unlink()
    (workbench.source / names[3]).symlink_to(names[0])
    workbench.worker()
    assert workbench.ended().state == "failed"
    [(name, failure)] = workbench.failures().items()
    assert name == names[2]
    assert "a link leads it out of" in failure.last_line
    assert workbench.outputs() == [names[0], names[1], names[3], names[4]]
    assert all("secret" not in path.read_text() for path in workbench.target.glob("f-*"))
    workbench.check_books()


def test_a_directory_of_inputs_swapped_for_a_link_leads_nowhere(workbench: Workbench) -> None:
    elsewhere = workbench.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "f").write_text("secret")
    workbench.file("sub/f")
    workbench.file("fine")
    workbench.enqueue(buckets=1, retries=0)
    (workbench.source / "sub").rename(workbench.folder / "moved")
    (workbench.source / "sub").symlink_to(elsewhere)
    workbench.worker()
    assert workbench.ended().state == "failed"
    assert "a link leads it out of" in workbench.failures()["sub/f"].last_line
    assert workbench.outputs() == ["fine"]
    workbench.check_books()


def test_an_output_directory_replaced_by_a_link_is_not_written_through(
    workbench: Workbench,
) -> None:
    elsewhere = workbench.folder / "elsewhere"
    elsewhere.mkdir()
    workbench.file("sub/deeper/f")
    workbench.file("sub/g")
    workbench.file("fine")
    workbench.target.mkdir()
    (workbench.target / "sub").symlink_to(elsewhere)
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker()
    assert workbench.ended().state == "failed"
    failures = workbench.failures()
    assert sorted(failures) == ["sub/deeper/f", "sub/g"]
    assert all("a link leads it out of" in failure.last_line for failure in failures.values())
    assert list(elsewhere.rglob("*")) == []
    assert workbench.outputs() == ["fine"]
    workbench.check_books()


def test_an_output_that_is_a_link_is_replaced_and_not_followed(workbench: Workbench) -> None:
    precious = workbench.folder / "precious"
    precious.write_text("precious")
    os.utime(precious, (0, 0))
    workbench.file("f", "new")
    workbench.target.mkdir()
    (workbench.target / "f").symlink_to(precious)
    workbench.enqueue(overwrite=True)
    workbench.worker()
    assert workbench.ended().state == "done"
    assert precious.read_text() == "precious"
    assert not (workbench.target / "f").is_symlink()
    assert (workbench.target / "f").read_text() == "new"
    workbench.check_books()


def test_a_file_that_removes_the_directory_it_writes_to_fails_alone(workbench: Workbench) -> None:
    workbench.files(6)
    workbench.file("f-0002.txt", "remove-the-directory")
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker(processor="tests.processors:by_content")
    assert workbench.ended().state == "failed"
    assert list(workbench.failures()) == ["f-0002.txt"]
    assert workbench.check_books().done == 5


def test_a_directory_of_outputs_removed_meanwhile_is_made_again(workbench: Workbench) -> None:
    for number in range(20):
        workbench.file(f"folder/{number}")
    workbench.enqueue(buckets=1, retries=1)
    workbench.worker(processor="tests.processors:slow")
    until((workbench.target / "folder" / "0").exists, "an output")
    (workbench.target / "folder").rename(workbench.folder / "elsewhere")
    now = workbench.ended()
    assert (now.state, now.done, now.failed) == ("done", 20, 0)
    assert len(workbench.outputs()) >= 18


def test_what_is_written_beside_an_output_is_never_another_files_output(
    workbench: Workbench,
) -> None:
    workbench.files(6)
    workbench.file("f-0000.txt", "pages")
    workbench.file("f-0003.txt", "no-output")
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker(processor="tests.processors:by_content")
    assert workbench.ended().state == "failed"
    assert list(workbench.failures()) == ["f-0003.txt"]
    assert workbench.check_books().done == 5


@pytest.fixture
def mounted(workbench: Workbench) -> Iterator[Path]:
    """A directory of outputs that is a file system of its own."""
    path = workbench.target / "folder"
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize("processor", ["copy", "directory"])
def test_a_directory_of_outputs_may_be_on_another_file_system(
    workbench: Workbench, mounted: Path, processor: str
) -> None:
    for number in range(5):
        workbench.file(f"folder/{number}")
    workbench.settings["processor"] = f"tests.processors:{processor}"
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker()
    assert workbench.ended().done == 5
    workbench.enqueue("again", buckets=1, retries=0, overwrite=True)
    assert workbench.ended("again").done == 5
    workbench.check_books("again")


def test_what_does_not_fit_on_another_file_system_is_the_files_reason(
    workbench: Workbench, mounted: Path
) -> None:
    workbench.file("folder/large", "x" * 2 * MIB)
    workbench.file("folder/small")
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker()
    assert workbench.ended().done == 1
    assert "No space left on device" in workbench.failures()["folder/large"].last_line
    workbench.check_books()


def test_a_worker_killed_while_it_carries_an_output_leaves_no_temporary(
    workbench: Workbench, mounted: Path
) -> None:
    workbench.file("folder/1")
    workbench.file("folder/2")
    workbench.settings["processor"] = "tests.processors:copy_and_die_once_while_it_is_carried"
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker().wait()
    assert [path.parent for path in workbench.temporaries()].count(mounted) == 1
    workbench.worker()
    assert workbench.ended().done == 2
    workbench.check_books()
