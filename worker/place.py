"""Where a file is read and where its output goes; nothing outside the run's two directories.

An output is written to a temporary name beside its place and renamed when it is whole.
"""

import errno
import os
import shutil
import stat
from typing import NamedTuple

from imece import names

LONGEST_ENDING = 32
IN_THE_WAY = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY)
"""A directory takes the place of nothing but an empty directory, and a file of no directory."""


class PlaceError(Exception):
    """A file cannot be read or written where it should be; the text is the reason to keep."""


class Source(NamedTuple):
    """An input as it was found: size in bytes, time of last change in ns."""

    size: int
    changed: int


class Places:
    """The paths of one bucket job's files.

    Args:
        source_root, target_root: the run's directories as this worker sees them.
        suffix: see `names.with_suffix`.
        execution: names the temporary outputs, so that no other execution writes to the same.
    """

    def __init__(
        self, source_root: bytes, target_root: bytes | None, suffix: bytes | None, execution: str
    ) -> None:
        self._source_root = os.path.realpath(source_root)
        self._target_root = os.path.realpath(target_root) if target_root is not None else None
        self._suffix = suffix
        self._execution = execution
        self._inside: set[bytes] = set()
        self._latest: tuple[bytes, bytes | None] = (b"", None)

    def trouble(self) -> str | None:
        """Why no file at all can be processed here, or None. Creates the output directory."""
        if not os.path.isdir(self._source_root):
            return f"the input directory {names.shown(self._source_root)} is not there"
        if not os.access(self._source_root, os.R_OK | os.X_OK):
            return f"the input directory {names.shown(self._source_root)} cannot be read"
        if self._target_root is None:
            return None
        try:
            os.makedirs(self._target_root, exist_ok=True)
        except OSError as error:
            return f"the output directory {names.shown(self._target_root)}: {error.strerror}"
        if not os.access(self._target_root, os.W_OK | os.X_OK):
            return f"the output directory {names.shown(self._target_root)} cannot be written to"
        return None

    def source(self, name: bytes) -> bytes:
        return self._source_root + b"/" + name

    def target(self, name: bytes) -> bytes | None:
        """The output's place. Asked for several times a file, and worked out once."""
        if self._target_root is None:
            return None
        if self._latest[0] != name:
            target = self._target_root + b"/" + names.with_suffix(name, self._suffix)
            self._latest = (name, target)
        return self._latest[1]

    def temporary(self, name: bytes, index: int, execution: str | None = None) -> bytes | None:
        """The temporary output: short whatever the name, with the output's own ending, because
        many a tool chooses the format by it."""
        target = self.target(name)
        if target is None:
            return None
        directory, _, last = target.rpartition(b"/")
        ending = os.path.splitext(last)[1][-LONGEST_ENDING:]
        token = (execution or self._execution)[:12].encode()
        return b"%s/%s%s-%d%s" % (directory, names.TEMPORARY_PREFIX, token, index, ending)

    def look(self, name: bytes) -> Source:
        """The input's size and time.

        Raises:
            PlaceError: it is not there, not a file, or a link that leaves the input directory.
        """
        path = self.source(name)
        self._check_inside(path.rpartition(b"/")[0], self._source_root)
        try:
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                self._check_inside(os.path.realpath(path), self._source_root, remember=False)
                found = os.stat(path)
        except FileNotFoundError:
            raise PlaceError("the input is no longer there") from None
        except OSError as error:
            raise PlaceError(f"the input cannot be looked at: {error.strerror}") from None
        if not stat.S_ISREG(found.st_mode):
            raise PlaceError("the input is not a regular file")
        return Source(found.st_size, found.st_mtime_ns)

    def changed_since(self, name: bytes, source: Source) -> bool:
        """Whether the input was written to since `look`. One that is gone counts as consumed."""
        try:
            found = os.stat(self.source(name))
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) != source

    def existing(self, name: bytes) -> os.stat_result | None:
        """The output that is there already, if any."""
        target = self.target(name)
        if target is None:
            return None
        try:
            return os.lstat(target)
        except OSError:
            return None

    def prepare(self, name: bytes) -> None:
        """Makes the directory the output goes to.

        Raises:
            PlaceError: it cannot be made, or a link leads it out of the output directory.
        """
        target = self.target(name)
        if target is None or self._target_root is None:
            return
        directory = target.rpartition(b"/")[0]
        if directory in self._inside:
            return
        self._check_inside(directory, self._target_root, remember=False)  # nothing is made outside
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise PlaceError(
                f"the output directory {names.shown(directory)} cannot be made: {error.strerror}"
            ) from None
        self._check_inside(directory, self._target_root)

    def _check_inside(self, directory: bytes, root: bytes, remember: bool = True) -> None:
        if directory in self._inside:
            return
        resolved = os.path.realpath(directory)
        if resolved != root and not resolved.startswith(root.rstrip(b"/") + b"/"):
            raise PlaceError(
                f"a link leads it out of {names.shown(root)}, to {names.shown(resolved)}"
            )
        if remember:
            self._inside.add(directory)

    def commit(self, name: bytes, temporary: bytes) -> int:
        """Puts the finished output in its place; its size in bytes (0 for a directory).

        Raises:
            PlaceError: the processor has not written it, or it cannot be put there.
        """
        target = self.target(name)
        assert target is not None  # noqa: S101 - there is a temporary output, so there is a place
        try:
            found = os.lstat(temporary)
        except FileNotFoundError:
            raise PlaceError("the processor returned without writing its output") from None
        is_directory = stat.S_ISDIR(found.st_mode)
        if not (is_directory or stat.S_ISREG(found.st_mode)):
            raise PlaceError("the processor's output is neither a file nor a directory")
        try:
            try:
                os.rename(temporary, target)
            except OSError as error:
                if error.errno not in IN_THE_WAY:
                    raise
                os.rename(target, aside(temporary))
                os.rename(temporary, target)
                remove(aside(temporary))
        except OSError as error:
            raise PlaceError(f"the output cannot be put in its place: {error.strerror}") from None
        return 0 if is_directory else found.st_size


def aside(temporary: bytes) -> bytes:
    """Where an older output goes for the moment in which a directory is put in its place."""
    return temporary + b".old"


def remove(path: bytes) -> None:
    """Removes a file or directory, if it is there and can be removed."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
