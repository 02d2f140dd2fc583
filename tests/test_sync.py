"""The promise of IMECE_SYNC=checkpoint: what counts as done is there after a loss of power."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imece.errors import SettingsError
from imece.files import ledger, staging
from imece.files.rows import Outcome
from imece_worker import context
from imece_worker.storage import CAN_SYNC, Storage
from tests.conftest import Workbench, WorkerProcess, until

pytestmark = pytest.mark.skipif(not CAN_SYNC, reason="needs syncfs")

SHIM = Path(__file__).parent / "syncfs.c"


# A real file system, and what of it has come to its disk


class Disk:
    """A file system in a file, on which the outputs are. A copy of that file is what a loss of
    power would leave at that moment."""

    def __init__(self, folder: Path) -> None:
        self.image, self.place = folder / "disk", folder / "disk-mounted"
        self._folder = folder
        self._mounted: list[Path] = []
        with self.image.open("wb") as stream:
            stream.truncate(64 * 2**20)
        if not self._run("mkfs.ext4", "-q", "-F", str(self.image)) or not self._mount(
            self.image, self.place
        ):
            self.close()
            pytest.skip("needs ext4, a loop device and the right to mount")

    def _run(self, *words: str) -> bool:
        if shutil.which(words[0]) is None:
            return False
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def _mount(self, image: Path, place: Path) -> bool:
        place.mkdir()
        # It would write by itself every five seconds.
        if not self._run("mount", "-o", "loop,commit=600", str(image), str(place)):
            return False
        self._mounted.append(place)
        return True

    def after_loss_of_power(self) -> Path:
        """The file system as it comes up again, beside the present one."""
        number = len(self._mounted)
        image, place = self._folder / f"disk-{number}", self._folder / f"disk-{number}-mounted"
        shutil.copyfile(self.image, image)
        assert self._mount(image, place)
        return place

    def close(self) -> None:
        for place in self._mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def disk(workbench: Workbench) -> Iterator[Disk]:
    made = Disk(workbench.folder)
    workbench.target = made.place / "out"
    yield made
    workbench.close()
    made.close()


def sound_outputs(workbench: Workbench, target: Path) -> int:
    """How many outputs are there, whole."""
    return sum(
        path.read_bytes() == (workbench.source / path.name).read_bytes()
        for path in target.glob("f-*")
    )


def rows(target: Path) -> int:
    """How many files are done by the ledger, and by what workers have left."""
    blocks, flaws = staging.noted(os.fsencode(target))
    assert flaws == []
    found = ledger.entries(blocks)
    return sum(entry.row.outcome == Outcome.DONE for entry in found.values())


def test_what_counts_is_on_the_disk_at_any_moment(workbench: Workbench, disk: Disk) -> None:
    workbench.files(120)
    workbench.settings |= {"processor": "tests.processors:slow", "sync": "checkpoint"}
    workbench.enqueue(buckets=2)
    worker = workbench.worker()
    seen = set()
    for least in (1, 20, 60, 120):
        until(lambda least=least: workbench.status().done >= least, "progress")  # type: ignore[misc]
        done = workbench.status().done
        left = disk.after_loss_of_power() / "out"
        assert sound_outputs(workbench, left) >= done
        assert rows(left) >= done
        seen.add(done)
    assert len(seen) > 2
    assert workbench.ended().done == 120
    assert worker.stop() == 0
    workbench.check_books()


def test_a_run_goes_on_after_a_loss_of_power(workbench: Workbench, disk: Disk) -> None:
    names = workbench.files(100)
    workbench.settings |= {"processor": "tests.processors:slow", "sync": "checkpoint"}
    workbench.enqueue(buckets=2)
    worker = workbench.worker()
    until(lambda: workbench.status().done >= 30, "progress")
    worker.kill()
    worker.wait()
    left = disk.after_loss_of_power() / "out"
    assert len(list(left.glob("f-*"))) < 100
    workbench.target = left
    workbench.worker(output=str(left))
    assert workbench.ended().state == "done"
    assert sorted(path.name for path in left.glob("f-*")) == names
    assert sound_outputs(workbench, left) == 100
    assert rows(left) == 100


def test_without_the_setting_a_loss_of_power_takes_what_counts(
    workbench: Workbench, disk: Disk
) -> None:
    """So these tests could fail."""
    workbench.files(50)
    workbench.settings["sync"] = "off"
    workbench.enqueue(buckets=1)
    workbench.worker()
    assert workbench.ended().done == 50
    assert sound_outputs(workbench, disk.after_loss_of_power() / "out") < 50


# A disk that does as it is told


class Shim:
    """In place of `syncfs`, in workers that are started with it."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench
        self.folder = workbench.folder / "syncfs"
        self.folder.mkdir()
        self._library = self.folder / "syncfs.so"
        words = ["cc", "-shared", "-fPIC", "-o", str(self._library), str(SHIM)]
        if shutil.which("cc") is None:
            pytest.skip("needs a C compiler")
        subprocess.run(words, check=True)

    def worker(self, monkeypatch: pytest.MonkeyPatch, **settings: str) -> WorkerProcess:
        with monkeypatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(self._library))
            patch.setenv("SYNCFS_FOLDER", str(self.folder))
            patch.setenv("SYNCFS_OUTPUTS", str(self._workbench.target))
            return self._workbench.worker(fresh=True, log_format="json", **settings)

    def calls(self) -> list[int]:
        """How many outputs there were at each call that has come back."""
        try:
            return [int(line) for line in (self.folder / "calls").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def tell(self, word: str, text: str = "") -> Path:
        path = self.folder / word
        path.write_text(text)
        return path


@pytest.fixture
def shim(workbench: Workbench) -> Shim:
    workbench.settings["sync"] = "checkpoint"
    return Shim(workbench)


def test_redis_is_told_after_the_disk(
    workbench: Workbench, shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench.files(100)
    workbench.settings["processor"] = "tests.processors:slow"
    workbench.enqueue(buckets=3)
    worker = shim.worker(monkeypatch)
    seen = set()
    while not (now := workbench.status()).has_ended:
        assert now.done <= max(shim.calls(), default=0)
        seen.add(now.done)
    assert len(seen) > 5
    assert now.done == shim.calls()[-1] == 100
    calls = len(shim.calls())
    assert calls < 60  # of checkpoints, not of files
    assert worker.stop() == 0
    assert len(shim.calls()) == calls


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_what_the_disk_refuses_does_not_count(
    workbench: Workbench, shim: Shim, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    workbench.files(30)
    workbench.settings["processor"] = "tests.processors:slow"
    workbench.enqueue(buckets=1)
    worker = shim.worker(monkeypatch)
    until(lambda: workbench.status().done, "progress")
    failing = shim.tell("fail", str(number))
    sentence = f"outputs cannot be put on stable storage: {os.strerror(number)}"
    until(lambda: sentence in (workbench.status().blocking_reason or ""), "the reason")
    before = workbench.status().done
    assert before < 30
    until(lambda: len(worker.events("job stalled")) >= 2, "another try")
    assert workbench.status().done == before
    failing.unlink()
    assert workbench.ended().state == "done"
    now = workbench.check_books()
    assert (now.done, now.failed, now.skipped) == (30, 0, 0)
    assert rows(workbench.target) == 30
    assert sound_outputs(workbench, workbench.target) == 30


def test_the_last_checkpoint_of_a_job_is_held_as_well(
    workbench: Workbench, shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench.files(3)
    workbench.enqueue(buckets=1)
    failing = shim.tell("fail", str(errno.EIO))
    shim.worker(monkeypatch, checkpoint="60")
    until(lambda: workbench.status().blocking_reason, "the reason")
    assert workbench.outputs() == []
    failing.unlink()
    assert workbench.ended().done == 3
    workbench.check_books()


def test_files_that_failed_stay_counted_when_the_disk_refuses(
    workbench: Workbench, shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench.files(3)
    workbench.file("f-0001.txt", "raise")
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.enqueue(buckets=1, retries=0)
    failing = shim.tell("fail", str(errno.EIO))
    shim.worker(monkeypatch)
    until(lambda: workbench.status().failed, "the failure")
    assert workbench.status().done == 0
    failing.unlink()
    now = workbench.ended()
    assert (now.done, now.failed) == (2, 1)
    workbench.check_books()


def test_a_slow_disk_costs_no_lease(
    workbench: Workbench, shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench.files(40)
    workbench.settings |= {"processor": "tests.processors:slow", "lease": "3"}
    workbench.enqueue(buckets=1)
    waiting = shim.tell("wait")
    worker = shim.worker(monkeypatch).took()
    workbench.worker(sync="off")  # would take the job of a dead worker
    until(lambda: len(workbench.outputs()) >= 20, "outputs")
    end = time.monotonic() + 6.0
    until(lambda: time.monotonic() > end, "two leases")
    now = workbench.status()
    assert (now.done, now.state, now.backlog.in_flight) == (0, "running", 1)
    waiting.unlink()
    assert workbench.ended().done == 40
    assert worker.events("job lost") == []
    assert len(worker.events("job finished")) == 1


def test_outputs_on_a_second_file_system_are_put_there_too(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    storage = Storage(os.fsencode(tmp_path))
    storage.add([b"folder", b"not-there"])
    storage.add([b"folder"])
    assert len(storage._numbers) == 1  # the same one
    storage._numbers[-1] = os.open("/dev/shm", os.O_RDONLY)
    storage.sync(1.0, lambda: None)
    os.close(storage._numbers[-1])
    with pytest.raises(OSError, match="Bad file descriptor"):
        storage.sync(1.0, lambda: None)
    del storage._numbers[-1]


def test_a_system_without_syncfs_is_refused(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "CAN_SYNC", False)
    workbench.settings["sync"] = "checkpoint"
    with pytest.raises(SettingsError, match="IMECE_SYNC: checkpoint: this system has no syncfs"):
        context.prepare(workbench.load())
