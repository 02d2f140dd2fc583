"""The promise: of what a file prints the beginning and the end are kept, however much it is; nobody
who prints waits for the worker, and it costs neither memory nor disk."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from imece.run.failure import LONGEST_OUTPUT, LONGEST_REASON
from imece_worker import capture
from imece_worker.capture import DRAINER, HEAD, TAIL, Capture
from tests.conftest import Workbench, WorkerProcess, until


@pytest.fixture
def drained() -> Iterator[Capture]:
    """A capture with a drainer."""
    made = Capture()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        capture.drain([made], parent)
    yield made
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("size", [0, 1, HEAD - 1, HEAD, HEAD + 1, TAIL, TAIL + 7, 3 * TAIL + 5])
def test_sizes_and_ends_are_exact(drained: Capture, size: int) -> None:
    for _ in range(3):
        lines = b"".join(b"%07d\n" % number for number in range(size // 8 + 1))[:size]
        written = 0
        while written < size:
            written += os.write(drained.number, lines[written : written + 5000])
        assert drained.size() == size
        text = lines.decode().strip()
        assert drained.end(100).removeprefix("…") in text
        assert text.endswith(drained.end(100).removeprefix("…"))
        shown = drained.text()
        assert len(shown) <= LONGEST_OUTPUT + 1
        if size <= LONGEST_OUTPUT:
            assert shown == text
        else:
            first, _, last = shown.partition(f"\n… ({size} bytes in all) …\n")
            assert text.startswith(first)
            assert len(first) > LONGEST_OUTPUT // 5
            assert text.endswith(last.removeprefix("…"))
            assert len(last) > LONGEST_OUTPUT // 2
        drained.clear()
        assert drained.size() == 0
        assert drained.text() == ""


def test_characters_of_many_bytes_are_counted_as_characters(drained: Capture) -> None:
    os.write(drained.number, ("ğ" * 3000).encode())
    assert drained.text() == "ğ" * 3000
    os.write(drained.number, ("🐫" * 9000).encode())
    assert len(drained.text()) <= LONGEST_OUTPUT + 1
    assert drained.text().startswith("ğ" * 500)


FLOOD = """
import os, pathlib
def f(source, target):
    block = b"the middle of it\\n" * 50_000
    os.write(1, b"the first line\\n")
    for _ in range(400):
        rest = memoryview(block)
        while rest:
            rest = rest[os.write(1, rest):]
    os.write(2, b"the last line\\n")
    pathlib.Path(source).resolve().with_suffix(".printed").touch()
    {end}
"""
MEGABYTES = 340


@pytest.fixture
def flood(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """One file that prints so much and then fails."""
    workbench.file("f", "content")
    workbench.settings["processor"] = "flood:f"
    monkeypatch.setenv("PYTHONPATH", str(workbench.folder))
    write_flood(workbench, "raise ValueError('enough')")
    return workbench


def write_flood(workbench: Workbench, end: str) -> None:
    (workbench.folder / "flood.py").write_text(FLOOD.format(end=end))


def family(worker: WorkerProcess) -> list[int]:
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    return [worker.pid, *map(int, children)]


def drainer(worker: WorkerProcess) -> int | None:
    for pid in family(worker)[1:]:
        if Path(f"/proc/{pid}/comm").read_text().strip() == DRAINER:
            return pid
    return None


def peak_kilobytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def largest_file(pid: int) -> int:
    """Bytes of the largest file a process has open."""
    return max(
        (path.stat().st_size for path in Path(f"/proc/{pid}/fd").glob("*") if path.is_file()),
        default=0,
    )


def test_a_flood_of_hundreds_of_megabytes_leaves_its_first_and_its_last_lines(
    flood: Workbench,
) -> None:
    flood.enqueue(retries=0)
    worker = flood.worker()
    assert flood.ended(timeout=60).state == "failed"
    output = flood.failures()["f"].output
    assert output.startswith("the first line\nthe middle")
    assert f" ({17 * 50_000 * 400 + 29} bytes in all) " in output
    assert output.endswith("the middle of it\nthe last line")
    assert len(output) <= LONGEST_OUTPUT + 1
    for pid in family(worker):
        assert peak_kilobytes(pid) < 150_000
        assert largest_file(pid) < 10_000_000
    flood.check_books()


def test_what_was_printed_is_kept_when_the_process_is_killed_in_the_flood(
    flood: Workbench,
) -> None:
    write_flood(flood, "os.kill(os.getpid(), 9)")
    flood.enqueue(retries=0)
    flood.worker()
    assert flood.ended(timeout=60).state == "failed"
    output = flood.failures()["f"].output
    assert output.startswith("the first line\n")
    assert output.endswith("the last line")
    flood.check_books()


def test_who_prints_does_not_wait_for_a_worker_that_is_busy(flood: Workbench) -> None:
    """Stopped here, so that it does nothing at all."""
    begun, gate = flood.folder / "begun", flood.folder / "gate"
    text = (flood.folder / "flood.py").read_text()
    wait = (
        f"    import time\n    pathlib.Path({str(begun)!r}).touch()\n"
        f"    while not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    )
    (flood.folder / "flood.py").write_text(text.replace("    block", wait + "    block", 1))
    flood.enqueue(retries=0)
    worker = flood.worker()
    until(begun.exists, "the file to be begun")  # before, its process needs the worker
    worker.kill(signal.SIGSTOP)
    gate.touch()
    until((flood.source / "f.printed").exists, "all to be printed", 60)
    worker.kill(signal.SIGCONT)
    assert flood.ended().state == "failed"
    assert flood.failures()["f"].output.endswith("the last line")


def test_a_drainer_that_is_killed_is_replaced(flood: Workbench) -> None:
    flood.enqueue(retries=0)
    worker = flood.worker().took()
    for _ in range(5):
        os.kill(until(lambda: drainer(worker), "a drainer"), signal.SIGKILL)
    assert flood.ended(timeout=60).state == "failed"
    assert flood.failures()["f"].output.endswith("the last line")
    flood.check_books()


def test_a_program_may_print_as_much_on_both_of_its_outputs(workbench: Workbench) -> None:
    workbench.file("f", "content")
    del workbench.settings["processor"]
    workbench.enqueue(retries=0)
    program = workbench.folder / "program"
    program.write_text(
        "#!/bin/sh\necho first; echo first >&2\n"
        f"yes out | head -c {MEGABYTES}000000\nyes err | head -c {MEGABYTES}000000 >&2\n"
        "echo last; echo last >&2; exit 1\n"
    )
    program.chmod(0o755)
    worker = workbench.worker(command=f"{program} {{input}} {{output}}")
    assert workbench.ended(timeout=60).state == "failed"
    failure = workbench.failures()["f"]
    assert failure.output.startswith("first\nout\n")
    assert failure.output.endswith("out\nlast")
    assert failure.reason.splitlines()[-3:-1] == ["err", "last"]
    assert failure.last_line == "program ended with exit code 1: last"
    assert len(failure.reason) < LONGEST_REASON + 100
    for pid in family(worker):
        assert peak_kilobytes(pid) < 150_000
        assert largest_file(pid) < 10_000_000


def test_a_silent_file_costs_its_drainer_nothing(workbench: Workbench) -> None:
    workbench.files(1000)
    workbench.enqueue(buckets=4)
    worker = workbench.worker(processor="tests.processors:copy")
    until(lambda: drainer(worker), "a drainer")
    assert workbench.ended().done == 1000
    pid = drainer(worker)
    switches = Path(f"/proc/{pid}/status").read_text().partition("\nvoluntary_ctxt_switches:")[2]
    assert int(switches.split()[0]) < 50
