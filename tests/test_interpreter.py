"""The promise: the processor is imported in a fresh interpreter of its own, where nothing of the
worker is, and nothing that it does there hangs or harms the worker."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imece.errors import SettingsError
from imece.settings import load
from imece_worker import cores, interpreter
from imece_worker.interpreter import Interpreter
from imece_worker.stops import STOP_SIGNALS
from tests.conftest import ROOT, Workbench, is_running, until
from tests.forks import children

HEAVY = {"redis", "rq", "typer", "pydantic", "pydantic_settings", "asyncio", "email", "ssl"}

A_THREAD = (
    "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
)
"""Of a module: with it the interpreter is the runner itself."""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder workers import from."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def imports(modules: Path) -> list[int]:
    """Which processes have imported the module `made` of these tests."""
    return [int(pid) for pid in (modules / "imports").read_text().split()]


def made(modules: Path, body: str, top: str = "") -> str:
    """A processor with this body; its module notes each import."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (modules / "made.py").write_text(
        "import os, pathlib, sys, time\n"
        f"with open({str(modules / 'imports')!r}, 'a') as log: log.write(f'{{os.getpid()}} ')\n"
        f"{top}\n"
        f"def f(source, target):\n{lines}"
    )
    return "made:f"


def outputs(workbench: Workbench) -> set[str]:
    """All contents that there are."""
    return {(workbench.target / name).read_text() for name in workbench.outputs()}


# A fresh interpreter


def test_what_it_imports_itself_is_light() -> None:
    code = "import sys, imece_worker.loader; print(*sys.modules)"
    words = [sys.executable, "-c", code]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(found)


@pytest.mark.parametrize("top", ["", A_THREAD], ids=["template", "runner"])
def test_a_processor_finds_nothing_of_its_worker(
    modules: Path, workbench: Workbench, top: str
) -> None:
    body = """import json, threading
told = {"modules": sorted(sys.modules), "pids": [os.getpid(), os.getppid()]}
told |= {"directory": os.getcwd(), "path": sys.path, "argv": sys.argv, "read": sys.stdin.read()}
told["numbers"] = sorted(int(name) for name in os.listdir("/proc/self/fd"))
pathlib.Path(target).write_text(json.dumps(told))"""
    processor = made(modules, body, top)
    workbench.files(1)
    workbench.enqueue(retries=0)
    worker = workbench.worker(processor=processor, fresh=True)
    assert workbench.ended().state == "done", workbench.failures()
    told = json.loads((workbench.target / "f-0000.txt").read_text())
    assert not HEAVY & set(told["modules"])
    assert worker.pid not in imports(modules)
    assert told["pids"][1] == worker.pid
    assert (told["pids"][0] in imports(modules)) == bool(top)
    assert (told["directory"], told["read"]) == (str(ROOT), "")
    assert told["path"][:2] == [str(ROOT), str(modules)]


