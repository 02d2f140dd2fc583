"""What one look of imece doctor has found."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from imece import names
from imece.errors import ImeceError
from imece_producer.display import seconds

SKEW = 5.0
"""Seconds two clocks may differ."""


@dataclass(frozen=True)
class Check:
    """What one look has found.

    Attributes:
        name: what was looked at: `redis`, `cluster rights`, `claim`, …
        verdict: ok; warn: it works, or may be meant; fail: imece does not work like this.
        says: what was found.
        hint: what to do about it; empty if nothing.
        exit_code: 0, or for a failure the exit code it leads to: 2 settings, 3 a service.
        may_pass: whether waiting may fix it.
    """

    name: str
    verdict: Literal["ok", "warn", "fail"]
    says: str
    hint: str = ""
    exit_code: int = 0
    may_pass: bool = False

    def line(self) -> str:
        """What `imece doctor` prints."""
        says = names.printable(f"{self.says}: {self.hint}" if self.hint else self.says)
        return f"{self.verdict:<4}  {self.name:<18}  {says}"

    def summary(self) -> dict[str, Any]:
        """Ready for JSON."""
        told = asdict(self)
        del told["may_pass"]
        return told


def ok(name: str, says: str) -> Check:
    return Check(name, "ok", says)


def warn(name: str, says: str, hint: str) -> Check:
    return Check(name, "warn", says, hint)


def fail(name: str, says: str, hint: str, exit_code: int = 3) -> Check:
    return Check(name, "fail", says, hint, exit_code)


def failed(name: str, error: ImeceError) -> Check:
    return Check(name, "fail", error.what, error.hint, error.exit_code, error.may_pass)


def clock(name: str, whose: str, theirs: float, ours: float) -> Check:
    off = theirs - ours
    if abs(off) <= SKEW:
        return ok(name, f"no more than {seconds(SKEW)} from ours")
    says = f"{whose} is {seconds(abs(off))} {'ahead of' if off > 0 else 'behind'} this machine"
    return warn(name, says, "let both follow NTP: leases and tokens go by these clocks")
