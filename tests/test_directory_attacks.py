"""The promise: who may write to the run's directories does not lead a worker out of them, neither
by a link that is there nor by one that comes and goes."""

# Each system call counts here.
# ruff: noqa: PTH104, PTH108, PTH211

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from imece.files import beneath, staging
from tests.conftest import ROOT, Workbench, until

FILES = 1500
SECONDS = 3.0

BOTH = pytest.mark.parametrize("module", ["tests.processors", "tests.processors_by_steps"])
"""Directories opened by openat2, and step by step."""


@pytest.fixture
def elsewhere(workbench: Workbench) -> Path:
    """Outside of the run's directories, with files of the names that are used inside."""
    path = workbench.folder / "elsewhere"
    path.mkdir()
    for number in range(FILES):
        for name in (f"f-{number:04d}.txt", f"{number}_.old"):
            (path / name).write_text("secret")
    return path


def is_unharmed(elsewhere: Path) -> bool:
    paths = list(elsewhere.iterdir())
    return len(paths) == 2 * FILES and all(path.read_text() == "secret" for path in paths)


def no_secret(workbench: Workbench) -> bool:
    """A worker may go on meanwhile, and take its temporary files away."""
    found = []
    for path in workbench.target.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):
            found.append(b"" if path.is_symlink() else path.read_bytes())
    return b"secret" not in found


def many(workbench: Workbench, folder: str = "sub") -> None:
    (workbench.source / folder).mkdir(exist_ok=True)
    for number in range(FILES):
        (workbench.source / folder / f"f-{number:04d}.txt").write_bytes(b"fine")


def replace(runner: int, path: Path, moved: Path, elsewhere: Path) -> None:
    """Moves a directory away and puts a link in its place. The runner stands still meanwhile:
    it would make the directory again in between."""
    os.kill(runner, signal.SIGSTOP)
    path.rename(moved)
    path.symlink_to(elsewhere)
    os.kill(runner, signal.SIGCONT)


@pytest.mark.slow
@BOTH
def test_a_directory_of_inputs_replaced_while_a_job_is_on_leads_nowhere(
    workbench: Workbench, elsewhere: Path, module: str
) -> None:
    many(workbench)
    workbench.enqueue(buckets=1, files_per_job=FILES, retries=0)
    workbench.worker(processor=f"{module}:slow")
    until(lambda: workbench.status().done, "the first files")
    (workbench.source / "sub").rename(workbench.folder / "moved")
    (workbench.source / "sub").symlink_to(elsewhere)
    before = workbench.status().done
    until(lambda: workbench.status().done + workbench.status().failed > before + 20, "more files")
    assert no_secret(workbench)


@BOTH
def test_a_directory_of_outputs_replaced_while_a_job_is_on_leads_nowhere(
    workbench: Workbench, elsewhere: Path, module: str
) -> None:
    many(workbench)
    workbench.enqueue(buckets=1, files_per_job=FILES, retries=0)
    worker = workbench.worker(processor=f"{module}:slow")
    until(lambda: workbench.status().done, "the first files")
    moved = workbench.folder / "moved"
    replace(worker.runner(), workbench.target / "sub", moved, elsewhere)
    until(lambda: workbench.status().failed > 20, "files to fail")
    assert is_unharmed(elsewhere)


@BOTH
def test_a_staging_directory_replaced_while_a_job_is_on_leads_nowhere(
    workbench: Workbench, elsewhere: Path, module: str
) -> None:
    many(workbench)
    workbench.enqueue(buckets=1, files_per_job=FILES, retries=0)
    worker = workbench.worker(processor=f"{module}:slow")
    until(lambda: workbench.status().done, "the first files")
    [there] = workbench.temporaries()
    replace(worker.runner(), there, workbench.target / "moved", elsewhere)
    before = workbench.status().done
    until(lambda: workbench.status().done + workbench.status().failed > before + 20, "more files")
    assert is_unharmed(elsewhere)


# Attackers in a loop, as processes of their own


def swap_directory(path: Path, elsewhere: Path) -> None:
    real = path.with_name(path.name + ".real")
    while True:
        try:
            os.rename(path, real)
            os.symlink(elsewhere, path)
            os.unlink(path)
            os.rename(real, path)
        except OSError:
            if real.exists() and not real.is_symlink():
                put_back(path, real)


def put_back(path: Path, real: Path) -> None:
    try:
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            for inner in path.iterdir():
                os.rename(inner, real / inner.name)
            path.rmdir()
        os.rename(real, path)
    except OSError:
        pass


def swap_files(directory: Path, elsewhere: Path) -> None:
    chance = random.Random(5)
    link, kept = directory / ".link", directory / ".kept"
    while True:
        path = directory / f"f-{chance.randrange(FILES):04d}.txt"
        os.symlink(elsewhere / path.name, link)
        os.rename(path, kept)
        os.rename(link, path)
        os.rename(kept, path)


def swap_staging_directories(target: Path, elsewhere: Path) -> None:
    while True:
        for path in target.glob(".imece-*"):
            aside = target / "aside"
            try:
                os.rename(path, aside)
                os.symlink(elsewhere, path)
                time.sleep(0.001)
                os.unlink(path)
                os.rename(aside, path)
            except OSError:
                pass


