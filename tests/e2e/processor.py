"""The processor of the end-to-end tests. It comes to the workers by a ConfigMap, as module e2e."""

import shutil
import socket
import time
import uuid
from pathlib import Path


def work(source: str, target: str) -> None:
    """Takes the seconds that are the input's content, then copies it.

    Notes in the folder `trace` beside the run's output directory when it begins and when it ends,
    each in a file of its own: on a network file system two writers of one file may lose a line.
    """
    name = Path(source).name
    # An output is made in a hidden directory within the one it is for, and both paths are links.
    parents = Path(target).resolve().parents
    hidden = next(folder for folder in parents if folder.name.startswith(".imece-"))
    trace = hidden.parent.parent / "trace"
    trace.mkdir(parents=True, exist_ok=True)
    _note(trace, name, "begun")
    time.sleep(float(Path(source).read_text()))
    shutil.copyfile(source, target)
    _note(trace, name, "finished")


def _note(trace: Path, name: str, word: str) -> None:
    now = f"{time.time():.3f}"
    (trace / f"{name}:{word}:{socket.gethostname()}:{now}:{uuid.uuid4().hex}").touch()
