"""Waiting for what a cluster does, by asking it."""

import time
from collections.abc import Callable
from typing import Any

SAID_WITHIN = 90.0


def within(seconds: float, condition: Callable[[], Any], what: str) -> float:
    """Waits for a condition; the seconds it took."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < seconds, f"waited {waited:.0f} s for {what}"
        time.sleep(1)
    return time.monotonic() - began


def kept(seconds: float, promise: Callable[[], bool], what: str) -> None:
    """Looks for so long that something stays as it is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert promise(), what
        time.sleep(1)


def until_said(ask: Callable[[], str], said: str) -> None:
    """Waits until an answer has the words in it; fails with the last answer."""
    answer = ""

    def has_said() -> bool:
        nonlocal answer
        answer = ask()
        return said in " ".join(answer.split())

    try:
        within(SAID_WITHIN, has_said, f"{said!r}")
    except AssertionError as error:
        raise AssertionError(f"{error}; the last answer:\n{answer}") from None
