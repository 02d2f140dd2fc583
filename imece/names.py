"""Names: of files (bytes, relative to the input directory) and of runs."""

import hashlib
import os
import re

LONGEST_RUN_ID = 64
TEMPORARY_PREFIX = b".imece-"
"""What the names of imece's own files start with; such files are never inputs."""


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
    if any(part.startswith(TEMPORARY_PREFIX) for part in name.split(b"/")):
        return "has a part that starts with '.imece-', as imece's own files do"
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
    """A line of text that does nothing to a terminal: control characters as escapes."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def slug(text: str) -> str:
    """A run id made of `text`: letters, digits, dash and underscore, the rest becomes dashes.

    What is too long, or has nothing left, ends in a digest of the whole, so that two such texts do
    not become one run.
    """
    kept = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")
    if kept and len(kept) <= LONGEST_RUN_ID:
        return kept
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{kept[: LONGEST_RUN_ID - 9]}-{digest}".lstrip("-")
