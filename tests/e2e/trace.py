"""What a run has left behind, and whether each file came out once."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Trace:
    """What the processor has noted, and what lies in the output directory.

    Attributes:
        begun, finished: file -> the pods that began and finished it, one entry a time.
        moments: file -> when it was begun, by the clocks of the nodes, the first time first.
        outputs: the files in the output directory, temporary ones too.
    """

    begun: dict[str, list[str]]
    finished: dict[str, list[str]]
    moments: dict[str, list[float]]
    outputs: list[str]

    @classmethod
    def read(cls, notes: Iterable[str], outputs: Iterable[str]) -> "Trace":
        """From the names of the processor's notes."""
        found: dict[str, dict[str, list[str]]] = {
            "begun": defaultdict(list),
            "finished": defaultdict(list),
        }
        moments: dict[str, list[float]] = defaultdict(list)
        for note in notes:
            name, word, pod, moment, _ = note.split(":")
            found[word][name].append(pod)
            if word == "begun":
                moments[name] = sorted([*moments[name], float(moment)])
        return cls(dict(found["begun"]), dict(found["finished"]), dict(moments), sorted(outputs))

    def flaws(self, files: Iterable[str], deaths: int = 0) -> list[str]:
        """Which of the files were lost, or done again, in words; none is good.

        Args:
            deaths: how many workers were killed in mid-file: each may have a file begun again.
        """
        names = sorted(files)
        flaws = [f"{name} has no output" for name in names if name not in self.outputs]
        flaws += [f"{name} was not asked for" for name in self.outputs if name not in names]
        flaws += [f"{name} was not finished" for name in names if name not in self.finished]
        for word, times in (("begun", self.begun), ("finished", self.finished)):
            again = {name: pods for name, pods in times.items() if len(pods) > 1}
            if sum(len(pods) - 1 for pods in again.values()) > deaths:
                flaws += [f"{name} was {word} by {pods}" for name, pods in again.items()]
        return flaws

    def pods(self, files: Iterable[str]) -> set[str]:
        """The pods that began these files."""
        return {pod for name in files for pod in self.begun.get(name, [])}

    def in_hand(self, pods: Iterable[str]) -> list[str]:
        """The files that these pods have begun and not finished."""
        return [
            name
            for name, began in self.begun.items()
            if name not in self.finished and not set(began).isdisjoint(pods)
        ]

    def begun_again(self, moment: float) -> float | None:
        """Seconds from a moment until the last file that was begun twice was begun again."""
        again = [moments[-1] for moments in self.moments.values() if len(moments) > 1]
        return max(again) - moment if again else None
