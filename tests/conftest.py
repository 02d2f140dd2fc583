"""Real parts for the tests: a server, worker processes, files."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from imece.run.failure import Failure
from imece.run.status import Status
from imece.run.status import read as read_status
from imece.run.store import Run
from imece.settings import Settings, load
from imece_producer.enqueue import Enqueued, Producer
from imece_producer.local import server as server_module
from imece_producer.local.server import Server
from imece_producer.request import list_files, parameters_of
from imece_worker.loader import RUNNER, TEMPLATE
from tests import forks
from tests.clusters import cluster, control_plane, stand_in  # noqa: F401 - fixtures

ROOT = Path(__file__).parent.parent

# make test-redis: the tests' own server is this program.
if "TEST_SERVER" in os.environ:
    server_module.program = lambda: os.environ["TEST_SERVER"]

# Airflow has a virtual environment of its own: make test-airflow.
collect_ignore = [] if find_spec("airflow") else ["airflow"]


def until(condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
    """Waits for a condition to become true; its value. Most take less than a second on a quiet
    machine."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {timeout} s for {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Zombies, which wait for somebody to take notice of their end, do not run."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, marker in (("server", "redis"), ("cluster", "cluster")):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


@pytest.fixture(scope="session", autouse=True)
def templates() -> Iterator[None]:
    """Ends those that were made."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test`: workers would heed that, too
    yield
    forks.Template.close_all()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of whoever runs the tests gets in."""
    for name in list(os.environ):
        if name.startswith("IMECE_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("IMECE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    for name in ("HOST", "PORT"):
        monkeypatch.delenv(f"KUBERNETES_SERVICE_{name}", raising=False)


def pytest_collection_finish() -> None:
    """What has been imported is looked through for garbage no more."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "redis") as running:
        yield running
        running.stop(signal.SIGKILL)  # nobody reads its data: no need to let it end in good order


@pytest.fixture
def redis(server: Server) -> Iterator[Redis]:
    client = Redis(unix_socket_path=str(server.socket))
    yield client
    client.close()


class WorkerProcess:
    """An `imece-worker` of its own, with its log in a file.

    Args:
        before: called in the new process before the worker is started in it.
        fresh: whether it is started, and not forked (tests/forks.py).
        leads: whether it leads a process group, in a session of its own.
    """

    def __init__(
        self,
        environment: dict[str, str],
        log: Path,
        before: Callable[[], None] | None = None,
        fresh: bool = False,
        leads: bool = False,
    ) -> None:
        self.log_file = log
        popen = subprocess.Popen if fresh else forks.Popen
        with log.open("ab") as stream:
            self.process: subprocess.Popen[bytes] = popen(
                [sys.executable, "-m", "imece_worker"],
                env={**os.environ, **environment},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                preexec_fn=before,
                start_new_session=leads,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """What it has logged, with log_format json: every line must be JSON."""
        lines = self.log().rpartition("\n")[0].splitlines()
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if event is None or entry["event"] == event]

    def started(self) -> "WorkerProcess":
        """Waits until it listens to signals."""
        until(lambda: "worker started" in self.log(), "the worker to start")
        return self

    def took(self, jobs: int = 1) -> "WorkerProcess":
        """Waits until it has taken so many jobs."""
        until(lambda: self._has_taken(jobs), f"{jobs} jobs to be taken")
        return self

    def _has_taken(self, jobs: int) -> bool:
        ended = self.process.poll()
        assert ended is None, f"the worker has ended with {ended}: {self.log()}"
        return self.log().count("job taken") >= jobs

    def runner(self) -> int:
        """Waits for its runner; the process id."""
        found: list[int] = until(self.runners, "a runner")
        return found[0]

    def runners(self) -> list[int]:
        """The process ids of its children that process files."""
        return self._called(RUNNER)

    def template(self) -> int:
        """Waits for the process that forks its runners; the process id."""
        found: list[int] = until(lambda: self._called(TEMPLATE), "a template")
        return found[0]

    def _called(self, name: str) -> list[int]:
        found = []
        for pid in self.children():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                    found.append(pid)
        return found

    def children(self) -> list[int]:
        with suppress(FileNotFoundError, ProcessLookupError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
            return [int(pid) for pid in children.read_text().split()]
        return []

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 20.0) -> int:
        return self.process.wait(timeout)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.kill(signal.SIGTERM)
        return self.wait()


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


class Workbench:
    """A server, an input and an output directory, and what is done with them.

    `settings` are IMECE_ settings without the prefix, for producer and workers alike.
    """

    def __init__(self, server: Server, redis: Redis, folder: Path) -> None:
        self.server = server
        self.redis = redis
        self.source = folder / "in"
        self.target = folder / "out"
        self.folder = folder
        self.source.mkdir()
        self.settings: dict[str, str] = {
            "redis_url": server.url,
            "processor": "tests.processors:copy",
            "retries": "1",
            "retry_pause": "0.05",
            "lease": "5",
            "heartbeat": "0.3",
            "checkpoint": "0.2",
        }
        self.workers: list[WorkerProcess] = []

    def environment(self) -> dict[str, str]:
        return {f"IMECE_{name.upper()}": value for name, value in self.settings.items()}

    def files(self, count: int, content: bytes | None = None) -> list[str]:
        """Makes `count` files f-0000.txt …; their names."""
        names = [f"f-{number:04d}.txt" for number in range(count)]
        for name in names:
            (self.source / name).write_bytes(content if content is not None else name.encode())
        return names

    def file(self, name: str, content: str = "content") -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def load(self) -> Settings:
        return load(**self.settings)

    def enqueue_apart(self, run_id: str, **options: Any) -> Enqueued:
        """As `enqueue`, into an output directory of the run's own: beside another one."""
        return self.enqueue(run_id, target=str(self.folder / f"out-of-{run_id}"), **options)

    def enqueue(self, run_id: str = "run", **options: Any) -> Enqueued:
        """As `imece enqueue`, in this process. Options as in `parameters_of`."""
        settings = self.load()
        given: dict[str, Any] = dict.fromkeys(
            (
                "suffix",
                "from_file",
                "include",
                "exclude",
                "buckets",
                "files_per_job",
                "retries",
                "max_failed",
                "timeout",
                "set",
            )
        )
        given.update({"overwrite": False, "hidden": False}, **options)
        target = given.pop("target", str(self.target))
        parameters = parameters_of(settings, self.source, target, **given)
        producer = Producer(self.redis, settings)
        return producer.enqueue(
            run_id, parameters, lambda: list_files(parameters, given["from_file"], False)
        )

    def worker(self, before: Any = None, fresh: Any = False, **settings: str) -> WorkerProcess:
        """Starts a worker, or forks one (tests/forks.py); all are killed when the test ends."""
        environment = self.environment()
        environment |= {f"IMECE_{name.upper()}": value for name, value in settings.items()}
        log = self.folder / f"worker-{len(self.workers)}.log"
        self.workers.append(WorkerProcess(environment, log, before, fresh))
        return self.workers[-1]

    def run(self, run_id: str = "run") -> Run:
        return Run(self.redis, self.settings.get("queue", "imece"), run_id)

    def status(self, run_id: str = "run") -> Status:
        return read_status(self.run(run_id))

    def ended(self, run_id: str = "run", timeout: float = 30.0) -> Status:
        """Waits until the run has ended; its last status."""
        until(lambda: self.status(run_id).has_ended, f"run {run_id} to end", timeout)
        return self.status(run_id)

    def outputs(self) -> list[str]:
        """All files below the output directory but the ledger's, temporary ones too."""
        found = [path for path in self._found("*") if self.target / ".imece" not in path.parents]
        return sorted(str(path.relative_to(self.target)) for path in found if path.is_file())

    def temporaries(self) -> list[Path]:
        return self._found(".imece-*")

    def _found(self, pattern: str) -> list[Path]:
        while True:
            with suppress(FileNotFoundError):  # a directory that went at that moment
                return list(self.target.rglob(pattern))

    def failures(self, run_id: str = "run") -> dict[str, Failure]:
        """The quarantined files and why."""
        return {os.fsdecode(name): why for name, why in self.run(run_id).failures()}

    def begun(self) -> Counter[str]:
        """How often each file was begun, by processors that keep a trace."""
        return self._traced("begun")

    def finished(self) -> Counter[str]:
        """How often each file was finished, by processors that keep a trace."""
        return self._traced("finished")

    def _traced(self, word: str) -> Counter[str]:
        traces = {path.name: path.read_text() for path in (self.folder / "trace").glob("*")}
        return Counter({name: text.count(word) for name, text in traces.items() if word in text})

    def imece(
        self, *arguments: str, timeout: float = 60.0, **settings: str
    ) -> "subprocess.CompletedProcess[str]":
        """Runs the command line as a user would."""
        environment = {**os.environ, **self.environment()}
        environment |= {f"IMECE_{name.upper()}": value for name, value in settings.items()}
        words = [sys.executable, "-m", "imece_producer", *arguments]
        return forks.run(words, env=environment, cwd=ROOT, timeout=timeout)

    def check_books(self, run_id: str = "run", others: int = 0) -> Status:
        """Each file exactly once in the outcome, counters as on disk, nothing left behind.

        Args:
            others: outputs of files that are not of the run's last round.
        """
        now = self.status(run_id)
        assert now.done + now.failed + now.skipped + now.left == now.files
        assert now.left >= 0
        assert self.temporaries() == []
        assert len(self.outputs()) == now.done + now.skipped + others
        assert self.redis.hlen(f"{self.run(run_id).key}:failures") == now.failed
        return now

    def immortal_keys(self) -> list[str]:
        """Keys without a TTL."""
        return sorted(
            key.decode("utf-8", "replace")
            for key in self.redis.scan_iter()
            if self.redis.ttl(key) == -1
        )

    def leaves_nothing_behind(self, run_id: str = "run") -> bool:
        """Stops the workers and deletes the run: whether every key left has a TTL."""
        for worker in self.workers:
            worker.stop()
        self.run(run_id).delete()
        assert self.immortal_keys() == []
        return True

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
                worker.wait()


def uptime(workbench: Workbench) -> int:
    """Whole seconds since the server was started."""
    seconds: int = workbench.redis.info("server")["uptime_in_seconds"]
    return seconds


@pytest.fixture
def workbench(server: Server, redis: Redis, tmp_path: Path) -> Iterator[Workbench]:
    made = Workbench(server, redis, tmp_path)
    yield made
    made.close()
