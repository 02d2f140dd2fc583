"""Whether the processor of the settings can be had: a worker looks, in a process of its own. The
user's code does not get into this one."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from imece import names
from imece.errors import UsageError
from imece.run.parameters import Parameters
from imece.settings import PREFIX, PROCESSING, Settings


def check_set(settings: Settings, parameters: Parameters) -> None:
    """Raises UsageError if the processor does not take what is set for it, or cannot be had."""
    if not parameters.set:
        return
    words = [f"--set={name}={json.dumps(value)}" for name, value in parameters.set.items()]
    if says := flaw(settings, words):
        raise UsageError(says)


def flaw(settings: Settings, words: Sequence[str] = (), patience: float | None = None) -> str:
    """What is wrong with it, in a sentence, or nothing.

    Args:
        words: further words for the worker's command line.

    Raises:
        TimeoutExpired: it takes more than so many seconds.
    """
    given = {PREFIX + name.upper(): settings.processing.get(name, "") for name in PROCESSING}
    environment = {name: value for name, value in (os.environ | given).items() if value}
    ended = subprocess.run(
        # -P: ours, not one in this directory
        [sys.executable, "-P", "-m", "imece_worker", "--check", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=patience,
        check=False,
    )
    if ended.returncode == 0:
        return ""
    lines = ended.stderr.strip().splitlines()
    last = lines[-1].removeprefix("imece-worker: ") if lines else f"exit code {ended.returncode}"
    return names.printable(last)
