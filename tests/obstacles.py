"""What somebody may have put where an output goes."""

import os
import socket
from collections.abc import Callable
from pathlib import Path


def _directory(path: Path) -> None:
    path.mkdir()
    (path / "precious").write_text("precious")


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _link(path: Path) -> None:
    path.with_name("linked").write_text("precious")
    path.symlink_to("linked")


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "directory": (_directory, "a directory that imece has not made for this file"),
    "pipe": (os.mkfifo, "a named pipe"),
    "socket": (_socket, "a socket"),
    "link": (_link, "a link"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "a link"),
}
"""A file's name -> how to make what lies where its output goes, and what it is called."""


def put(target: Path) -> dict[str, os.stat_result]:
    """One of each kind in an output directory, for an input of the kind's name."""
    target.mkdir(exist_ok=True)
    for name, (make, _) in KINDS.items():
        make(target / name)
    return {name: (target / name).lstat() for name in KINDS}


def are_untouched(target: Path, before: dict[str, os.stat_result]) -> bool:
    now = {name: (target / name).lstat() for name in before}
    kinds = {name: (found.st_mode, found.st_ino) for name, found in now.items()}
    assert kinds == {name: (found.st_mode, found.st_ino) for name, found in before.items()}
    return (target / "directory" / "precious").read_text() == "precious"
