"""Everything a first-time user trips over, looked at one by one, each with its mend.

The command line prints it; an Airflow task can ask the same before it starts.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from imece.settings import Settings


@dataclass(frozen=True)
class Check:
    """What one look has found.

    Attributes:
        name: what was looked at: `redis`, `cluster rights`, `claim`, …
        verdict: ok; warn: it works, or may be meant; fail: imece does not work like this.
        says: what was found.
        mend: what to do about it; empty if nothing.
        exit_code: 0, or for a failure the exit code it leads to: 2 settings, 3 a service.
    """

    name: str
    verdict: Literal["ok", "warn", "fail"]
    says: str
    mend: str = ""
    exit_code: int = 0

    def summary(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def checks(settings: Settings) -> Iterator[Check]:
    """All checks, each as soon as it is made. Raises nothing: what goes wrong is a check's word."""
    yield from ()


def exit_code(made: list[Check]) -> int:
    """0 if nothing failed, else the exit code of the worst failure."""
    return max((check.exit_code for check in made), default=0)
