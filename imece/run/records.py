"""What is read from Redis, as values: bounded, checked, or refused with a reason.

Anybody who may write to Redis can put anything there. Every function here returns a sound value or
raises RecordError with what is wrong and where. It takes a bounded time and a bounded memory.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from imece import names
from imece.errors import RunError

LARGEST_NUMBER = 2**63 - 1
"""What Redis counts up to."""

LONGEST_TEXT = 10_000

MOST_SLOTS = 100_000
"""Entries of a histogram or timeline. A timeline of ten years has 52,000."""


class RecordError(RunError, ValueError):
    """What is in Redis was not made by imece, or not by this version of it."""


def unpacked(text: bytes | str, longest: int, parts: int) -> Any:
    """The value in a JSON text.

    Args:
        longest: bytes, or characters, that it may have.
        parts: values that it may hold, about: each takes many times its text.

    Raises:
        RecordError: it is no JSON, or larger; or holds a number that is not finite, or that Redis
            could not count up to.
    """
    if len(text) > longest:
        raise RecordError(f"it is larger than {longest} bytes")
    try:
        written = text.decode("utf-8") if isinstance(text, bytes) else text
        if sum(written.count(mark) for mark in "[{,") > parts:
            raise RecordError(f"it holds more than {parts} values")
        return json.loads(
            written, parse_int=_integer, parse_float=_fraction, parse_constant=_fraction
        )
    except RecursionError:
        raise RecordError("its lists and objects are nested too deeply") from None
    except RecordError:
        raise
    except UnicodeDecodeError:
        raise RecordError("it is not UTF-8") from None
    except ValueError:
        raise RecordError("it is no JSON") from None


def fitting(given: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record in JSON, by name; each has the type that is known for it.

    Raises:
        RecordError: one is missing, unknown or of another type.
    """
    if not isinstance(given, dict):
        raise RecordError("it is no JSON object")
    for other, how in ((set(given) - set(known), "unknown"), (set(known) - set(given), "missing")):
        if other:
            raise RecordError(f"{how}: {', '.join(sorted(other))[:200]}")
    for name, kind in known.items():
        if kind == tuple[str, ...]:
            if not isinstance(given[name], list):
                raise RecordError(f"{name} is no list")
            given[name] = tuple(given[name])
        if not _fits(given[name], kind):
            raise RecordError(f"{name} is not what it should be")
    return given


def _fits(value: Any, kind: Any) -> bool:
    if kind == dict[str, Any]:
        return isinstance(value, dict)
    if kind is float:
        return type(value) in (int, float)
    if kind == tuple[str, ...]:
        return all(isinstance(item, str) for item in value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -LARGEST_NUMBER <= (value := int(digits)) <= LARGEST_NUMBER:
        raise RecordError(f"the number {digits[:30]} is too large")
    return value


def _fraction(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise RecordError(f"the number {digits[:30]} is not finite")
    return value


def whole(fields: Mapping[str, bytes], name: str) -> int:
    """A counter in a hash, as Redis writes it: no sign, no blank. 0 if it is not there."""
    digits = fields.get(name, b"0")
    if len(digits) > 20 or not digits.isdigit() or int(digits) > LARGEST_NUMBER:
        raise RecordError(f"{name} is not a number from 0 on: {names.shown(digits[:50])}")
    return int(digits)


def moment(fields: Mapping[str, bytes], name: str) -> float | None:
    """A point in time in a hash, epoch seconds; None if it is not there."""
    if (digits := fields.get(name)) is None:
        return None
    try:
        value = float(digits) if len(digits) <= 50 else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value < LARGEST_NUMBER:  # nor NaN
        raise RecordError(f"{name} is not a time: {names.shown(digits[:50])}")
    return value


def text(fields: Mapping[str, bytes], name: str) -> str | None:
    """A text in a hash; None if it is not there. What is not UTF-8 in it comes as escapes."""
    if (found := fields.get(name)) is None:
        return None
    if len(found) > LONGEST_TEXT:
        raise RecordError(f"{name} is longer than {LONGEST_TEXT} bytes")
    return found.decode("utf-8", "backslashreplace")


def histogram(name: str, found: Mapping[bytes, bytes]) -> dict[int, int]:
    """A hash of counts by number, in the order of the numbers: durations, timeline."""
    if len(found) > MOST_SLOTS:
        raise RecordError(f"{name} has more than {MOST_SLOTS} entries")
    entry, of_entry = f"an entry of {name}", f"a count of {name}"
    counts = {
        whole({entry: slot}, entry): whole({of_entry: count}, of_entry)
        for slot, count in found.items()
    }
    return dict(sorted(counts.items()))


def ranking(name: str, found: Iterable[tuple[bytes, float]]) -> list[tuple[bytes, float]]:
    """A sorted set of names by a number: the slowest files."""
    ranked = list(found)
    for _, number in ranked:
        if not 0 <= number < LARGEST_NUMBER:  # nor NaN
            raise RecordError(f"a number of {name} is out of range: {number}")
    return ranked


def text_flaw(given: str) -> str | None:
    """What forbids this text as a part of a path, or None. Bytes that are not UTF-8 come as lone
    surrogates (`os.fsdecode`); other surrogates are the bytes of no path."""
    if "\0" in given:
        return "contains a NUL byte"
    try:
        os.fsencode(given)
    except UnicodeEncodeError:
        return "cannot be written as bytes"
    return None
