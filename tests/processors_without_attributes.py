"""The processors, for a worker on a file system without extended attributes."""

import os

from tests.processors import directory

del os.setxattr, os.getxattr

__all__ = ["directory"]
