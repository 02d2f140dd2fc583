"""The processors, for a worker on a kernel without openat2."""

from imece.files import beneath
from tests.processors import copy, copy_after_many_reads, slow

beneath.openat2 = None

__all__ = ["copy", "copy_after_many_reads", "slow"]
