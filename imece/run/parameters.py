"""What was asked for when a round of a run was enqueued."""

import json
import keyword
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from imece.errors import UsageError
from imece.run import records
from imece.run.job import MOST_FILES
from imece.run.records import RecordError

SEED = 1
"""The mmh3 seed of new runs; each run records its own."""

FORMAT = 2
"""The form of a run's records in Redis. A change that the version before would get wrong raises it:
then both versions refuse each other's runs."""

IDENTITY = ("input", "output", "suffix", "seed")
"""The parameters in which all rounds of a run agree."""

LARGEST_PARAMETERS = 2**20
"""Bytes a run's parameters may have in Redis."""

PROCESSOR_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
"""What the name of a processor is made of. It has no colon: a queue names no code."""

SET_PREFIX = "IMECE_SET_"
"""Begins the variables in which a program gets what is set for it: `IMECE_SET_size`."""

LARGEST_SET = 2**16
"""Bytes that all that is set for the processor may have, as JSON."""

DEEPEST_SET = 50
"""Lists and objects in each other."""

FEWEST_ENDED = 20
"""How many files of a round must have ended before it is held for a share that has failed."""

_MAX_FAILED = re.compile(r"[0-9]{1,12}|([0-9]{1,2}(\.[0-9]{1,6})?|100)%")

UNREADABLE = "the run's parameters cannot be read: "

RANGES: dict[str, tuple[float, float]] = {
    "buckets": (1, 2**32),
    "files_per_job": (1, MOST_FILES),
    "retries": (0, 100),
    "retry_pause": (0, 3600),
    "timeout": (1e-6, 10 * 365 * 86400),
    "seed": (0, 2**32 - 1),
}
"""What numbers the parameters take; as the settings of the same names."""


class FormatError(RecordError):
    """The run was made by a version of imece whose records have another form."""


