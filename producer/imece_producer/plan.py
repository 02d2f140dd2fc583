"""What would be enqueued: files, buckets, jobs."""

import os
from dataclasses import dataclass, field

from imece.files import listing
from imece.files.listing import Listing
from imece.run.parameters import Parameters
from imece_producer import grouping
from imece_producer.grouping import Bucket


@dataclass(frozen=True)
class Plan:
    """What would be enqueued."""

    parameters: Parameters
    listing: Listing
    shape: grouping.Shape
    buckets: list[Bucket] = field(repr=False)

    @property
    def files(self) -> int:
        return len(self.listing.files)

    @property
    def jobs(self) -> int:
        return grouping.jobs(self.buckets, self.shape.files_per_job)


def plan(parameters: Parameters, found: Listing) -> Plan:
    """Groups what has been listed.

    Raises:
        ListingError: two files would write one output.
    """
    suffix = os.fsencode(parameters.suffix) if parameters.suffix is not None else None
    listing.check_outputs(found.files, suffix)
    return Plan(parameters, found, *group(parameters, found.files))


def group(parameters: Parameters, files: list[bytes]) -> tuple[grouping.Shape, list[Bucket]]:
    shape = grouping.shape(len(files), parameters.buckets, parameters.files_per_job)
    return shape, grouping.group(files, shape.buckets, parameters.seed)
