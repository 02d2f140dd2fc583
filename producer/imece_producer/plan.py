"""The plan of a round: which files are to be processed and why, and how they are grouped."""

import os
from dataclasses import dataclass
from typing import Any

from imece.files import listing
from imece.files.current import Comparer, Comparison, Reason, Rules
from imece.files.listing import Listing
from imece.run.parameters import Parameters
from imece.version import Version
from imece_producer import grouping
from imece_producer.grouping import Bucket, Shape


@dataclass(frozen=True)
class Plan:
    """What is enqueued, or would be.

    Attributes:
        files: how many are to be processed.
        through: how many are not, because their outputs are current, or an earlier round has done
            them.
        in_hand: how many a worker has.
        comparison: of those that no worker has.
    """

    parameters: Parameters
    listing: Listing
    comparison: Comparison
    files: int
    through: int
    in_hand: int
    shape: Shape
    buckets: list[Bucket]

    @property
    def jobs(self) -> int:
        return grouping.jobs(self.buckets, self.shape.files_per_job)

    def summary(self) -> dict[str, Any]:
        """What a program would want, ready for JSON."""
        return {
            "files": self.files,
            "buckets": self.shape.buckets,
            "jobs": self.jobs,
            "done_already": self.through,
            "in_hand": self.in_hand,
            "other_code": self.comparison.other_code,
            "reasons": {reason.name.lower(): n for reason, n in self.comparison.reasons.items()},
        }


def comparer(parameters: Parameters, version: Version | None, rules: Rules) -> Comparer | None:
    """None where nothing can be current: there are no outputs, or all are to be made again.

    Args:
        version: of the processor; None if it is not known here.
    """
    if parameters.output is None or parameters.overwrite:
        return None
    source, target = os.fsencode(parameters.input), os.fsencode(parameters.output)
    return Comparer(source, target, parameters.ending, version, parameters.set, rules)


def without_run(parameters: Parameters, found: Listing, comparing: Comparer | None) -> Plan:
    """As if there were no run of that name.

    Raises:
        ListingError: two files would write one output.
    """
    listing.check_outputs(found.files, parameters.ending)
    compared = Comparison(to_do=found.files)
    if comparing is not None:
        compared = comparing.compare(found.files)
    elif parameters.overwrite:
        compared.reasons[Reason.ALL] = len(found.files)
    files, through = len(compared.to_do), len(compared.current)
    shape, buckets = grouping.divide(parameters, compared.to_do)
    return Plan(parameters, found, compared, files, through, 0, shape, buckets)
