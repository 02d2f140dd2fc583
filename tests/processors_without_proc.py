"""The processors, for a worker where descriptors have no paths."""

from imece_worker import private_directory
from tests.processors import copy, directory, write_source

private_directory.directory = lambda: None

__all__ = ["copy", "directory", "write_source"]
