"""The worker's side of imece_worker/loader.py: the fresh interpreter that imports the processor.

The worker itself never imports it. So nothing that the worker has (threads, connections, secrets)
gets to the processor, and nothing that an import does harms the worker.
"""

import atexit
import json
import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from imece import processing, version
from imece.errors import SettingsError
from imece.settings import Settings
from imece.version import Version
from imece_worker import causes, cores, log, stops
from imece_worker.runner import STOP_PATIENCE

LONG_IMPORT = 30.0
"""Seconds after which the log says that an import is still on; again after twice as long."""

END_PATIENCE = 1.0
"""Seconds between the last word of a process and its end."""


class Interpreter:
    """Started when it is made, and again with `start`.

    Args:
        given: what a run would set for the processor: looks whether it takes that, too.

    Attributes:
        line: to it.
        processing: what it imports; see `Settings.processing`. A change needs `start`.
        is_template: it forks runners; otherwise it becomes the runner. Known once it is ready.
        version: of what it imports.
    """

    def __init__(self, settings: Settings, given: Mapping[str, Any] | None = None) -> None:
        if not settings.processing and not processing.named(settings.processors):
            raise SettingsError(
                "no processor: set IMECE_PROCESSOR=package.module:function, "
                "or IMECE_COMMAND='tool --in {input} --out {output}', or IMECE_SHELL"
            )
        self._settings, self.processing = settings, settings.processing
        self._given = given
        self.version: Version
        self.start()
        atexit.register(self.end)

    def start(self) -> None:
        settings = self._settings
        self.line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*_python(), "-m", "imece_worker.loader"], stdin=theirs.fileno()
            )
        self.version = version.of(self.processing, settings.image)
        self._answer = b""
        self._is_ready = self.is_template = False
        self._began = time.monotonic()
        self._told_at = self._began + LONG_IMPORT
        order = {
            "worker": os.getpid(),
            "path": sys.path,
            "threads": dict.fromkeys(cores.VARIABLES, str(cores.threads(settings.replicas_here))),
            "processing": self.processing,
            "given": self._given,
            "limits": {
                "address_space": settings.memory_limit,
                "files": settings.runner_max_files,
                "memory": settings.runner_max_memory,
            },
        }
        try:
            self.line.sendall(json.dumps(order).encode() + b"\n")
        except OSError:
            pass  # it has died: `is_ready` tells

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_ready(self) -> bool:
        """Whether it has imported the processor. It does not wait: `line` can be read when it has.

        Raises:
            SettingsError: the processor cannot be had.
        """
        if self._is_ready:
            return True
        if not select.select([self.line], [], [], 0)[0]:
            self._tell()
            return False
        try:
            part = self.line.recv(2**16)
        except OSError:
            part = b""
        if not part:
            raise SettingsError(f"{self._what()} failed: {self._death()}")
        self._answer += part
        if not self._answer.endswith(b"\n"):
            return False
        answer = json.loads(self._answer)
        if "error" in answer:
            raise SettingsError(answer["error"])
        self._is_ready, self.is_template = True, answer["is_template"]
        return True

    def wait(self) -> None:
        """Until the processor is imported, for as long as there is nothing else to do.

        Raises:
            SettingsError: as `is_ready`.
        """
        while not self.is_ready():
            select.select([self.line], [], [], 1.0)

    @property
    def what(self) -> str:
        """What it imports, in a word for people."""
        return next(iter(self.processing.values()), "")

    def _tell(self) -> None:
        now = time.monotonic()
        if now >= self._told_at:
            self._told_at = now + (now - self._began)
            log.event(
                "processor not imported yet",
                logging.WARNING,
                reason=f"{self._what()} takes longer than {now - self._began:.0f} s. "
                "A module is for definitions; leave the work to the function",
            )

    def _what(self) -> str:
        spec = self.processing.get("processor")
        if not spec:
            return "the start of the processor's process"
        return f"IMECE_PROCESSOR={spec}: importing {spec.partition(':')[0]}"

    def _death(self) -> str:
        try:
            code = self._process.wait(END_PATIENCE)
        except subprocess.TimeoutExpired:
            return "it closed files that imece had opened"
        if stops.is_death_by_stop(code):  # whoever stops all processes may reach the worker last
            time.sleep(STOP_PATIENCE)
        return causes.death(code)[1]

    def order(self, files: Sequence[int]) -> None:
        """A runner, which gets these files. Nothing tells if it is dead."""
        try:
            socket.send_fds(self.line, [b"r"], files)
        except OSError:
            pass

    def ended(self) -> int | None:
        """Its exit code if it has ended, negative for a signal; otherwise None."""
        return self._process.poll()

    def end(self) -> int:
        """Ends it; its exit code."""
        self._process.kill()
        self.line.close()
        return self._process.wait()


def _python() -> list[str]:
    """Python as this process was started. -P: the path is given, and so comes later."""
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, *(() if sys.flags.safe_path else ("-P",))]
