"""`python -m imece_worker.reproduce`: one file, in the foreground, for `imece reproduce`.

What the processor prints goes to the terminal, an error is shown as it is, and a debugger can look
at it. Nothing of it is recorded. The processor is that of the settings, as for a worker.
"""

import faulthandler
import json
import os
import pdb
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

from imece import names
from imece.errors import ImeceError, SettingsError
from imece.settings import load
from imece_worker import causes, processor

DUMP_PATIENCE = 0.5
"""Seconds in which a process whose time is up says where it hangs."""


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        name: of the file in the run.
        target: None if the run wants no output.
        timeout: seconds; None: no limit.
        debugger: whether it starts at an error.
        set: see `Parameters.set`.
        told: the descriptor to which a byte is written at the end. If none comes, the processor has
            ended the process.
    """

    source: str
    name: str
    target: str | None
    timeout: float | None
    debugger: bool
    set: dict[str, Any]
    told: int


def main() -> NoReturn:
    """Its argument is a `Job` as a JSON object."""
    job = Job(**json.loads(sys.argv[1]))
    try:
        cause = _process(job)
        if cause:
            print(f"failed: {names.printable(cause)}", file=sys.stderr)
        code = 1 if cause else 0
    except ImeceError as error:
        print(f"imece: {names.printable(str(error))}", file=sys.stderr)
        code = error.exit_code
    sys.stdout.flush()
    os.write(job.told, b".")
    os._exit(code)  # whatever the processor has left running


def _process(job: Job) -> str:
    """Why it failed; nothing if it did not."""
    settings = load()
    function = processor.load(settings.processing)
    limit = settings.memory_limit * 2**20 if settings.memory_limit is not None else None
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        cause = _call(function, job, limit, lambda: function.take(job.set))
    except processor.ParameterError as error:
        raise SettingsError(str(error)) from None
    if cause:
        return cause
    if isinstance(function, processor.Command):
        cause = _run(function, job)
    else:
        cause = _process_file(function, job, limit)
    try:
        function.close()
    except processor.CloseError as error:
        print(names.printable(str(error)), file=sys.stderr)
    if not cause and job.target is not None and not os.path.lexists(job.target):
        return "the processor returned without writing its output"
    return cause


def _run(command: processor.Command, job: Job) -> str:
    target = os.fsencode(job.target) if job.target is not None else None
    words = command.words(os.fsencode(job.source), target, os.fsencode(job.name))
    try:
        with command.stdout(target) or nullcontext() as stdout:
            ended = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                env=command.environment,
                timeout=job.timeout,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        return causes.of_timeout(error.timeout)
    return causes.of_exit(ended.returncode) if ended.returncode else ""


def _process_file(function: processor.Processor, job: Job, memory_limit: int | None) -> str:
    """With the time limit, which ends the process, also in C code."""
    if job.timeout is not None:
        faulthandler.dump_traceback_later(job.timeout)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, job.timeout + DUMP_PATIENCE)
    target = os.fsencode(job.target) if job.target is not None else None
    source, name = os.fsencode(job.source), os.fsencode(job.name)
    return _call(function, job, memory_limit, lambda: function(source, target, name))


def _call(
    function: processor.Processor, job: Job, memory_limit: int | None, act: Callable[[], None]
) -> str:
    """Lets the processor do something; why that failed, if it did."""
    failure: BaseException | None = None
    try:
        act()
    except processor.ParameterError:
        raise
    except BaseException as error:
        failure = error
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)
    if failure is None:
        return ""
    frames = causes.frames_of(failure)
    traceback.print_exception(type(failure), failure, frames)
    if job.debugger and frames is not None:
        pdb.post_mortem(frames)
    return causes.of_exception(failure, function.package, memory_limit)


if __name__ == "__main__":
    # By its name, for tracebacks leave out frames of our modules only.
    from imece_worker import reproduce  # noqa: PLW0406

    reproduce.main()