def test_a_module_beside_the_user_hides_no_module_of_ours(
    tmp_path: Path, workbench: Workbench
) -> None:
    """The user's directory comes first on the path; but not before our own imports are made."""
    (tmp_path / "dataclasses.py").write_text("raise RuntimeError('not meant')")
    (tmp_path / "mine.py").write_text("from shutil import copyfile as f\n")
    words = [sys.executable, "-P", "-m", "imece_worker", "--check", "--processor", "mine:f"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


# Imports that fail, hang or kill

KILLED = {
    "os._exit(7)": "its process ended itself with exit code 7",
    "os.kill(os.getpid(), 11)": "its process was killed by SIGSEGV",
    "os.kill(os.getpid(), 9)": "its process was killed by SIGKILL (out of memory?)",
    "os.closerange(3, 4096)": "the processor closed files that imece had opened, and failed",
}


@pytest.mark.parametrize("top", KILLED)
def test_an_import_that_kills_its_process_is_told_with_exit_code_2(
    modules: Path, workbench: Workbench, top: str
) -> None:
    processor = made(modules, "pass", top)
    workbench.files(1)
    workbench.enqueue()
    worker = workbench.worker(processor=processor)
    assert worker.wait() == 2
    last = worker.log().splitlines()[-1]
    assert last == f"imece-worker: IMECE_PROCESSOR=made:f: importing made failed: {KILLED[top]}"
    assert workbench.check_books().backlog.pending == 1


@pytest.mark.parametrize(
    "options", [("--check",), ("--bucket-id", "0", "--bucket-count", "1")], ids=["check", "static"]
)
@pytest.mark.parametrize(
    ("top", "says"), [("os._exit(7)", "exit code 7"), ("1 / 0", "ZeroDivisionError")]
)
def test_a_check_and_a_static_bucket_tell_the_same(
    modules: Path, workbench: Workbench, options: tuple[str, ...], top: str, says: str
) -> None:
    environment = {**os.environ, "IMECE_INPUT": str(workbench.source)}
    environment |= {"IMECE_OUTPUT": str(workbench.target)}
    words = [sys.executable, "-m", "imece_worker", "--processor", made(modules, "pass", top)]
    ended = subprocess.run(
        [*words, *options], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("imece-worker: IMECE_PROCESSOR=made:f: importing made failed")
    assert says in ended.stderr


def test_an_import_that_goes_on_and_on_is_told(
    modules: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(interpreter, "LONG_IMPORT", 0.1)
    loading = Interpreter(load(processor=made(modules, "pass", "time.sleep(60)")))
    until(lambda: not loading.is_ready() and caplog.records, "a word of it")
    loading.end()
    atexit.unregister(loading.end)
    [record] = caplog.records
    assert record.message == "processor not imported yet"
    assert vars(record)["details"]["reason"].startswith(
        "IMECE_PROCESSOR=made:f: importing made takes longer than 0 s. "
    )


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize(
    ("options", "code"), [((), 0), (("--bucket-id=0", "--bucket-count=1"), 128)]
)
def test_a_stop_in_the_import_ends_the_worker_at_once(
    modules: Path, workbench: Workbench, options: tuple[str, ...], code: int, number: signal.Signals
) -> None:
    environment = {**os.environ, **workbench.environment()}
    environment |= {"IMECE_INPUT": str(workbench.source), "IMECE_OUTPUT": str(workbench.target)}
    environment["IMECE_PROCESSOR"] = made(modules, "pass", "time.sleep(60)")
    words = [sys.executable, "-m", "imece_worker", *options]
    worker = subprocess.Popen(words, env=environment)
    until((modules / "imports").exists, "the import to begin")
    [importing] = until(lambda: imports(modules), "its process id")
    worker.send_signal(number)
    assert worker.wait(2) == (code + number if code else 0)
    until(lambda: not is_running(importing), "it to go with its worker", timeout=1)


# After a crash


def test_a_template_has_the_next_runner_without_another_import(
    modules: Path, workbench: Workbench
) -> None:
    body = """name = pathlib.Path(source).name
if name == "f-0002.txt": os._exit(3)
pathlib.Path(target).write_text(str(os.getpid()))"""
    processor = made(modules, body)
    workbench.files(5)
    workbench.enqueue(buckets=1, retries=1)
    worker = workbench.worker(processor=processor)
    assert workbench.ended().failed == 1
    assert workbench.failures()["f-0002.txt"].reason == "its process ended itself with exit code 3"
    assert len(outputs(workbench)) == 2
    assert imports(modules) == [worker.template()]


def test_a_process_with_threads_is_the_runner_and_the_next_one_starts_anew(
    modules: Path, workbench: Workbench
) -> None:
    body = """name = pathlib.Path(source).name
if name == "f-0002.txt": os._exit(3)
pathlib.Path(target).write_text(str(os.getpid()))"""
    processor = made(modules, body, A_THREAD)
    workbench.files(5)
    workbench.enqueue(buckets=1, retries=0)
    worker = workbench.worker(processor=processor)
    assert workbench.ended().failed == 1
    assert workbench.failures()["f-0002.txt"].reason == "its process ended itself with exit code 3"
    first, second = imports(modules)
    assert outputs(workbench) == {str(first), str(second)}
    assert worker.runners() == [second]


@pytest.mark.skipif(not os.access("/dev/net/tun", os.R_OK), reason="needs a device")
def test_a_process_that_has_a_device_open_is_the_runner(
    modules: Path, workbench: Workbench
) -> None:
    """As those of GPUs are: CUDA does not work in a fork."""
    processor = made(
        modules,
        "pathlib.Path(target).write_text(str(os.getpid()))",
        "DEVICE = open('/dev/net/tun', 'rb', buffering=0)",
    )
    workbench.files(1)
    workbench.enqueue()
    workbench.worker(processor=processor)
    assert workbench.ended().done == 1
    assert outputs(workbench) == {str(pid) for pid in imports(modules)}


SECOND_IMPORT = A_THREAD + "if {second}: {then}\n"
IS_SECOND = "len(pathlib.Path(__file__).with_name('imports').read_text().split()) > 1"


def crashes_and_then(modules: Path, then: str) -> str:
    """A processor whose first file kills it; so it is imported again, and does this meanwhile."""
    body = """died = pathlib.Path(__file__).with_name("died")
if not died.exists():
    died.touch()
    os._exit(3)
pathlib.Path(target).write_text("made")"""
    return made(modules, body, SECOND_IMPORT.format(second=IS_SECOND, then=then))


def test_a_long_import_after_a_crash_keeps_the_job(modules: Path, workbench: Workbench) -> None:
    workbench.files(5)
    workbench.settings |= {"lease": "3", "heartbeat": "0.2"}
    workbench.enqueue(buckets=1, retries=1)
    worker = workbench.worker(
        processor=crashes_and_then(modules, "time.sleep(4)"), log_format="json"
    ).took()
    idle = workbench.worker(processor="tests.processors:copy", log_format="json").started()
    assert workbench.ended().done == 5
    assert len(worker.events("job finished")) == 1
    assert idle.events("job taken") == []
    assert workbench.check_books().retried == 1


def test_an_import_that_fails_after_a_crash_gives_the_job_back_and_ends_the_worker(
    modules: Path, workbench: Workbench
) -> None:
    workbench.files(5)
    workbench.enqueue(buckets=1, retries=1)
    worker = workbench.worker(processor=crashes_and_then(modules, "1 / 0"))
    assert worker.wait() == 2
    last = worker.log().splitlines()[-1]
    assert last.startswith("imece-worker: IMECE_PROCESSOR=made:f: importing made failed with Zero")
    now = workbench.check_books()
    assert (now.left, now.backlog.pending, now.backlog.in_flight) == (5, 1, 0)


def test_a_stop_while_the_processor_is_imported_again_gives_the_job_back(
    modules: Path, workbench: Workbench
) -> None:
    workbench.files(5)
    workbench.enqueue(buckets=1, retries=1)
    worker = workbench.worker(processor=crashes_and_then(modules, "time.sleep(60)"))
    until(lambda: (modules / "imports").exists() and len(imports(modules)) == 2, "another import")
    asked = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - asked < 3
    now = workbench.check_books()
    assert (now.left, now.backlog.pending, now.backlog.in_flight) == (5, 1, 0)


# What lives as long as the runner

LAZY = """global MODEL, POOL
if MODEL is None:
    import multiprocessing
    MODEL, POOL = object(), multiprocessing.Pool(1)
    (pathlib.Path(__file__).with_name("loads")).open("a").write("x")
inner = POOL.apply(os.getpid)
pathlib.Path(target).write_text(f"{os.getpid()} {id(MODEL)} {inner}")"""


@pytest.mark.slow
@pytest.mark.parametrize("top", ["", A_THREAD], ids=["template", "runner"])
def test_a_model_and_a_pool_of_the_first_file_are_there_for_all_others(
    modules: Path, workbench: Workbench, top: str
) -> None:
    """The thousandth, another job's, another run's, and after the queue was idle."""
    workbench.files(1000)
    processor = made(modules, LAZY, f"MODEL = POOL = None\n{top}")
    worker = workbench.worker(processor=processor).started()
    workbench.enqueue(buckets=5, files_per_job=200)
    assert workbench.ended().done == 1000
    first = outputs(workbench)
    [key] = workbench.redis.smembers("rq:workers:imece")
    until(lambda: workbench.redis.hget(key, "state") == b"idle", "it to be idle")
    workbench.enqueue("second", include=["f-000*"], overwrite=True)
    assert workbench.ended("second").done == 10
    assert outputs(workbench) == first
    assert len(first) == 1
    assert (modules / "loads").read_text() == "x"
    pool = int(first.pop().split()[2])
    assert worker.stop() == 0
    assert not is_running(pool)


# What does not hang

THREADS_AT_IMPORT = """from concurrent.futures import ThreadPoolExecutor
POOL = ThreadPoolExecutor(2)
assert list(POOL.map(abs, [-1, -2])) == [1, 2]"""

HANGS = {
    "a pool of threads used at import": ("sum(POOL.map(abs, [-1, -2]))", THREADS_AT_IMPORT),
    "a pool of processes in a function": (
        "with multiprocessing.Pool(2) as pool: pool.map(abs, [-1, -2])",
        "import multiprocessing",
    ),
    "a process that is told to end": (
        "child = multiprocessing.Process(target=time.sleep, args=(60,)); child.start(); "
        "child.terminate(); child.join()",
        "import multiprocessing",
    ),
    "a pool of processes made at import": (
        "POOL.map(abs, [-1, -2])",
        "import multiprocessing; POOL = multiprocessing.Pool(2); POOL.map(abs, [-1])",
    ),
    "spawned processes": (
        "with multiprocessing.get_context('spawn').Pool(1) as pool: pool.map(abs, [-1, -2])",
        "import multiprocessing",
    ),
    "asyncio": ("asyncio.run(asyncio.sleep(0.001))", "import asyncio"),
    "asyncio at import, too": (
        "asyncio.run(asyncio.to_thread(time.sleep, 0.001))",
        "import asyncio; asyncio.run(asyncio.to_thread(time.sleep, 0.001))",
    ),
}


@pytest.mark.parametrize("what", HANGS)
def test_nothing_hangs(modules: Path, workbench: Workbench, what: str) -> None:
    call, top = HANGS[what]
    body = f"{call}\npathlib.Path(target).write_text('made')"
    workbench.files(4)
    workbench.enqueue(buckets=2, files_per_job=2, retries=0, timeout=20)
    worker = workbench.worker(processor=made(modules, body, top))
    assert workbench.ended().done == 4, workbench.failures()
    assert worker.stop() == 0


# The threads of libraries


def test_libraries_have_the_threads_that_are_left_for_one_worker(
    modules: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = repr(cores.VARIABLES)
    body = f"pathlib.Path(target).write_text(' '.join(os.environ[name] for name in {names}))"
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    for name in cores.VARIABLES[1:]:
        monkeypatch.delenv(name, raising=False)
    workbench.files(1)
    workbench.enqueue()
    workbench.worker(processor=made(modules, body), replicas_here="1000")
    assert workbench.ended().done == 1
    assert outputs(workbench) == {"17 1 1 1 1 1"}


def test_cores_are_those_of_the_process_and_of_its_cgroup(tmp_path: Path) -> None:
    here = len(os.sched_getaffinity(0))
    assert cores.threads(1, tmp_path) == here
    assert cores.threads(here, tmp_path) == cores.threads(1000, tmp_path) == 1
    group = tmp_path / "proc" / "self" / "cgroup"
    group.parent.mkdir(parents=True)
    inner = tmp_path / "sys" / "fs" / "cgroup" / "outer" / "inner"
    inner.mkdir(parents=True)
    group.write_text("0::/outer/inner\n")
    (inner / "cpu.max").write_text("max 100000\n")
    assert cores.threads(1, tmp_path) == here
    (inner.parent / "cpu.max").write_text("120000 100000\n")
    assert cores.threads(1, tmp_path) == 1
    older = tmp_path / "sys" / "fs" / "cgroup" / "cpu"
    older.mkdir()
    group.write_text("4:memory:/x\n3:cpu,cpuacct:/of/the/machine\n")
    (older / "cpu.cfs_period_us").write_text("100000\n")
    (older / "cpu.cfs_quota_us").write_text("-1\n")
    assert cores.threads(1, tmp_path) == here
    (older / "cpu.cfs_quota_us").write_text("50000\n")
    assert cores.threads(1, tmp_path) == 1


def test_no_processor_is_a_sentence() -> None:
    with pytest.raises(SettingsError, match="no processor: set IMECE_PROCESSOR"):
        Interpreter(load())


@pytest.mark.slow
def test_a_worker_has_no_more_processes_than_it_needs(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.enqueue()
    worker = workbench.worker(fresh=True)
    assert workbench.ended().done == 3
    assert len(children(worker.pid)) == 3  # template, runner, drainer
