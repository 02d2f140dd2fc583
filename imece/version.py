"""What makes the outputs: the processor by name, and its code. Nothing is imported to find it out,
so that a producer finds the same as a worker beside it.
"""

import hashlib
import json
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import Any

from imece import processing
from imece.settings import Settings

DIGITS = 12
"""Hex digits of a fingerprint."""


@dataclass(frozen=True)
class Version:
    """
    Attributes:
        processor: as the settings name it.
        code: a fingerprint of its source: of the package, or of the modules in the folder, that it
            is in; of a program, and the files that its command names.
        libraries: a fingerprint of the names and versions of what is installed, Python among them.
        image: as IMECE_IMAGE says; else empty.
    """

    processor: str
    code: str
    libraries: str
    image: str

    def header(self) -> dict[str, Any]:
        """As in a block of the ledger."""
        return dict(vars(self))

    @classmethod
    def read(cls, header: Any) -> "Version | None":
        """That of a block's header, or of a record; None if it does not say it."""
        names = ("processor", "code", "libraries", "image")
        if not isinstance(header, dict):
            return None
        values = [header.get(name) for name in names]
        found = [value for value in values if isinstance(value, str)]
        return cls(*found) if len(found) == len(names) else None

    def is_same_code(self, other: "Version") -> bool:
        return (self.code, self.libraries, self.image) == (
            other.code,
            other.libraries,
            other.image,
        )


def of(given: Mapping[str, str], image: str) -> Version:
    """Of what the settings say of the processor; see `Settings.processing`."""
    path = [os.getcwd(), *sys.path]
    function, command = given.get("processor"), given.get("command")
    if function is not None:
        code = _of_module(function.partition(":")[0], path)
    elif command is not None:
        code = _of_command(command)
    else:
        code = _digest([])  # the text for a shell is its name
    name = function or command or given.get("shell", "")
    if "command_stdout" in given:
        name += " (standard output)"
    return Version(name, code, _libraries(path), image)


def records(settings: Settings) -> dict[str, str]:
    """Of all processors that the settings name: name, which may be empty -> its version, JSON."""
    names = [None, *processing.named(settings.processors)]
    found = {name or "": settings.processing_by(name) for name in names}
    return {
        name: json.dumps(of(one, settings.image).header())
        for name, one in found.items()
        if one is not None
    }


def _of_module(module: str, path: Sequence[str]) -> str:
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names:
        return _digest([])  # `libraries` has Python's version
    try:
        found = PathFinder.find_spec(package, path)
    except (ImportError, ValueError, OSError):
        found = None
    if found is None:
        return ""
    folders = [*(found.submodule_search_locations or ())]
    if not folders:
        return _of_files(_modules_beside(found.origin or "")) if found.origin else ""
    return _of_files(name for folder in folders for name in _modules_below(folder))


def _modules_beside(origin: str) -> Iterable[str]:
    folder = os.path.dirname(origin)
    if _is_of_libraries(folder):
        return []
    with os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.name.endswith(".py") and entry.is_file()]


def _modules_below(folder: str) -> Iterable[str]:
    if _is_of_libraries(folder):
        return
    for directory, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        yield from (os.path.join(directory, name) for name in files if name.endswith(".py"))


def _is_of_libraries(folder: str) -> bool:
    """Whether what is there is installed: then it has a version."""
    parts = folder.split(os.sep)
    return "site-packages" in parts or "dist-packages" in parts


def _of_command(command: str) -> str:
    """Of the program, and of the files that its arguments name, such as a script."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    program = shutil.which(words[0]) if words else None
    files = [program, *(word for word in words[1:] if "{" not in word)]
    return _of_files(name for name in files if name and os.path.isfile(name))


def _of_files(names: Iterable[str]) -> str:
    parts = []
    for name in sorted(names):
        try:
            with open(name, "rb") as stream:
                parts.append(hashlib.file_digest(stream, "sha256").digest())
        except OSError:
            continue
        parts.append(os.path.basename(name).encode("utf-8", "surrogateescape"))
    return _digest(parts)


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:DIGITS]


def _libraries(path: Sequence[str]) -> str:
    """Of what is installed, by the names of the directories that say so: they have the versions.
    imece itself is left out: it makes no output."""
    found = {".".join(map(str, sys.version_info[:3]))}
    for folder in {*filter(_is_of_libraries, path), sysconfig.get_path("purelib")}:
        try:
            found.update(name for name in os.listdir(folder) if name.endswith(".dist-info"))
        except OSError:
            continue
    found = {name for name in found if not name.startswith("imece-")}
    return _digest(name.encode("utf-8", "surrogateescape") for name in sorted(found))
