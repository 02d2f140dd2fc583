"""A failure: why a file is in quarantine."""

import json
from dataclasses import asdict, dataclass, fields

from imece.run import records
from imece.run.records import RecordError

LONGEST_REASON = 2000
LONGEST_OUTPUT = 4000
LARGEST = 2**18
"""Bytes a record may have in Redis."""


@dataclass(frozen=True)
class Failure:
    """One quarantined file.

    Attributes:
        reason: the traceback's or standard error's tail, or what killed the process.
        tries: how often the file was tried in all.
        at: when it was given up, epoch seconds.
        worker: the name of the worker that tried last.
        output: the tail of what the processor printed; kept for the first failures of a run.
        cause: what it has in common with other failures, see imece/run/causes.py; "" if it is not
            known.
    """

    reason: str
    tries: int
    at: float
    worker: str
    output: str = ""
    cause: str = ""

    @property
    def last_line(self) -> str:
        """The reason in one line: the last that says something."""
        lines = [line.strip() for line in self.reason.splitlines() if line.strip("+-| ")]
        return lines[-1] if lines else "no reason given"

    def encode(self) -> str:
        kept = asdict(self)
        del kept["output"]
        return json.dumps(kept)

    @classmethod
    def decode(cls, text: bytes, output: bytes | None = None) -> "Failure":
        """The failure in a run's hash.

        Raises:
            RecordError: it is not what `encode` makes.
        """
        known = {field.name: field.type for field in fields(cls) if field.name != "output"}
        given = records.unpacked(text, LARGEST, parts=LARGEST)
        if isinstance(given, dict):
            given.setdefault("cause", "")  # a version of imece before it has none
        found = records.fitting(given, known)
        if found["tries"] < 0 or found["at"] < 0:
            raise RecordError("its tries or its time are negative")
        return cls(**found, output=(output or b"")[:LARGEST].decode("utf-8", "replace"))

    @classmethod
    def read(cls, text: bytes, output: bytes | None = None) -> "Failure":
        """As `decode`. A record that is refused becomes a failure that says so: the file is in
        quarantine all the same."""
        try:
            return cls.decode(text, output)
        except RecordError as error:
            return cls(f"the record of this failure cannot be read: {error}", 0, 0.0, "?")


def tail(text: str, longest: int) -> str:
    """The end of a text, whole lines where it can be."""
    text = text.strip()
    if len(text) <= longest:
        return text
    last = text[text.rfind("\n") + 1 :]
    if len(last) >= longest:
        return last[:longest] + "…"  # its beginning says what it is about
    cut = text[-longest:]
    _, newline, rest = cut.partition("\n")
    return "…" + (rest if newline and rest else cut)
