"""Local mode: an embedded server, the producer, and workers of this machine, as many as the rule of
the cluster asks for: replicas = pending + in flight, up to a limit, down to zero."""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

from pydantic import SecretStr
from redis import Redis

from imece import names
from imece.connection import OUTAGES, connect, reachable, text
from imece.errors import ImeceError, RunError, UsageError
from imece.files.listing import Listing
from imece.process import follow_parent
from imece.run import keys, status
from imece.run.parameters import Parameters
from imece.run.status import Status
from imece.run.store import ON, Run
from imece.settings import PREFIX, Settings
from imece_producer import display
from imece_producer.enqueue import Producer
from imece_producer.local.server import Server

FAILED = 1
INTERRUPTED = 128
"""With the number of the signal added, as a shell does."""

OTHER_SERVER = ("redis_username", "redis_password", "redis_sentinels", "redis_sentinel_master")
"""What settings say of a server that is not the embedded one."""

LIMIT_KEY = "imece:local:max-replicas"
CALL_KEY = "imece:local:call"
"""What processes the files of the run that is on; there once it is enqueued."""

EXIT_CODE = "exit-code"
"""The file with a call's exit code, for those that have attached to it."""

TURN = 0.1
"""Seconds between two looks at the queue."""

STABILIZATION = 2.0
"""Seconds there must be too many workers before one is stopped."""

SAMPLE = 0.5
"""Seconds between two counts of replicas for the summary."""

LOCK_PATIENCE = 0.3

QUICK_DEATH = 5.0
"""A worker that fails within so many seconds of its start has not failed because of a file."""