@dataclass(frozen=True)
class Parameters:
    """What was asked for when the round was enqueued. While it is on, the same run id with others
    is refused; a later round may have others, but for those of `IDENTITY`.

    Attributes:
        input, output: absolute paths, as the producer saw them. No output: the processor keeps
            what it makes elsewhere, and no file is ever skipped.
        suffix: the output names' ending in place of the inputs', or None to keep it.
        source: how the files were found: "directory" or "list".
        buckets, files_per_job: as asked for; None where imece chose.
        retries, retry_pause, timeout: see the settings of the same names.
        all_tries: whether a file gets all its retries, also if it fails twice in the same way.
        max_failed: see the setting of the same name.
        processor: the name that the workers have for the processor; None: the one that they have
            without a name.
        hashes: whether the ledger keeps hashes of the contents of inputs and outputs.
        set: what the processor gets beside the two paths, by name: values as JSON has them.
        format: see `FORMAT`.
    """

    input: str
    output: str | None
    suffix: str | None
    overwrite: bool
    source: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    hidden: bool
    buckets: int | None
    files_per_job: int | None
    retries: int
    retry_pause: float
    timeout: float
    all_tries: bool = False
    max_failed: str | None = None
    processor: str | None = None
    hashes: bool = False
    set: dict[str, Any] = field(default_factory=dict)
    seed: int = SEED
    format: int = FORMAT

    @property
    def input_path(self) -> Path:
        return Path(self.input)

    @property
    def output_path(self) -> Path | None:
        return Path(self.output) if self.output is not None else None

    @property
    def ending(self) -> bytes | None:
        """`suffix` as it is in names."""
        return os.fsencode(self.suffix) if self.suffix is not None else None

    def encode(self) -> str:
        """JSON, in ASCII: paths that are not UTF-8 survive as lone surrogates."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: bytes | str) -> "Parameters":
        """The parameters in a run's hash.

        Raises:
            FormatError: another version of imece has made them.
            RecordError: it is not what `encode` makes.
        """
        try:
            found = _read(text)
            _check_format(found)
            known = {one.name: one.type for one in fields(cls)}
            parameters = cls(**records.fitting(found, known))
        except FormatError:
            raise
        except RecordError as error:
            raise RecordError(f"{UNREADABLE}{error}") from None
        if flaw := parameters.flaw():
            raise RecordError(f"the run's parameter {flaw}")
        return parameters

    def flaw(self) -> str | None:
        """What no worker would take, by the name of the parameter; None if there is nothing."""
        for name, path in (("input", self.input), ("output", self.output)):
            if path is None:
                continue
            if not path.startswith("/"):
                return f"{name} {'is not an absolute path' if path else 'is empty'}"
            if flaw := records.text_flaw(path):
                return f"{name} {flaw}"
        if self.suffix is not None:
            flaw = records.text_flaw(self.suffix)
            if flaw or not self.suffix or "/" in self.suffix:
                return f"suffix {flaw or 'is empty or holds a /'}"
        if self.processor is not None and not re.fullmatch(PROCESSOR_NAME, self.processor):
            return f"processor {self.processor[:70]!r} is not a name"
        if flaw := set_flaw(self.set):
            return f"set {flaw}"
        if len(self.encode()) > LARGEST_PARAMETERS:
            return f"include and exclude are longer than {LARGEST_PARAMETERS} bytes"
        if any(records.text_flaw(glob) for glob in (*self.include, *self.exclude)):
            return "include or exclude holds what no file is named"
        if self.source not in ("directory", "list"):
            return "source is neither directory nor list"
        if self.max_failed is not None and (flaw := max_failed_flaw(self.max_failed)):
            return f"max_failed {flaw}"
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                return f"{name} {value} is not from {least} to {most}"
        return None

    def most_failed(self, files: int) -> tuple[int, int] | None:
        """How many files of a round of so many may fail before it is held, and how many must have
        ended then; None: any number."""
        if self.max_failed is None:
            return None
        if not self.max_failed.endswith("%"):
            return int(self.max_failed), 0
        return int(files * Decimal(self.max_failed.rstrip("%")) / 100), FEWEST_ENDED

    def differences(self, other: "Parameters") -> list[str]:
        """The names of the parameters in which two differ."""
        return [name for name, value in asdict(self).items() if asdict(other)[name] != value]


def _read(text: bytes | str) -> Any:
    return records.unpacked(text, LARGEST_PARAMETERS, parts=LARGEST_PARAMETERS // 4)


def _check_format(found: Any) -> None:
    """Before all else: the other version may have other parameters, too."""
    number = found.get("format", FORMAT) if isinstance(found, dict) else FORMAT
    if type(number) is int and number != FORMAT:
        raise FormatError(
            f"another version of imece enqueued it (its records have format {number}, and this "
            f"version has {FORMAT})"
        )


def max_failed_flaw(text: str) -> str | None:
    """What is wrong with a `max_failed`, or None."""
    if _MAX_FAILED.fullmatch(text):
        return None
    return f"{text[:50]!r}: takes a number of files, or a percentage of the round's: 100 or 5%"


def set_of(words: Iterable[str]) -> dict[str, Any]:
    """What is set for the processor by words like `size=32`. A value that is not JSON is text.

    Raises:
        UsageError: a word is none, or what it sets cannot be.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--set {word}: takes NAME=VALUE, like size=32")
        if name in found:
            raise UsageError(f"--set {name}: it is given twice")
        found[name] = set_value(value)
    if flaw := set_flaw(found):
        raise UsageError(f"--set {flaw}")
    return dict(sorted(found.items()))


def set_value(text: str) -> Any:
    """A value as somebody has written it."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def set_flaw(given: Mapping[Any, Any]) -> str | None:
    """What is wrong with what is set for a processor, or None."""
    for name in given:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            return f"{str(name)[:50]!r}: this is not the name of a parameter of a function"
    if not _is_flat(given, DEEPEST_SET):
        return "cannot be kept: its lists and objects are nested too deeply"
    try:
        records.unpacked(json.dumps(given), LARGEST_SET, parts=LARGEST_SET)
    except RecordError as error:
        return f"cannot be kept: {error}"
    except (TypeError, ValueError) as error:
        return f"cannot be kept as JSON: {error}"
    return None


def _is_flat(value: Any, levels: int) -> bool:
    """Whether lists and objects in it are in each other no deeper than so many levels."""
    if not isinstance(value, dict | list | tuple):
        return True
    within = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_flat(one, levels - 1) for one in within)


def text_path(path: Path) -> str:
    """A path as text that `Parameters` can hold, with any bytes in it."""
    return os.fsdecode(path)
