"""A processor whose process is larger than the least memory limit when it has been imported."""

import mmap

BALLAST = mmap.mmap(-1, 100 * 2**20)


def nothing(source: str, target: str | None) -> None:
    pass
