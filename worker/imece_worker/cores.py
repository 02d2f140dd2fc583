"""How many threads the libraries of one runner are to have.

Each library takes as many as the machine has cores. With a runner for each core, or in a container
that may use two cores of sixty-four, they then wait for each other.
"""

import os
from collections.abc import Iterator
from pathlib import Path

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)


def threads(replicas: int, root: Path = Path("/")) -> int:
    """For each of so many workers on this machine or in this container; at least 1.

    Args:
        root: where `proc` and `sys` are.
    """
    if hasattr(os, "sched_getaffinity"):
        cores: float = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, int(min([cores, *_limits(root)]) / replicas))


def _limits(root: Path) -> Iterator[float]:
    """Cores that this process may use by the limits of its cgroup and of those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        # Within a container the path may be that on the machine: then only the last one is there.
        place = Path(group.lstrip("/"))
        for one in (place, *place.parents):
            yield from _limit(mount / one)


def _limit(group: Path) -> Iterator[float]:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return
    if quota not in ("max", "-1"):
        yield int(quota) / int(period)
