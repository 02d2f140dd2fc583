"""One file of a run in the foreground: what `imece reproduce` does."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from imece import names
from imece.errors import UsageError
from imece.process import follow_parent, signal_name
from imece.run.parameters import Parameters
from imece.settings import PREFIX, PROCESSING, Settings
from imece_producer.display import put, say
from imece_producer.local.state import OTHER_SERVER

SECRETS = ("redis_url", *OTHER_SERVER)
"""Settings that a processor does not see."""


def process(
    settings: Settings,
    run_id: str,
    parameters: Parameters,
    file: str,
    output: Path | None,
    with_debugger: bool,
) -> int:
    """Processes one file with the run's parameters, outside of the run; the exit code.

    Args:
        file: its name in the run, or its path.
        output: the directory for what is made; None: a new one in `reproduce-RUN`.

    Raises:
        UsageError: it cannot be processed here.
    """
    root = os.path.abspath(settings.input or parameters.input)
    name = _name(file, root)
    source = os.path.join(root, name)
    if not os.path.isfile(source):
        raise UsageError(
            f"there is no file {names.shown(os.fsencode(source))}",
            "name it as `imece failures` does; IMECE_INPUT says where the input directory is here",
        )
    if not settings.processor and with_debugger:
        raise UsageError("--pdb: takes a processor in Python, and no program")
    directory = target = None
    if parameters.output is not None:
        written = os.path.abspath(settings.output or parameters.output)
        directory = _directory(output, run_id, (root, written))
        suffix = os.fsencode(parameters.suffix) if parameters.suffix is not None else None
        made = os.fsdecode(names.with_suffix(os.fsencode(name), suffix))
        target = os.path.join(os.path.abspath(directory), made)
        os.makedirs(os.path.dirname(target), exist_ok=True)
    timeout = None if with_debugger else parameters.timeout
    job = {
        "source": source,
        "name": name,
        "target": target,
        "timeout": timeout,
        "debugger": with_debugger,
        "set": parameters.set,
    }
    code = _run(settings, job, parameters.timeout)
    if directory is None:
        return code
    if any(not one.is_dir() for one in directory.rglob("*")):
        put(f"{names.shown(os.fsencode(name))}: what it has written is in {directory}")
    elif output is None:
        shutil.rmtree(directory)
    return code


def _name(file: str, root: str) -> str:
    """A file's name relative to the input directory."""
    if os.path.isabs(file):
        file = os.path.relpath(file, root)
    if flaw := names.flaw(os.fsencode(file)):
        shown = names.shown(os.fsencode(file))
        raise UsageError(f"'{shown}' {flaw}: it is no file of the run's input directory {root}")
    return file


def _directory(output: Path | None, run_id: str, forbidden: tuple[str, ...]) -> Path:
    """A new or empty directory, outside of the run's own."""
    wanted = output or Path(f"reproduce-{run_id}")
    real = os.path.realpath(wanted)
    for other in forbidden:
        if f"{real}/".startswith(f"{os.path.realpath(other)}/"):
            raise UsageError(f"{wanted} lies in {other}, a directory of the run: take --output DIR")
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        if output is None:
            numbers = [int(one.name) for one in wanted.iterdir() if one.name.isdecimal()]
            wanted /= str(max(numbers, default=0) + 1)
            wanted.mkdir()
        elif any(wanted.iterdir()):
            raise UsageError(f"--output {wanted}: takes a new directory, or an empty one")
    except OSError as error:
        raise UsageError(f"{wanted} cannot be written to: {error.strerror}") from None
    return wanted


def _run(settings: Settings, job: Mapping[str, object], timeout: float) -> int:
    """The exit code: 0 if the file is done."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in [PREFIX + secret.upper() for secret in SECRETS]
    }
    for setting in PROCESSING:
        environment[f"{PREFIX}{setting.upper()}"] = settings.processing.get(setting, "")
    hears, tells = os.pipe()
    process = subprocess.Popen(
        # -P: ours, not one in this directory
        [sys.executable, "-P", "-m", "imece_worker.reproduce", json.dumps({**job, "told": tells})],
        env={name: value for name, value in environment.items() if value},
        pass_fds=[tells],
        preexec_fn=partial(follow_parent, os.getpid(), signal.SIGKILL),  # noqa: PLW1509
    )
    os.close(tells)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the processor
    code = process.wait()
    signal.signal(signal.SIGINT, before)
    told = os.read(hears, 1)
    os.close(hears)
    if told:
        return code
    if code == -signal.SIGALRM:
        say(f"failed: took longer than {timeout:g} s")
    elif code < 0:
        say(f"failed: killed by {signal_name(-code)}")
    else:
        say(f"failed: the processor ended its process with exit code {code}")
    return 1
