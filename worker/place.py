"""Where a file is read and where its output goes; nothing outside the run's two directories.

An output is written in the execution's workplace, a directory of its own in the output directory,
and renamed when it is whole; carried first, where its place is on another file system. Written
beside their places, outputs would make workers wait for each other: a directory takes one new name
at a time (bench/process.py). And what an execution leaves behind is removed in one go.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterable

from imece import names
from imece.run import Parameters
from imece.settings import Settings

LONGEST_ENDING = 32
CARRIED = b".carried"
IN_THE_WAY = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY)
"""A directory takes the place of nothing but an empty directory, and a file of no directory."""


class PlaceError(Exception):
    """A file cannot be read or written where it should be; the text is the reason to keep."""


class Places:
    """The paths of one bucket job's files.

    Args:
        source_root, target_root: the run's directories as this worker sees them.
        suffix: see `names.with_suffix`.
        execution: names the workplace, so that no other execution writes to the same.
    """

    def __init__(
        self, source_root: bytes, target_root: bytes | None, suffix: bytes | None, execution: str
    ) -> None:
        self.source_root = os.path.realpath(source_root)
        self.target_root = os.path.realpath(target_root) if target_root is not None else None
        self.suffix = suffix
        self.execution = execution
        self._workplace = self._workplace_of(execution)
        self._inside: set[bytes] = set()

    @classmethod
    def of(cls, settings: Settings, parameters: Parameters, execution: str) -> "Places":
        """Those of a run, with its directories where this worker's settings say it sees them."""
        target = settings.output or parameters.output_path
        return cls(
            os.fsencode(settings.input or parameters.input_path),
            os.fsencode(target) if target is not None and parameters.output is not None else None,
            os.fsencode(parameters.suffix) if parameters.suffix is not None else None,
            execution,
        )

    def trouble(self) -> str | None:
        """Why no file at all can be processed here, or None. Creates the output directory."""
        if not os.path.isdir(self.source_root):
            return f"the input directory {names.shown(self.source_root)} is not there"
        if not os.access(self.source_root, os.R_OK | os.X_OK):
            return f"the input directory {names.shown(self.source_root)} cannot be read"
        if self.target_root is None:
            return None
        try:
            os.makedirs(self.target_root, exist_ok=True)
        except OSError as error:
            return f"the output directory {names.shown(self.target_root)}: {error.strerror}"
        if not os.access(self.target_root, os.W_OK | os.X_OK):
            return f"the output directory {names.shown(self.target_root)} cannot be written to"
        return None

    def untouched(self) -> bool:
        """Whether there is no output yet, of any run. False, too, if that cannot be seen."""
        if self.target_root is None:
            return True
        try:
            with os.scandir(self.target_root) as entries:
                return all(entry.name.startswith(names.TEMPORARY_PREFIX) for entry in entries)
        except OSError:  # it may be written to, and not be listed
            return False

    def _workplace_of(self, execution: str) -> bytes:
        root = self.target_root or b""
        return b"%s/%s%s" % (root, names.TEMPORARY_PREFIX, execution[:12].encode())

    def clear(self, execution: str) -> bool:
        """Removes the workplace of an execution with all that is in it. False if somebody writes to
        it at this moment, so that it is still there."""
        if self.target_root is None:
            return True
        workplace = self._workplace_of(execution)
        remove(workplace)
        return not os.access(workplace, os.F_OK)

    def clear_landings(self, execution: str, files: Iterable[bytes]) -> None:
        """Removes what an execution has left of an output it carried to another file system."""
        if self.target_root is None:
            return
        name = os.path.basename(self._workplace_of(execution)) + CARRIED
        for directory in {os.path.dirname(self.target_root + b"/" + file) for file in files}:
            remove(directory + b"/" + name)
            remove(aside(directory + b"/" + name))

    def source(self, name: bytes) -> bytes:
        """The input's path."""
        return self.source_root + b"/" + name

    def target(self, name: bytes) -> bytes | None:
        """The path the output goes to; None if the run wants no output."""
        if self.target_root is None:
            return None
        return self.target_root + b"/" + names.with_suffix(name, self.suffix)

    def temporary(self, target: bytes, index: int) -> bytes:
        """The temporary output: short whatever the name, with the output's own ending, because
        many a tool chooses the format by it. The underscore: what a processor writes beside its own
        output, pages by their numbers say, must not lie where another file's output is looked for.
        """
        last = target.rpartition(b"/")[2]
        stem, dot, ending = last.rpartition(b".")
        ending = (dot + ending)[-LONGEST_ENDING:] if stem.strip(b".") else b""
        return b"%s/%d_%s" % (self._workplace, index, ending)

    def look(self, source: bytes) -> os.stat_result:
        """The input as it is now.

        Raises:
            PlaceError: it is not there, not a file, or a link that leaves the input directory.
        """
        self._check_inside(source.rpartition(b"/")[0], self.source_root)
        try:
            found = os.lstat(source)
            if stat.S_ISLNK(found.st_mode):
                self._check_inside(os.path.realpath(source), self.source_root, remember=False)
                found = os.stat(source)
        except FileNotFoundError:
            raise PlaceError("the input is no longer there") from None
        except OSError as error:
            raise PlaceError(f"the input cannot be looked at: {error.strerror}") from None
        if not stat.S_ISREG(found.st_mode):
            raise PlaceError("the input is not a regular file")
        return found

    def prepare(self, target: bytes) -> None:
        """Makes the directory the output goes to, and the workplace.

        Raises:
            PlaceError: it cannot be made, or a link leads it out of the output directory.
        """
        directory = target.rpartition(b"/")[0]
        if directory in self._inside:
            return
        assert self.target_root is not None  # noqa: S101 - there is a target
        self._check_inside(directory, self.target_root, remember=False)  # nothing is made outside
        for wanted in (self._workplace, directory):
            try:
                os.makedirs(wanted, exist_ok=True)
            except OSError as error:
                raise PlaceError(
                    f"the directory {names.shown(wanted)} cannot be made: {error.strerror}"
                ) from None
            self._check_inside(wanted, self.target_root)

    def forget(self) -> None:
        """Looks at every directory afresh from here on: one may have been removed."""
        self._inside.clear()

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


