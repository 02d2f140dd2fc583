"""A failure: why a file is in quarantine."""

import json
from dataclasses import asdict, dataclass

LONGEST_REASON = 2000
LONGEST_OUTPUT = 4000


@dataclass(frozen=True)
class Failure:
    """One quarantined file.

    Attributes:
        reason: the traceback's or standard error's tail, or what killed the process.
        tries: how often the file was tried in all.
        at: when it was given up, epoch seconds.
        worker: the name of the worker that tried last.
        output: the tail of what the processor printed; kept for the first failures of a run.
    """

    reason: str
    tries: int
    at: float
    worker: str
    output: str = ""

    @property
    def cause(self) -> str:
        """The reason in one line: the last that says something."""
        lines = [line.strip() for line in self.reason.splitlines() if line.strip("+-| ")]
        return lines[-1] if lines else "no reason given"

    def encode(self) -> str:
        kept = asdict(self)
        del kept["output"]
        return json.dumps(kept)

    @classmethod
    def decode(cls, text: bytes, output: bytes | None = None) -> "Failure":
        return cls(**json.loads(text), output=(output or b"").decode("utf-8", "replace"))


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
