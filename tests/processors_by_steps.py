"""The processors, for a worker on a kernel without openat2."""

from imece import beneath
from tests.processors import copy, slow

beneath.openat2 = None

__all__ = ["copy", "slow"]
