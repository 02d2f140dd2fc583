"""What is read from Redis, as values: bounded, checked, or refused with a reason.

Whoever may write to Redis can put anything there. Every function here returns a sound value or
raises RecordError with what is wrong and where, in a time and a memory that are bounded.
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


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -LARGEST_NUMBER <= (value := int(digits)) <= LARGEST_NUMBER:
        raise RecordError(f"the number {digits[:30]} is too large")
    return value


def _fraction(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise RecordError(f"the number {digits[:30]} is not finite")
    return value


def whole(fields: Mapping[str, bytes], name: str, largest: int = LARGEST_NUMBER) -> int:
    """A counter in a hash; 0 if it is not there."""
    return _whole(name, fields.get(name, b"0"), largest)


def moment(fields: Mapping[str, bytes], name: str) -> float | None:
    """A point in time in a hash, epoch seconds; None if it is not there."""
    found = fields.get(name)
    return None if found is None else _seconds(name, found)


def text(fields: Mapping[str, bytes], name: str, longest: int = LONGEST_TEXT) -> str | None:
    """A text in a hash; None if it is not there. What is not UTF-8 in it comes as escapes."""
    found = fields.get(name)
    if found is None:
        return None
    if len(found) > longest:
        raise RecordError(f"{name} is longer than {longest} bytes")
    return found.decode("utf-8", "backslashreplace")


def histogram(name: str, found: Mapping[bytes, bytes]) -> dict[int, int]:
    """A hash of counts by number, in the order of the numbers: durations, timeline."""
    if len(found) > MOST_SLOTS:
        raise RecordError(f"{name} has more than {MOST_SLOTS} entries")
    counts = {
        _whole(f"an entry of {name}", slot): _whole(f"a count of {name}", count)
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


def _whole(name: str, digits: bytes, largest: int = LARGEST_NUMBER) -> int:
    """As Redis writes it: no sign, no blank, no underscore."""
    if len(digits) > 20 or not digits.isdigit() or (value := int(digits)) > largest:
        raise RecordError(f"{name} is not a number from 0 to {largest}: {names.shown(digits[:50])}")
    return value


def _seconds(name: str, digits: bytes) -> float:
    try:
        value = float(digits) if len(digits) <= 50 else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value < LARGEST_NUMBER:  # nor NaN
        raise RecordError(f"{name} is not a time: {names.shown(digits[:50])}")
    return value


def path_flaw(path: str) -> str | None:
    """What forbids this as the path of a run's directory, or None."""
    if not path:
        return "is empty"
    if not path.startswith("/"):
        return "is not an absolute path"
    return text_flaw(path)


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
