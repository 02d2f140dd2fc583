"""The open files of this process."""

import os

_LISTED = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"

Identity = tuple[int, int]
"""Device and inode: tells whether a number still stands for the same file."""


def opened() -> dict[int, Identity]:
    """All of them, by number."""
    found = {}
    for number in map(int, os.listdir(_LISTED)):
        try:
            status = os.fstat(number)
        except OSError:
            continue  # by which the directory was read
        found[number] = (status.st_dev, status.st_ino)
    return found


def close_all_but(kept: set[int], unless_changed: dict[int, Identity]) -> None:
    """Closes what is neither of these numbers nor one of these files."""
    for number, identity in opened().items():
        if number not in kept and unless_changed.get(number) != identity:
            os.close(number)
