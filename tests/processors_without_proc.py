"""The processors, for a worker where descriptors have no paths."""

from tests.processors import copy, directory, write_source
from worker import private

private.directory = lambda: None  # type: ignore[assignment]

__all__ = ["copy", "directory", "write_source"]