@contextmanager
def attacker(attack: Callable[[Path, Path], None], *paths: Path) -> Iterator[None]:
    code = (
        "import sys, pathlib, tests.test_directory_attacks as t\n"
        "print('at it', flush=True)\n"
        "getattr(t, sys.argv[1])(*map(pathlib.Path, sys.argv[2:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, attack.__name__, *map(str, paths)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"at it\n"
        yield
        assert process.poll() is None, "the attacker has given up"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def under_attack(
    workbench: Workbench, processor: str, attack: Callable[[Path, Path], None], *paths: Path
) -> None:
    """Works for some seconds while an attacker is at it, who begins before the first file."""
    workbench.settings |= {"retry_pause": "0.001"}
    workbench.enqueue(buckets=3, files_per_job=FILES, retries=100, overwrite=True)
    with attacker(attack, *paths):
        workbench.worker(processor=processor).started()
        end = time.monotonic() + SECONDS
        until(lambda: workbench.status().has_ended or time.monotonic() > end, "some seconds")
    for worker in workbench.workers:
        worker.kill()


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("swap", [swap_directory, swap_files])
def test_inputs_swapped_in_a_loop_give_no_secret_away(
    workbench: Workbench, elsewhere: Path, module: str, swap: Callable[..., None]
) -> None:
    many(workbench)
    processor = f"{module}:copy_after_many_reads"
    under_attack(workbench, processor, swap, workbench.source / "sub", elsewhere)
    assert workbench.outputs()
    assert no_secret(workbench)


@pytest.mark.slow
@BOTH
def test_a_directory_of_outputs_swapped_in_a_loop_is_not_written_through(
    workbench: Workbench, elsewhere: Path, module: str
) -> None:
    many(workbench)
    (workbench.target / "sub").mkdir(parents=True)
    under_attack(workbench, f"{module}:copy", swap_directory, workbench.target / "sub", elsewhere)
    assert workbench.outputs()
    assert is_unharmed(elsewhere)


@pytest.mark.slow
@BOTH
def test_a_staging_directory_swapped_in_a_loop_is_not_written_through(
    workbench: Workbench, elsewhere: Path, module: str
) -> None:
    many(workbench)
    workbench.target.mkdir()
    under_attack(workbench, f"{module}:copy", swap_staging_directories, workbench.target, elsewhere)
    assert workbench.status().done
    assert is_unharmed(elsewhere)


# Directories by descriptors


@pytest.fixture(params=["openat2", "step by step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "step by step":
        monkeypatch.setattr(beneath, "openat2", None)
    elif beneath.openat2 is None:
        pytest.skip("the kernel has no openat2")


@pytest.mark.usefixtures("way")
def test_a_directory_is_opened_beneath_its_root_and_by_no_link(tmp_path: Path) -> None:
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "a" / "file").touch()
    (tmp_path / "root" / "link").symlink_to("a")
    (tmp_path / "root" / "a" / "out").symlink_to(tmp_path / "outside")
    root = os.open(tmp_path / "root", os.O_RDONLY)
    for path in (b"", b"a", b"a/b"):
        number = beneath.open_directory(root, path)
        assert os.fstat(number).st_ino == (tmp_path / "root" / os.fsdecode(path)).stat().st_ino
        os.close(number)
    for path in (b"link", b"link/b", b"a/out", b"..", b"a/../..", b"/etc", b"a/file", b"none"):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with pytest.raises(OSError):
            os.close(beneath.open_directory(root, path))
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    with pytest.raises(OSError):
        beneath.make_directories(root, b"a/out/new")
    assert list((tmp_path / "outside").iterdir()) == []
    os.close(beneath.make_directories(root, b"c/d/e"))
    assert (tmp_path / "root" / "c" / "d" / "e").is_dir()
    os.close(root)


def test_where_descriptors_have_no_paths_the_processor_gets_the_real_ones(
    workbench: Workbench,
) -> None:
    workbench.file("sub/f")
    workbench.settings["processor"] = "tests.processors_without_proc:write_source"
    workbench.enqueue()
    workbench.worker()
    assert workbench.ended().done == 1
    assert (workbench.target / "sub" / "f").read_text() == str(workbench.source / "sub" / "f")
    workbench.check_books()


def test_the_processors_paths_lead_to_where_the_file_lies(workbench: Workbench) -> None:
    workbench.file("sub/f.csv")
    workbench.settings["processor"] = "tests.processors:write_source"
    workbench.enqueue()
    workbench.worker()
    assert workbench.ended().done == 1
    given = Path((workbench.target / "sub" / "f.csv").read_text())
    assert given.name == "f.csv"
    assert not given.is_relative_to(workbench.folder)


def test_a_staging_directory_that_is_a_link_or_somebody_elses_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "ours").mkdir(mode=0o755)
    parent = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(NotADirectoryError):
        staging.open_private(parent, b"link", make=True)
    os.close(staging.open_private(parent, b"ours", make=True))
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o700
    if os.geteuid() == 0:
        os.chown(tmp_path / "real", 12345, 12345)
        with pytest.raises(PermissionError):
            staging.open_private(parent, b"real", make=True)
        assert list((tmp_path / "real").iterdir()) == []
    os.close(parent)
