"""The scaling rule of a local run, its limit, and its workers.

The rule is that of a cluster (deploy/base/scaledobject.yaml), without KEDA.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from redis import Redis

from imece.errors import ImeceError
from imece.process import follow_parent
from imece.run import keys
from imece.run.status import Backlog
from imece.settings import PREFIX
from imece_producer.local.state import OTHER_SERVER, QUEUE

LIMIT_KEY = "imece:local:max-replicas"

STABILIZATION = 2.0
"""Seconds there must be too many workers before one is stopped."""

REFUSALS = (2, 3)
"""Exit codes of a worker that another one would end with, too: wrong settings, no Redis."""

QUICK_DEATH = 5.0
"""A worker that fails within so many seconds of its start has not failed because of a file."""


def wanted(backlog: Backlog, limit: int) -> int:
    """The scaling rule: a worker for each job that is pending or in flight, up to the limit."""
    return min(limit, backlog.pending + backlog.in_flight)


class Replicas:
    """The worker processes of a local run.

    Args:
        settings: `IMECE_…` variables for the workers.
        log: file their log goes to.
    """

    def __init__(self, redis: Redis, settings: dict[str, str], log: Path) -> None:
        self._redis = redis
        self._environment = {**os.environ, **settings}
        self.log = log
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._started: dict[int, float] = {}
        self._stopping: set[int] = set()
        self._surplus_since: float | None = None

    def __len__(self) -> int:
        return len(self._workers)

    def adjust(self, wanted: int, limit: int) -> None:
        """Starts or stops workers: at once up to what is wanted, and down to the limit. It goes
        further down when there have been too many for a while.

        Raises:
            ImeceError: workers cannot be started, for a reason in their settings.
        """
        self._reap()
        active = len(self._workers) - len(self._stopping)
        for _ in range(active, wanted):
            self._start(limit)
        if active <= wanted:
            self._surplus_since = None
            return
        now = time.monotonic()
        self._surplus_since = self._surplus_since or now
        keep = wanted if now - self._surplus_since >= STABILIZATION else limit
        if active > keep:
            self._stop(active - keep)

    def _start(self, limit: int) -> None:
        with self.log.open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "imece_worker"],  # -P: ours, not one in this directory
                env={**self._environment, f"{PREFIX}REPLICAS_HERE": str(limit)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us
                # If we are killed, so is the server: nobody needs the current file any more.
                preexec_fn=partial(follow_parent, os.getpid(), signal.SIGQUIT),  # noqa: PLW1509
            )
        self._workers[worker.pid] = worker
        self._started[worker.pid] = time.monotonic()

    def _stop(self, count: int) -> None:
        """Asks so many to stop, idle ones first, as in the cluster."""
        candidates = [pid for pid in self._workers if pid not in self._stopping]
        busy = self._busy()
        for pid in sorted(candidates, key=lambda pid: pid in busy)[:count]:
            self._workers[pid].terminate()
            self._stopping.add(pid)

    def _busy(self) -> set[int]:
        """The process ids of the workers that hold a job."""
        busy = set()
        for key in self._redis.smembers(keys.workers(QUEUE)):
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
            if code in REFUSALS or (code > 0 and lived < QUICK_DEATH):
                error = ImeceError(self._last_line())
                error.exit_code = code
                raise error

    def _last_line(self) -> str:
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        last = lines[-1] if lines else "no reason given"
        return last.removeprefix("imece-worker: ")

    def stop(self, patience: Callable[[], bool], tell: Callable[[], None]) -> None:
        """Asks all to stop and waits until they have, calling `tell` again and again; kills them if
        `patience` says no."""
        for pid, worker in self._workers.items():
            if pid not in self._stopping:
                worker.terminate()
        for worker in self._workers.values():
            while worker.poll() is None:
                if not patience():
                    worker.kill()
                tell()
                time.sleep(0.02)
        self._workers.clear()
        self._stopping.clear()


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
    given["redis_url"], given["queue"] = url, QUEUE
    given["metrics_port"] = "0"  # several workers, one host
    return {PREFIX + name.upper(): value for name, value in given.items()}