class OccupiedError(RunError):
    """Another call processes this run."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps a second local run out of a state directory.

    Raises:
        OccupiedError: there is one.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise UsageError(
            f"IMECE_STATE_DIR: {directory} cannot be written to: {error.strerror}"
        ) from None
    with lock:
        if not _locked(lock):
            raise OccupiedError(directory.name)
        try:
            (directory / EXIT_CODE).unlink(missing_ok=True)
            yield
        finally:
            _address(directory).unlink(missing_ok=True)


def _locked(lock: TextIO) -> bool:
    """Takes the lock, unless somebody keeps it; `live` holds one for an instant only."""
    end = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)


def announce(directory: Path, url: str) -> None:
    """Lets other commands find the server of a local run; they see the whole address or none."""
    unfinished = directory / "server.url.new"
    unfinished.write_text(url, "utf-8")
    unfinished.rename(_address(directory))


def live(state_dir: Path) -> dict[str, str]:
    """The local runs that are on: run id -> URL of their server."""
    found = {}
    for file in sorted(state_dir.glob("*/server.url")):
        try:
            url = file.read_text("utf-8")
            with (file.parent / "lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found[file.parent.name] = url
        except OSError:
            pass  # it is just ending
    return found


def _address(directory: Path) -> Path:
    return directory / "server.url"


class Replicas:
    """The worker processes of a local run.

    Args:
        settings: `IMECE_…` variables for the workers.
        log: file their log goes to.
    """

    def __init__(self, redis: Redis, queue: str, settings: dict[str, str], log: Path) -> None:
        self._redis = redis
        self._queue = queue
        self._environment = {**os.environ, **settings}
        self._log = log
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._started: dict[int, float] = {}
        self._stopping: set[int] = set()
        self._surplus_since: float | None = None

    def __len__(self) -> int:
        return len(self._workers)

    def adjust(self, wanted: int, limit: int) -> None:
        """Starts or stops workers: at once up to what is wanted, and down to the limit; further
        down when there have been too many for a while.

        Raises:
            ImeceError: workers cannot be started, for a reason in their settings.
        """
        self._reap()
        active = len(self._workers) - len(self._stopping)
        for _ in range(active, wanted):
            self._start()
        if active <= wanted:
            self._surplus_since = None
            return
        now = time.monotonic()
        self._surplus_since = self._surplus_since or now
        keep = wanted if now - self._surplus_since >= STABILIZATION else limit
        if active > keep:
            self._stop(active - keep)

    def _start(self) -> None:
        with self._log.open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "imece_worker"],  # -P: ours, not one in this directory
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us
                # Killed with us, the server is gone, and nobody waits for the file in hand.
                preexec_fn=partial(follow_parent, os.getpid(), signal.SIGQUIT),  # noqa: PLW1509
            )
        self._workers[worker.pid] = worker
        self._started[worker.pid] = time.monotonic()

    def _stop(self, count: int) -> None:
        """Asks so many to stop, idle ones first: as in the cluster, nobody is taken from a file."""
        candidates = [pid for pid in self._workers if pid not in self._stopping]
        busy = self._busy()
        for pid in sorted(candidates, key=lambda pid: pid in busy)[:count]:
            self._workers[pid].terminate()
            self._stopping.add(pid)

    def _busy(self) -> set[int]:
        """The process ids of the workers that hold a job."""
        busy = set()
        for key in self._redis.smembers(keys.workers(self._queue)):
            state, pid = self._redis.hmget(key, "state", "pid")
            if state == b"busy" and pid is not None:
                busy.add(int(pid))
        return busy

    def _reap(self) -> None:
        for pid, worker in list(self._workers.items()):
            code = worker.poll()
            if code is None:
                continue
            lived = time.monotonic() - self._started.pop(pid)
            del self._workers[pid]
            self._stopping.discard(pid)
            if code > 0 and lived < QUICK_DEATH:
                error = ImeceError(self._last_line())
                error.exit_code = code
                raise error

    def _last_line(self) -> str:
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()
        last = lines[-1] if lines else "no reason given"
        return last.removeprefix("imece-worker: ")

    def hand_back(self, patience: Callable[[], bool]) -> None:
        """Asks all to stop and waits until they have; kills them when patience is at its end."""
        for pid, worker in self._workers.items():
            if pid not in self._stopping:
                worker.terminate()
        for worker in self._workers.values():
            while worker.poll() is None:
                if not patience():
                    worker.kill()
                time.sleep(0.02)
        self._workers.clear()
        self._stopping.clear()


class Interrupts:
    """Counts Ctrl-C (and SIGTERM, SIGHUP) in place of breaking off wherever we are."""

    def __init__(self) -> None:
        self.count = 0
        self.number = 0  # of the last one

    def __enter__(self) -> "Interrupts":
        self._before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) != signal.SIG_IGN  # nohup
        }
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.count += 1
        self.number = number


def process(
    run: Run,
    replicas: Replicas,
    interrupts: Interrupts,
    show: Callable[[Status, str], None],
) -> tuple[Status, list[int]]:
    """Runs workers until the run has ended or Ctrl-C was pressed; then none is left.

    Returns:
        The run's last status, and how many replicas there were, every SAMPLE seconds.
    """
    samples: list[int] = []
    sample_at = time.monotonic()
    try:
        while True:
            now = status.read(run)
            limit = read_limit(run.redis)
            queued = now.backlog.pending + now.backlog.in_flight
            if (now.has_ended and queued == 0) or now.is_held or interrupts.count:
                break
            replicas.adjust(min(limit, queued), limit)
            if time.monotonic() >= sample_at:
                samples.append(len(replicas))
                sample_at += SAMPLE
            show(now, f"{len(replicas)} of at most {limit} replicas")
            time.sleep(TURN)
        if interrupts.count:
            display.say(
                "handing back: the files in hand are finished first (Ctrl-C again kills them)"
            )
    finally:
        replicas.hand_back(lambda: interrupts.count < 2)
    last = status.read(run)
    show(last, "")
    return last, samples


def read_limit(redis: Redis) -> int:
    return int(redis.get(LIMIT_KEY) or 1)


def set_limit(redis: Redis, limit: int) -> int | None:
    """Changes the limit of a local run; what it was."""
    before = redis.set(LIMIT_KEY, limit, get=True)
    return int(before) if before is not None else None


def worker_settings(url: str, **settings: str | Path | float | None) -> dict[str, str]:
    """Settings as environment variables for worker processes."""
    given = {name: str(value) for name, value in settings.items() if value is not None}
    given |= dict.fromkeys(OTHER_SERVER, "")
    given["redis_url"] = url
    given["metrics_port"] = "0"  # several workers, one host
    return {PREFIX + name.upper(): value for name, value in given.items()}


def at(settings: Settings, url: str) -> Settings:
    """The settings for the server of a local run, whatever other server they name."""
    return settings.model_copy(
        update={**dict.fromkeys(OTHER_SERVER), "redis_url": SecretStr(url)},
    )


def only_live(state_dir: Path, run_id: str | None) -> tuple[str, str]:
    """The local run that is meant.

    Raises:
        UsageError: there is none, or it is not clear which.
    """
    runs = live(state_dir)
    if run_id is not None and run_id in runs:
        return run_id, runs[run_id]
    if not runs or run_id is not None:
        raise UsageError("no local run is on" + (f" under the id {run_id}" if run_id else ""))
    if len(runs) > 1:
        raise UsageError(f"several local runs are on: name one with --run: {', '.join(runs)}")
    return next(iter(runs.items()))


def end_stopped(run: Run, settings: Settings) -> None:
    """Cancels what an earlier call has left: nobody else works on it. So this call is its next
    round, takes new files, and begins nothing a second time."""
    with contextlib.suppress(RunError):
        if run.state() in ON:
            run.cancel(settings.result_ttl)


def derived_run_id(parameters: Parameters, settings: Settings) -> str:
    """The same for the same call, so that a second one goes on where the first was stopped."""
    what = f"{parameters.encode()} {settings.processor} {settings.command}"
    digest = hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()[: names.DIGEST]
    name = names.plain(parameters.input_path.resolve().name[:40])
    return names.slug(f"{name}-{digest}".lstrip("-"))


def run_here(
    settings: Settings,
    run_id: str,
    parameters: Parameters,
    list_files: Callable[[], Listing],
    limit: int,
    as_json: bool,
) -> int:
    """The whole of `imece local`; its exit code."""
    directory = settings.state_dir.expanduser() / run_id
    try:
        return _process_here(settings, directory, parameters, list_files, limit, as_json)
    except OccupiedError:
        return attach(settings, directory, parameters, as_json)


def _call(settings: Settings) -> str:
    """What processes a file."""
    return json.dumps({"processor": settings.processor, "command": settings.command})


def attach(settings: Settings, directory: Path, parameters: Parameters, as_json: bool) -> int:
    """Shows how far the call is that processes the run, until it ends; its exit code.

    Raises:
        RunError: it processes the run with other options, or was killed.
    """
    run_id, last = directory.name, None
    display.say(f"run {run_id} is on already: this shows how far it is")
    try:
        with display.following(quiet=as_json) as follower:
            while (url := live(directory.parent).get(run_id)) is not None or is_locked(directory):
                with contextlib.suppress(*OUTAGES), contextlib.ExitStack() as stack:
                    if url is not None:
                        redis = stack.enter_context(
                            contextlib.closing(connect(at(settings, url), retries=0))
                        )
                        if (call := redis.get(CALL_KEY)) is not None:
                            run = Run(redis, run_id)
                            _check_same(run, text(call), parameters, settings)
                            last = status.read(run)
                            follower.show(last)
                time.sleep(TURN)
    except KeyboardInterrupt:
        display.say(f"run {run_id} goes on: `imece status {run_id}` shows how far it is")
        return INTERRUPTED + signal.SIGINT
    try:
        code = int((directory / EXIT_CODE).read_text("ascii"))
    except (OSError, ValueError):
        raise RunError(
            f"the call that processed run {run_id} was killed", "call the same again to go on"
        ) from None
    if last is not None:
        if as_json:
            display.put_json(last.summary())
        else:
            display.put(display.block(last))
    return code


def _check_same(run: Run, call: str, parameters: Parameters, settings: Settings) -> None:
    there, wanted = json.loads(call), json.loads(_call(settings))
    different = [name for name in wanted if there[name] != wanted[name]]
    different += run.parameters().differences(parameters)
    if different:
        raise RunError(
            f"run {run.id} is on with another {', another '.join(different)}",
            "wait until it has ended, or take another --run-id",
        )


def is_locked(directory: Path) -> bool:
    """Whether a call processes the run of this directory."""
    with (directory / "lock").open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _process_here(
    settings: Settings,
    directory: Path,
    parameters: Parameters,
    list_files: Callable[[], Listing],
    limit: int,
    as_json: bool,
) -> int:
    run_id = directory.name
    began = time.monotonic()
    with locked(directory), Server(directory) as server, Interrupts() as interrupts:
        announce(directory, server.url)
        inner = at(settings, server.url)
        with reachable(inner):
            redis = connect(inner)
            set_limit(redis, limit)
            redis.delete(CALL_KEY)
            run = Run(redis, run_id)
            end_stopped(run, inner)
            enqueued = Producer(redis, inner, display.say).enqueue(run_id, parameters, list_files)
            redis.set(CALL_KEY, _call(settings))
            if not as_json:
                display.put(display.enqueued(enqueued))
            log = directory / "workers.log"
            log.write_bytes(b"")
            environment = worker_settings(
                server.url,
                processor=settings.processor,
                command=settings.command,
                log_format=settings.log_format,
            )
            replicas = Replicas(redis, inner.queue, environment, log)
            with display.following(quiet=as_json) as follower:
                last, samples = process(run, replicas, interrupts, follower.show)
            told = [
                *display.summary(last, time.monotonic() - began, samples),
                *display.failures(run, last, directory / "failures.jsonl"),
            ]
            if as_json:
                display.put_json({**last.summary(), "replicas": samples})
            else:
                display.put("\n".join(told))
            stopped = interrupts.count and not last.has_ended
            ended = 0 if last.state == "done" else FAILED
            code = INTERRUPTED + interrupts.number if stopped else ended
            (directory / EXIT_CODE).write_text(str(code), "ascii")
    if stopped:
        display.say(
            "stopped; to go on, call the same again"
            + (" (with --overwrite that processes all files again)" if parameters.overwrite else "")
            + ":\n  "
            + shlex.join(["imece", *sys.argv[1:]])
        )
    return code
