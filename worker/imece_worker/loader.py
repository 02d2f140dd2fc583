"""`python -m imece_worker.loader`: the interpreter that imports the processor for one worker.

It is a fresh one: what the worker has imported, opened and knows is not in it. Afterwards, if it
can be forked, it is the template: it forks a runner whenever the worker orders one, so that after a
crash the next is there at once. If it cannot, because it has more threads than one, or an
accelerator, it is the runner itself.

It imports little, because the first file waits for it.
"""

import faulthandler
import gc
import json
import os
import signal
import socket
import stat
import sys
import time
from typing import Any, NoReturn

from imece.errors import SettingsError
from imece.process import follow_parent, move_up, name_process
from imece_worker import causes, processor, runner, stops
from imece_worker.batches import BatchRunner
from imece_worker.capture import Capture, flush
from imece_worker.control import Control
from imece_worker.limits import Limits
from imece_worker.processor import Command, ParameterError, Processor
from imece_worker.runner import Runner, RunnerContext

TEMPLATE, RUNNER = "imece-template", "imece-runner"
"""What `ps` and /proc call the two."""

PLAIN_DEVICES = {1, 4, 5, *range(136, 144)}
"""Linux' numbers (admin-guide/devices.txt): memory such as /dev/null, and terminals."""

FILES = 7
"""How many a runner is given: the line to its worker, the control words, the file for rows of runs
without outputs, and two for each of two captures."""


def main() -> NoReturn:
    """Standard input is the line to the worker, until it is moved out of the way."""
    os.setpgrp()  # Ctrl-C is for the worker
    stops.only_note()
    faulthandler.enable(2)
    name_process(TEMPLATE)
    line = socket.socket(fileno=move_up(os.dup(0)))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    with line.makefile("rb") as file:
        order = json.loads(file.readline() or b"null")
    if order is None:
        os._exit(0)  # the worker is gone
    follow_parent(order["worker"], signal.SIGKILL)
    sys.path[:] = order["path"]
    for name, value in order["threads"].items():
        os.environ.setdefault(name, value)
    try:
        found = processor.load(order["processing"])
        if order["given"] is not None:
            found.check(order["given"])
        answer: dict[str, Any] = {"is_template": _can_be_forked()}
    except (SettingsError, ParameterError) as error:
        answer = {"error": str(error)}
    stops.only_note()  # whatever the import has made of these signals
    flush()
    try:
        line.sendall(json.dumps(answer).encode() + b"\n")
        if "error" in answer:
            os._exit(2)
        gc.freeze()  # runners share what has been imported
        _serve(line, found, Limits(**order["limits"]), order["worker"], answer["is_template"])
    except OSError:
        os._exit(causes.CODE_OF_CLOSED_OURS)


def _can_be_forked() -> bool:
    """Whether a fork would be as good as this process. It would find the locks of other threads,
    also those of native libraries, as they are, and nobody to release them. And it would have no
    use of an open accelerator: CUDA refuses. False where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/task")) == 1 and not _has_device()
    except OSError:
        return False


def _has_device() -> bool:
    """Whether it has a device open that is neither a terminal nor one like /dev/null."""
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            found = os.fstat(number)
        except OSError:
            continue  # by which the directory was read
        if stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) not in PLAIN_DEVICES:
            return True
    return False


def _serve(
    line: socket.socket, found: Processor, limits: Limits, worker: int, is_template: bool
) -> NoReturn:
    """Makes a runner at each order; ends with the worker."""
    while True:
        order, files, _, _ = socket.recv_fds(line, 1, FILES)
        if not order:
            os._exit(0)
        if not is_template:
            line.close()
            _run(found, limits, files)
        # The worker is to be the runner's parent, which sees how it ends. So a process between the
        # two ends at once, and the worker adopts what it leaves.
        stops.note_in_children(True)
        if (between := os.fork()) == 0:
            between = os.getpid()
            if os.fork() != 0:
                os._exit(0)
            while os.getppid() == between:
                time.sleep(0.0001)
            follow_parent(worker, signal.SIGKILL)
            os.setpgrp()
            line.close()
            stops.note_in_children(False)
            _run(found, limits, files)
        stops.note_in_children(False)
        os.waitpid(between, 0)
        for number in files:
            os.close(number)


def _run(found: Processor, limits: Limits, files: list[int]) -> NoReturn:
    """Makes this process the runner."""
    name_process(RUNNER)
    number, control, rows, *captured = files
    line = socket.socket(fileno=move_up(number))
    line.sendall(b"%d\n" % os.getpid())
    capture, errors = Capture((captured[0], captured[1])), Capture((captured[2], captured[3]))
    if isinstance(found, Command):
        found.errors = errors
    kind = BatchRunner if found.batch > 1 else Runner
    runner.run(RunnerContext(found, Control(control), move_up(rows), capture, line, limits, kind))


if __name__ == "__main__":
    main()
