"""Worker processes that start in some ms: a process that has imported the worker forks, again and
again. Each is what `python -m imece_worker` is, in a session and process group of its own; but it
is not started anew without its secrets (imece_worker/handover.py), for that would be as slow as any
start.

As a program (`python -m tests.forks`) this is that process: a line of JSON on its standard input
for each worker, whose process id it prints.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from tests.conftest import ROOT, is_running, until


class Forked:
    """A worker process, and the process group it leads."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.is_frozen = False
        self.is_leaving = False

    @property
    def is_alive(self) -> bool:
        return is_running(self.pid)

    def signal(self, number: signal.Signals, whole_group: bool = False) -> None:
        try:
            (os.killpg if whole_group else os.kill)(self.pid, number)
        except ProcessLookupError:
            pass

    def children(self) -> list[int]:
        try:
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return []
        return [int(pid) for pid in text.split()]

    def ended(self) -> None:
        until(lambda: not self.is_alive, "the worker to end")


class Forks:
    """Makes them."""

    def __enter__(self) -> "Forks":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()

    def worker(self, settings: dict[str, str], log: Path) -> Forked:
        """Starts a worker with these variables added to the environment."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"environment": {**os.environ, **settings}, "log": str(log)}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return Forked(int(self._process.stdout.readline()), log)


def serve() -> None:
    importlib.import_module("imece_worker.command")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become_worker(order["environment"], order["log"])
        print(pid, flush=True)


def become_worker(environment: dict[str, str], log: str) -> NoReturn:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        nothing = os.open(os.devnull, os.O_RDONLY)
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number, source in enumerate((nothing, written, written)):
            os.dup2(source, number)
        os.close(nothing)
        os.close(written)
        from imece_worker import command, stops

        stops.leave_with(0)
        code = command.main([])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
