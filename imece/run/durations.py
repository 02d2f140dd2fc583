"""How long files took: counts in steps of an eighth of a power of two, so that a run of any length
needs few of them and each figure is right to one part in eight.

A step is the first four bits of a number of microseconds, and how many bits follow (as in
HdrHistogram): 16 is 16 or 17 µs, 17 is 18 or 19 µs. Below 16 µs each number has its own.
"""

from collections import Counter
from collections.abc import Iterable, Mapping


def steps(microseconds: Iterable[int]) -> Counter[int]:
    """How many of these fall into each step."""
    return Counter(
        (number >> shift) + 8 * shift if (shift := number.bit_length() - 4) > 0 else number
        for number in microseconds
    )


def least(step: int) -> int:
    """The smallest number of microseconds in a step."""
    shift = max(0, step // 8 - 1)
    return (step - 8 * shift) << shift


def quantile(
    durations: Mapping[int, int], share: float, shortest: float, longest: float
) -> float | None:
    """About how many seconds `share` of the files took at most; None if there are no files.

    Args:
        durations: step -> files.
        shortest, longest: what a file took that was quickest, and slowest, in seconds.
    """
    wanted = share * sum(durations.values())
    seen = 0
    for step, count in sorted(durations.items()):
        if seen + count >= wanted:
            low, high = least(step), least(step + 1)
            found = (low + (high - low) * (wanted - seen) / count) / 1e6
            return min(max(found, shortest), longest)
        seen += count
    return None
