"""Processors that fail as the files' first word says, each in a function of its own."""

import ctypes
import json
import os
import signal
import time
from pathlib import Path


class WrongLengthError(Exception):
    """As a user's own."""

    def __init__(self, length: int) -> None:
        super().__init__(f"wrong length: {length}")


def read_header(text: str) -> None:
    raise ValueError(f"{text} has no header")


def read_body(text: str) -> None:
    raise ValueError(f"{text} has no body")


def parse(text: str) -> None:
    json.loads(text)


def measure(text: str) -> None:
    raise WrongLengthError(len(text))


def convert(text: str) -> None:
    try:
        read_header(text)
    except ValueError as error:
        raise RuntimeError(f"{text} cannot be converted") from error


def exit_at_once(text: str) -> None:
    os._exit(3)


def crash(text: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(text: str) -> None:
    time.sleep(600)


def ask(text: str) -> None:
    raise ConnectionError(f"the service does not answer for {text}")


WAYS = {
    "header": read_header,
    "body": read_body,
    "parse": parse,
    "length": measure,
    "convert": convert,
    "exit": exit_at_once,
    "crash": crash,
    "hang": hang,
    "ask": ask,
}


def by_word(source: str, target: str) -> None:
    """Fails as it is told, until there is a file `fixed-WORD` beside the input directory."""
    path = Path(source)
    text = path.read_text()
    word = text.partition(" ")[0]
    home = path.resolve().parent.parent
    if word in WAYS and not (home / f"fixed-{word}").exists():
        WAYS[word](f"{word} {path.resolve()}")
    if word == "wait":
        while not (home / "go").exists():
            time.sleep(0.02)
    Path(target).write_text(text)


def hang_in_c(source: str, target: str) -> None:
    """With the GIL held: no Python code, no signal handler runs."""
    ctypes.PyDLL(None).sleep(600)


def hoard(source: str, target: str) -> None:
    bytearray(2**34)


def say_and_copy(source: str, target: str | None) -> None:
    print(f"at {Path(source).name}")
    assert "IMECE_REDIS_URL" not in os.environ
    if target is not None:
        Path(target).write_text("made")
