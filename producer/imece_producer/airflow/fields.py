"""What is written into an operator's fields, which after templating may be text, as values."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from imece.errors import UsageError
from imece.run.parameters import set_flaw, set_of, set_value


def allowed_failures(given: float | str, files: int) -> int:
    """How many of `files` may fail: a number, or a share below 1, or a percentage.

    Raises:
        UsageError: it is none of these.
    """
    text = str(given or 0).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf or (text.endswith("%") and value > 1):
        raise UsageError(f"allow_failed {text!r}: takes a number of files, or a share: 0.01 or 1%")
    is_share = text.endswith("%") or value < 1
    return int(value * files) if is_share else int(value)


def globs(given: Sequence[str] | str | None) -> list[str]:
    """Globs from a list, or from text with one a line."""
    lines = given.splitlines() if isinstance(given, str) else given or []
    return [line.strip() for line in lines if line.strip()]


def assignments(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """What is set for the processor, from a mapping, or from text with NAME=VALUE one a line. Text
    in a mapping is read as after `--set NAME=`, because a template renders as text.

    Raises:
        UsageError: it cannot be set.
    """
    if not isinstance(given, Mapping):
        return set_of([] if words(given) is None else globs(given))
    found = {
        name: set_value(value) if isinstance(value, str) else value for name, value in given.items()
    }
    if flaw := set_flaw(found):
        raise UsageError(f"set {flaw}")
    made: dict[str, Any] = json.loads(json.dumps(found, sort_keys=True))
    return made


def words(given: Any) -> str | None:
    """Text, or None for a field left empty: a template without a value renders as text."""
    text = "" if given is None else str(given).strip()
    return None if text in ("", "None") else text


def processor(given: str | None) -> str | None:
    """Raises UsageError if it is no function's place, and not nothing."""
    text = words(given)
    if text is not None and not re.fullmatch(r"[\w.]+:[\w.]+", text):
        raise UsageError(f"processor {text!r}: takes package.module:function")
    return text


def whole(given: int | str | None, field: str, least: int = 1) -> int | None:
    """Raises UsageError if it is not a whole number, and not nothing."""
    text = words(given)
    if text is None:
        return None
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise UsageError(f"{field} {given!r}: takes a whole number, {least} or more")
    return value


def number(given: float | str | None, field: str) -> float | None:
    """Raises UsageError if it is not a number, and not nothing."""
    text = words(given)
    try:
        return float(text) if text is not None else None
    except ValueError:
        raise UsageError(f"{field} {given!r}: takes a number") from None


def switch(given: bool | str | None, field: str) -> bool:
    """Raises UsageError if it is neither true nor false."""
    text = (words(given) or "false").lower()
    if text not in ("true", "false"):
        raise UsageError(f"{field} {given!r}: takes true or false")
    return text == "true"


def one_of(given: str, field: str, known: Sequence[str]) -> str:
    """Raises UsageError if it is none of the words that a field takes."""
    if given not in known:
        words = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
        raise UsageError(f"{field} {given!r}: takes {words}")
    return given
