"""A processor whose outputs tell what they were made from, and by which code."""

import os
import time
from pathlib import Path

FAILS = b"fail"
"""What the content of a file begins with that cannot be processed."""

SECONDS = 0.01


def version_file(source: Path) -> Path:
    """Holds the version of the code, beside the input directory."""
    return source.parent / "version"


def stamp(version: str, content: bytes) -> bytes:
    """The output that a version of the code makes of an input."""
    return f"made by {version} from ".encode() + content


def stamped(source: str, target: str) -> None:
    """Takes some ms, and notes in the folder `trace` beside the input directory when it begins and
    when it has finished; half of the time there is a half-written output."""
    path = Path(source).resolve()  # the path given is a link: docs/reference/processors.md
    version = version_file(path.parent).read_text()
    trace = path.parent.parent / "trace"
    trace.mkdir(exist_ok=True)
    with (trace / path.name).open("ab", buffering=0) as log:  # append: O_APPEND
        log.write(b"begun by %d\n" % os.getpid())
        content = path.read_bytes()
        if content.startswith(FAILS):
            raise ValueError("as its content says")
        whole = stamp(version, content)
        with Path(target).open("wb") as stream:
            stream.write(whole[: len(whole) // 2])
            stream.flush()
            time.sleep(SECONDS)
            stream.write(whole[len(whole) // 2 :])
        log.write(b"finished by %d\n" % os.getpid())
