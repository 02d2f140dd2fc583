"""Names: of files (bytes, relative to the input directory) and of runs."""

import hashlib
import json
import os
import re
from typing import Any

LONGEST_RUN_ID = 64
_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
DIGEST = 12
"""Hex digits in a run id that was made of another text: two of a million such ids are the same
with a probability of 0.2 %."""

HOME = b".imece"
"""A directory of imece's own in an output directory: the ledger is there. It is never an input."""

TEMPORARY_PREFIX = b".imece-"
"""What the names of imece's own files start with; such files are never inputs."""


def is_ours(part: bytes) -> bool:
    """Whether a part of a path is the name of something of imece's own."""
    return part == HOME or part.startswith(TEMPORARY_PREFIX)


def flaw(name: bytes) -> str | None:
    """What forbids this as a file's name, or None. A sound name cannot leave its directory."""
    if not name:
        return "is empty"
    if b"\0" in name:
        return "contains a NUL byte"
    if name.startswith(b"/"):
        return "is an absolute path"
    if any(part in (b"", b".", b"..") for part in name.split(b"/")):
        return "has an empty, '.' or '..' part"
    if any(map(is_ours, name.split(b"/"))):
        return "has a part that is '.imece' or starts with '.imece-', as imece's own files do"
    return None


def with_suffix(name: bytes, suffix: bytes | None) -> bytes:
    """The output name: the input's, its last ending replaced by `suffix` (`.json`) if given."""
    if suffix is None:
        return name
    directory, slash, last = name.rpartition(b"/")
    return directory + slash + os.path.splitext(last)[0] + suffix


def shown(name: bytes) -> str:
    """A file's name for people: bytes that are not UTF-8, and control characters, as escapes."""
    return printable(name.decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """A line of text that is safe on a terminal: control characters as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def printable_lines(text: str) -> str:
    """As `printable`, of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def json_line(value: Any) -> str:
    """A value for programs: JSON in one line of printable ASCII."""
    return json.dumps(value, default=str).replace("\x7f", "\\u007f")


def slug(text: str) -> str:
    """The run id for a name that somebody gives: letters, digits, dash and underscore.

    A text that is such an id stays as it is. Any other gets a digest of the whole text at its end,
    so that two texts do not become one run: `load.2026.11` is not `load-2026-11`.
    """
    if _RUN_ID.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST]
    return f"{plain(text)[: LONGEST_RUN_ID - DIGEST - 1]}-{digest}".lstrip("-")


def plain(text: str) -> str:
    """The letters, digits, dashes and underscores of a text; a dash for what is between them. The
    result may be the same for two texts: use it for a part of a name that is unique otherwise."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")