def changed_since(source: bytes, found: os.stat_result) -> bool:
    """Whether the input was written to since `look`. One that is gone counts as consumed."""
    try:
        now = os.stat(source)
    except OSError:
        return False
    return (now.st_size, now.st_mtime_ns) != (found.st_size, found.st_mtime_ns)


def existing(target: bytes) -> os.stat_result | None:
    """The output that is there already, if any."""
    # Most are not there: to ask first is half as dear as an exception.
    if not os.access(target, os.F_OK):
        return None
    try:
        return os.lstat(target)
    except OSError:
        return None


def commit(temporary: bytes, target: bytes) -> int:
    """Puts the finished output in its place; its size in bytes (0 for a directory).

    Raises:
        PlaceError: the processor has not written it, or it cannot be put there.
    """
    try:
        found = os.lstat(temporary)
    except FileNotFoundError:
        raise PlaceError("the processor returned without writing its output") from None
    is_directory = stat.S_ISDIR(found.st_mode)
    if not (is_directory or stat.S_ISREG(found.st_mode)):
        raise PlaceError("the processor's output is neither a file nor a directory")
    try:
        try:
            _rename(temporary, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _carry(temporary, target)
    except OSError as error:
        why = error.strerror or error
        raise PlaceError(f"the output cannot be put in its place: {why}") from None
    return 0 if is_directory else found.st_size


def _rename(temporary: bytes, target: bytes) -> None:
    """In the place of whatever is there."""
    try:
        os.rename(temporary, target)
    except OSError as error:
        if error.errno not in IN_THE_WAY:
            raise
        os.rename(target, aside(temporary))
        os.rename(temporary, target)
        remove(aside(temporary))


def _carry(temporary: bytes, target: bytes) -> None:
    """To another file system: copied to the output's side, and renamed there when it is whole."""
    beside = landing(temporary, target)
    remove(beside)
    remove(aside(beside))
    try:
        if os.path.isdir(temporary):
            shutil.copytree(os.fsdecode(temporary), os.fsdecode(beside), symlinks=True)
        else:
            shutil.copy2(temporary, beside)
        _rename(beside, target)
    finally:
        remove(beside)
    remove(temporary)


def landing(temporary: bytes, target: bytes) -> bytes:
    """Where an output is copied to if its place is on another file system than the workplace; an
    execution has but one file in hand, so one name will do."""
    workplace = os.path.basename(os.path.dirname(temporary))
    return os.path.join(os.path.dirname(target), workplace + CARRIED)


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
