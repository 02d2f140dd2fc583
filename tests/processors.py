"""Processors for the tests. Each takes the input path and the output path."""

import ctypes
import hashlib
import os
import signal
import sys
import time
from pathlib import Path


def copy(source: str, target: str) -> None:
    Path(target).write_bytes(Path(source).read_bytes())


def digest(source: str, target: str) -> None:
    Path(target).write_text(hashlib.sha256(Path(source).read_bytes()).hexdigest())


def nothing(source: str, target: str | None) -> None:
    pass


def slow(source: str, target: str) -> None:
    """Takes 50 ms, half of it with a half-written output."""
    data = Path(source).read_bytes()
    with Path(target).open("wb") as stream:
        stream.write(data[: len(data) // 2])
        stream.flush()
        time.sleep(0.05)
        stream.write(data[len(data) // 2 :])


def by_content(source: str, target: str) -> None:
    """Does what the file's first line says, then copies it."""
    data = Path(source).read_bytes()
    word, _, argument = data.partition(b"\n")[0].decode("utf-8", "replace").partition(" ")
    if word == "raise":
        print("about to raise")
        raise ValueError(argument or "no reason")
    if word == "segfault":
        ctypes.string_at(0)
    if word == "exit":
        os._exit(int(argument or 0))
    if word == "sysexit":
        sys.exit(argument)
    if word == "kill-horse":
        Path(target).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "kill-worker":
        Path(target).write_bytes(b"half")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if word == "hang":
        time.sleep(3600)
    if word == "hang-in-c":
        # The C library's sleep, called with the GIL held: no Python code, no signal handler runs.
        ctypes.PyDLL(None).sleep(3600)
    if word == "fill-memory":
        hoard = []
        while True:
            hoard.append(bytearray(2**24))
    if word == "no-output":
        return
    if word == "once":
        marker = Path(argument)
        if not marker.exists():
            marker.touch()
            raise RuntimeError("the first try fails")
    if word == "sleep":
        time.sleep(float(argument))
    Path(target).write_bytes(data)


def directory(source: str, target: str) -> None:
    """An output that is a directory."""
    Path(target).mkdir()
    (Path(target) / "part-1").write_bytes(Path(source).read_bytes())
