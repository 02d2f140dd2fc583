"""What a runner may use, and what it has used."""

import resource
from dataclasses import dataclass


@dataclass
class Limits:
    """How much a runner may use.

    Attributes:
        address_space: MiB, or None.
        files: after so many another runner takes its place; None: never.
        memory: after a file that leaves it with more MiB in memory another one takes its place;
            None: never.
        tried: files that this runner has tried.
    """

    address_space: int | None
    files: int | None
    memory: int | None
    tried: int = 0

    def apply(self) -> None:
        """To this process."""
        if self.address_space is not None:
            limit = self.address_space * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def are_reached(self) -> bool:
        """Whether another runner is to go on. Each tries one file at least."""
        if self.tried == 0:
            return False
        if self.files is not None and self.tried >= self.files:
            return True
        return self.memory is not None and _resident() >= self.memory * 2**20


def _resident() -> int:
    """Bytes of memory that this process has; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def used() -> tuple[float, int]:
    """Seconds of processors, and KiB of memory at most, of this process and its ended children."""
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return seconds, max(own.ru_maxrss, children.ru_maxrss)
