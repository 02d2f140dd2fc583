"""A cursor: how far a bucket job has got, as it stands in Redis."""

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Owed:
    """A file that failed and is to be tried again: tries so far, and not before when (epoch seconds
    of the server's clock)."""

    tries: int
    due: float


@dataclass(frozen=True)
class Cursor:
    """Indexes into the bucket's manifest: [next, stop) has not been tried yet, `owed` has failed.

    Attributes:
        careful: a worker died with this job, at a file that is not known: from here on each file is
            marked before it starts.
        marked: the file that was about to start when this was written, or -1.
    """

    next: int
    stop: int
    owed: dict[int, Owed] = field(default_factory=dict)
    careful: bool = False
    marked: int = -1

    def encode(self) -> str:
        owed = {str(index): [entry.tries, entry.due] for index, entry in self.owed.items()}
        position = [self.next, self.stop, owed, int(self.careful), self.marked]
        return json.dumps(position, separators=(",", ":"))

    @classmethod
    def decode(cls, text: bytes | str) -> "Cursor":
        """The cursor in a run's hash.

        Raises:
            ValueError: it is not what `encode` makes.
        """
        try:
            following, stop, owed, careful, marked = json.loads(text)
            entries = {int(index): Owed(tries, due) for index, (tries, due) in owed.items()}
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f"not a cursor: {text!r:.200}") from None
        numbers = [following, stop, marked, *(entry.tries for entry in entries.values())]
        dues_fit = all(type(entry.due) in (int, float) for entry in entries.values())
        inside = all(0 <= index < stop for index in entries) if type(stop) is int else False
        if not (dues_fit and inside and all(type(number) is int for number in numbers)):
            raise ValueError(f"not a cursor: {text!r:.200}")
        if not (0 <= following <= stop and -1 <= marked < stop):
            raise ValueError(f"not a cursor: {text!r:.200}")
        return cls(following, stop, entries, bool(careful), marked)
