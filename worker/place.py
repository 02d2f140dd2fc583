"""Where a file is read and where its output goes; nothing outside the run's two directories.

An output is written in the execution's workplace, a directory of its own in the output directory,
and renamed when it is whole; carried first, where its place is on another file system. Written
beside their places, outputs would make workers wait for each other: a directory takes one new name
at a time (bench/process.py). And what an execution leaves behind is removed in one go.

Directories are held by their descriptors (imece/beneath.py), and all is done relative to these, so
that nobody who may write to them leads a worker out of them.
"""

import errno
import hashlib
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from imece import beneath, names, workplace
from imece.run import Parameters
from imece.settings import Settings
from imece.workplace import Workplace
from worker import private

LONGEST_ENDING = 32
IN_THE_WAY = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY)
"""A directory takes the place of nothing but an empty directory, and a file of no directory."""

HELD = 16
"""How many directories below each root are held open; files come sorted, so few are enough."""

ASIDE = b".old"
FILE = os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK)

SIGNATURE = "user.imece.output"
SIGNATURE_FILE = names.TEMPORARY_PREFIX + b"output"
"""By either a directory is known as an output of ours: an extended attribute, or a file in it where
the file system has none. What they hold names the output, so that no other is taken for it."""

FULL = (errno.ENOSPC, errno.EDQUOT)
BROKEN = (errno.ESTALE, errno.ENOTCONN, errno.EIO)
PROBE = 2**16
LITTLE_ROOM = 64 * 2**20
"""Bytes. With less than this, a failure for want of room is the place's and not the file's."""


class PlaceError(Exception):
    """A file cannot be read or written where it should be; the text is the reason to keep."""

    def __init__(self, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.errno = number


class Tree:
    """A directory, and those beneath it that have been used last, held open."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._within = path.rstrip(b"/") + b"/"
        self._root: int | None = None
        self._identity = (0, 0)
        self._held: dict[bytes, tuple[int, tuple[int, int]]] = {}

    @property
    def root(self) -> int:
        """Raises OSError if it is not there."""
        if self._root is None:
            self._root = os.open(self.path, beneath.PINNED | os.O_NOFOLLOW)
            self._identity = identity(os.fstat(self._root))
        return self._root

    @property
    def device(self) -> int:
        self.root  # noqa: B018 - opens it
        return self._identity[0]

    def directory(self, path: bytes, make: bool = False) -> int:
        """The descriptor of a directory beneath.

        Raises:
            PlaceError: a link leads it out.
            OSError: it is not there, or cannot be made.
        """
        held = self._held.get(path)
        if held is not None:
            return held[0]
        if not path:
            return self.root
        try:
            number = self._open(path, make)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            number = self._open(self.resolve(path), make)
        if len(self._held) == HELD:
            os.close(self._held.pop(next(iter(self._held)))[0])
        self._held[path] = number, identity(os.fstat(number))
        return number

    def _open(self, path: bytes, make: bool) -> int:
        try:
            return beneath.open_directory(self.root, path)
        except FileNotFoundError:
            if not make:
                raise
        return beneath.make_directories(self.root, path)

    def resolve(self, path: bytes) -> bytes:
        """The path without links, relative to the root.

        Raises:
            PlaceError: it leads out.
        """
        resolved = os.path.realpath(self._within + path)
        if resolved == self.path:
            return b""
        if not resolved.startswith(self._within):
            raise PlaceError(
                f"a link leads it out of {names.shown(self.path)}, to {names.shown(resolved)}"
            )
        return resolved[len(self._within) :]

    def leads_to_held(self, path: bytes) -> bool:
        """Whether a directory's path still leads to what is held open."""
        try:
            now = os.stat(self._within + path)
        except OSError:
            return False
        return identity(now) == (self._held[path][1] if path else self._identity)

    def is_in_place(self) -> bool:
        """Whether the root still is what it was. Raises OSError if it cannot be looked at."""
        self.root  # noqa: B018 - opens it
        return identity(os.stat(self.path)) == self._identity

    def forget(self) -> None:
        """Looks at everything afresh from here on."""
        for number in [*(number for number, _ in self._held.values()), self._root]:
            if number is not None:
                try:
                    os.close(number)
                except OSError:
                    pass  # a processor has closed it
        self._held.clear()
        self._root = None


def identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


@dataclass(slots=True)
class Input:
    """The file in hand, held open.

    Attributes:
        path: for the processor.
        directory, last: where it really lies.
    """

    number: int
    path: bytes
    directory: bytes
    last: bytes
    found: os.stat_result


_left: dict[bytes, set[str]] = {}
"""Workplaces that this worker could not remove, by output directory: it may be read-only."""


@dataclass(slots=True)
class Target:
    """Where the output of the file in hand goes.

    Attributes:
        there: the descriptor of the directory.
        temporary: its name in the workplace.
        output: its name, relative to the output directory.
    """

    directory: bytes
    last: bytes
    there: int
    temporary: bytes
    output: bytes


class Places:
    """The places of one bucket job's files.

    Args:
        source_root, target_root: the run's directories as this worker sees them.
        suffix: see `names.with_suffix`.
        execution: names the workplace, so that no other execution writes to the same.
        overwrite: whether a directory output takes the place of any directory.
        kind: what the workplace is for, see `workplace.sweep`.
    """

    def __init__(
        self,
        source_root: bytes,
        target_root: bytes | None,
        suffix: bytes | None,
        execution: str,
        overwrite: bool = False,
        kind: str = "",
    ) -> None:
        self.source_root = os.path.realpath(source_root)
        self.target_root = os.path.realpath(target_root) if target_root is not None else None
        self.suffix = suffix
        self.execution = execution
        self.overwrite = overwrite
        self.kind = kind
        self._inputs = Tree(self.source_root)
        self._outputs = Tree(self.target_root) if self.target_root is not None else None
        self._workplace: Workplace | None = None
        self._desk: private.Desk | None = None
        self._written = b""
        self._input: Input | None = None
        self._target: Target | None = None

    @classmethod
    def of(
        cls, settings: Settings, parameters: Parameters, execution: str, kind: str = ""
    ) -> "Places":
        """Those of a run, with its directories where this worker's settings say it sees them."""
        target = settings.output or parameters.output_path
        return cls(
            os.fsencode(settings.input or parameters.input_path),
            os.fsencode(target) if target is not None and parameters.output is not None else None,
            os.fsencode(parameters.suffix) if parameters.suffix is not None else None,
            execution,
            parameters.overwrite,
            kind,
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

    # The worker's

    def occupy(self) -> None:
        """Makes the workplace and holds its lock.

        Raises:
            PlaceError: it cannot be made.
        """
        private.directory()  # made before there is a work-horse, for all of them
        if self._outputs is None:
            return
        for execution in _left.pop(self._outputs.path, set()):
            self.clear(execution)
        try:
            self._workplace = Workplace.make(self._outputs.root, self.execution)
            self._workplace.hold(self.kind)
        except OSError as error:
            self._outputs.forget()
            why = self.fault(error) or f"the workplace cannot be made: {error.strerror}"
            raise PlaceError(why, error.errno) from None

    def input_size(self, name: bytes) -> int:
        """0 if it is not there: the processor may have consumed it."""
        directory, _, last = name.rpartition(b"/")
        try:
            return os.stat(last, dir_fd=self._inputs.directory(directory)).st_size
        except (OSError, PlaceError):
            return 0

    def show_life(self) -> None:
        if self._workplace is not None:
            self._workplace.show_life()

    def clear(self, execution: str) -> bool:
        """Removes the workplace of an execution with all that is in it and was carried from it.
        False if somebody writes to it at this moment, so that it is still there."""
        if execution == self.execution:
            private.clear(execution)
            self.close()
        if self._outputs is None:
            return True
        try:
            cleared = workplace.clear(self._outputs.root, workplace.name_of(execution))
        except OSError:  # the output directory is gone
            cleared = True
        if execution == self.execution:
            self._outputs.forget()
        if not cleared:
            _left.setdefault(self._outputs.path, set()).add(execution)
        return cleared

    def proven(self, execution: str) -> Iterator[tuple[int, int, int]]:
        """The proofs an execution has left: index, device, inode."""
        if self._outputs is None:
            return
        try:
            number = workplace.open_private(
                self._outputs.root, workplace.name_of(execution), make=False
            )
        except OSError:
            return
        try:
            found = workplace.proofs(number)
        finally:
            os.close(number)
        for index, renamed in found.items():
            for device, inode in renamed:
                yield index, device, inode

    def proof(self, name: bytes, device: int, inode: int) -> os.stat_result | None:
        """The output, if it is the one that was about to be renamed."""
        there = self.existing(name)
        if there is None or (self._device(there), there.st_ino) != (device, inode):
            return None
        return there

    def renew_proof(self, index: int, device: int, inode: int) -> None:
        """Takes a proof over from a workplace that is about to be removed."""
        if self._workplace is not None:
            try:
                self._workplace.prove(index, device, inode)
            except OSError:
                pass  # then it is done again, if this worker dies, too

    def restore(self, execution: str, files: Sequence[bytes]) -> None:
        """Puts older directories back that a horse was about to replace when it was killed, and
        removes what else it has left of the files it had in hand."""
        if self._outputs is None:
            return
        place = workplace.name_of(execution)
        try:
            number = workplace.open_private(self._outputs.root, place, make=False)
        except OSError:
            return
        try:
            for index in _indexes(number):
                if index < len(files):
                    temporary = self._temporary(index, self._output(files[index]))
                    self._restore(number, temporary, files[index])
                    for path in workplace.landings(number):
                        landing = place + workplace.CARRIED
                        self._restore_landed(path, landing, temporary, files[index])
                    beneath.remove(temporary, number)
        finally:
            os.close(number)

    def _restore(self, number: int, temporary: bytes, name: bytes) -> None:
        assert self._outputs is not None  # noqa: S101 - `restore` has looked
        if not beneath.is_there(temporary + ASIDE, number):
            return
        directory, _, last = self._output(name).rpartition(b"/")
        try:
            there = self._outputs.directory(directory)
            if not beneath.is_there(last, there):
                os.rename(temporary + ASIDE, last, src_dir_fd=number, dst_dir_fd=there)
        except (OSError, PlaceError):
            pass
        beneath.remove(temporary + ASIDE, number)

    def _restore_landed(self, path: bytes, landing: bytes, temporary: bytes, name: bytes) -> None:
        assert self._outputs is not None  # noqa: S101 - `restore` has looked
        try:
            directory = beneath.open_directory(self._outputs.root, path)
        except OSError:
            return
        try:
            number = workplace.open_private(directory, landing, make=False)
            try:
                self._restore(number, temporary, name)
            finally:
                os.close(number)
            beneath.remove(landing, directory)
        except OSError:
            pass
        finally:
            os.close(directory)

    def sweep(self, keep: Collection[str] | None = None, patience: float = math.inf) -> int:
        """Removes workplaces that dead workers have left; see `workplace.sweep`."""
        if self.target_root is None:
            return 0
        kept = [*keep, self.execution] if keep is not None else None
        return workplace.sweep(self.target_root, kept, self.kind or None, patience=patience)

    # The work-horse's

    def look(self, name: bytes) -> os.stat_result:
        """Takes the input in hand, as it is now.

        Raises:
            PlaceError: it is not there, not a file, or a link that leaves the input directory.
        """
        self.put_down()
        try:
            directory, last, number, found = self._open_input(name)
        except FileNotFoundError:
            raise PlaceError("the input is no longer there", errno.ENOENT) from None
        except OSError as error:
            why = f"the input cannot be looked at: {error.strerror}"
            raise PlaceError(why, error.errno) from None
        if not stat.S_ISREG(found.st_mode):
            os.close(number)
            raise PlaceError("the input is not a regular file")
        if (desk := self._private()) is None:
            path = os.path.join(self.source_root, directory, last)
        else:
            number, path = desk.input(number, name.rpartition(b"/")[2])
        self._input = Input(number, path, directory, last, found)
        return found

    def _open_input(self, name: bytes) -> tuple[bytes, bytes, int, os.stat_result]:
        directory, _, last = name.rpartition(b"/")
        number = os.open(last, FILE, dir_fd=self._inputs.directory(directory))
        found = os.fstat(number)
        if not stat.S_ISLNK(found.st_mode):
            return directory, last, number, found
        os.close(number)
        directory, _, last = self._inputs.resolve(name).rpartition(b"/")
        number = os.open(last, FILE, dir_fd=self._inputs.directory(directory))
        return directory, last, number, os.fstat(number)

    @property
    def input(self) -> Input:
        assert self._input is not None  # noqa: S101 - `look` has set it
        return self._input

    def put_down(self) -> None:
        """The input in hand. Its number is kept for the next one, for the link leads there."""
        if self._input is not None and self._desk is None:
            try:
                os.close(self._input.number)
            except OSError:
                pass  # the processor has closed it
        self._input = None

    def changed(self) -> bool:
        """Whether the input was written to or replaced since `look`. One that is gone counts as
        consumed."""
        held = self.input
        try:
            now = self._stat_input(held)
        except (OSError, PlaceError):
            return False
        found = held.found
        return (
            now.st_mtime_ns != found.st_mtime_ns
            or now.st_size != found.st_size
            or now.st_ino != found.st_ino
            or now.st_dev != found.st_dev
        )

    def _stat_input(self, held: Input) -> os.stat_result:
        try:
            return os.stat(held.last, dir_fd=self._inputs.directory(held.directory))
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
        self._inputs.forget()  # the processor has closed what it has not opened
        return os.stat(held.last, dir_fd=self._inputs.directory(held.directory))

    def existing(self, name: bytes) -> os.stat_result | None:
        """The output that is there already, if any."""
        if self._outputs is None:
            return None
        directory, _, last = self._output(name).rpartition(b"/")
        try:
            number = self._outputs.directory(directory)
            # Most are not there: to ask first is half as dear as an exception.
            if not os.access(last, os.F_OK, dir_fd=number):
                return None
            return os.lstat(last, dir_fd=number)
        except (OSError, PlaceError):
            return None

    def prepare(self, index: int, name: bytes) -> bytes | None:
        """Makes the directory the output goes to, and the workplace; the path to write to. None if
        the run wants no output.

        Raises:
            PlaceError: one cannot be made, or a link leads it out of the output directory.
        """
        if self._outputs is None:
            return None
        output = self._output(name)
        directory, _, last = output.rpartition(b"/")
        try:
            there = self._outputs.directory(directory, make=True)
            if self._workplace is None:
                self._workplace = Workplace.make(self._outputs.root, self.execution)
                desk = self._private()
                self._written = (
                    desk.outputs(self._workplace.number)
                    if desk is not None
                    else os.path.join(self._outputs.path, self._workplace.name)
                )
        except OSError as error:
            wanted = os.path.join(self._outputs.path, directory)
            raise PlaceError(
                f"the directory {names.shown(wanted)} cannot be made: {error.strerror}", error.errno
            ) from None
        temporary = self._temporary(index, output)
        self._target = Target(directory, last, there, temporary, output)
        return self._written + b"/" + temporary

    def _private(self) -> private.Desk | None:
        if self._desk is None and (base := private.directory()) is not None:
            self._desk = private.Desk(base, self.execution)
        return self._desk

    def _output(self, name: bytes) -> bytes:
        return names.with_suffix(name, self.suffix)

    def _temporary(self, index: int, output: bytes) -> bytes:
        """The temporary output: short whatever the name, with the output's own ending, because
        many a tool chooses the format by it. The underscore: what a processor writes beside its own
        output, pages by their numbers say, must not lie where another file's output is looked for.
        """
        stem, dot, ending = output.rpartition(b"/")[2].rpartition(b".")
        ending = (dot + ending)[-LONGEST_ENDING:] if stem.strip(b".") else b""
        return b"%d_%s" % (index, ending)

    def _device(self, found: os.stat_result) -> int:
        assert self._outputs is not None  # noqa: S101 - there is an output
        return 0 if found.st_dev == self._outputs.device else found.st_dev

    def commit(self, index: int, name: bytes) -> int:
        """Puts the finished output in its place; its size in bytes (0 for a directory, or if the
        run wants none).

        Raises:
            PlaceError: the processor has not written it, or it cannot be put there.
        """
        if self._outputs is None:
            return 0
        try:
            return self._commit(index)
        except OSError as error:
            if error.errno != errno.EBADF:
                why = error.strerror or error
                text = f"the output cannot be put in its place: {why}"
                raise PlaceError(text, error.errno) from None
        self.forget()  # the processor has closed what it has not opened
        self.prepare(index, name)
        try:
            return self._commit(index)
        except OSError as error:
            text = f"the output cannot be put in its place: {error.strerror}"
            raise PlaceError(text, error.errno) from None

    def _commit(self, index: int) -> int:
        outputs, place, target = self._outputs, self._workplace, self._target
        assert outputs is not None and place is not None and target is not None  # noqa: S101
        temporary = target.temporary
        try:
            found = os.lstat(temporary, dir_fd=place.number)
        except FileNotFoundError:
            raise PlaceError("the processor returned without writing its output") from None
        is_directory = stat.S_ISDIR(found.st_mode)
        if not (is_directory or stat.S_ISREG(found.st_mode)):
            raise PlaceError("the processor's output is neither a file nor a directory")
        if is_directory:
            sign(place.number, temporary, target.output)
        place.prove(index, self._device(found), found.st_ino)
        try:
            os.rename(temporary, target.last, src_dir_fd=place.number, dst_dir_fd=target.there)
        except OSError as error:
            if error.errno in IN_THE_WAY:
                self._replace(place.number, target)
            elif error.errno == errno.EXDEV:
                self._carry(index, is_directory, target)
            else:
                raise
        if not outputs.leads_to_held(target.directory):
            raise PlaceError("the output's directory was moved away while it was put there")
        return 0 if is_directory else found.st_size

    def _replace(self, source: int, target: "Target") -> None:
        """A directory goes for another, or for a file, or a file for a directory; not for one that
        somebody else has made."""
        temporary, last, there, output = target.temporary, target.last, target.there, target.output
        aside = temporary + ASIDE
        older = os.lstat(last, dir_fd=there)
        if stat.S_ISDIR(older.st_mode):
            is_directory = stat.S_ISDIR(os.lstat(temporary, dir_fd=source).st_mode)
            if not (is_directory and self.overwrite) and not is_signed(there, last, output):
                hint = ", or enqueue with --overwrite" if is_directory else ""
                raise PlaceError(
                    f"a directory lies where the output goes, {names.shown(output)}, and imece has "
                    f"not made it for this file: move it away{hint}",
                    errno.ENOTEMPTY,
                )
        os.rename(last, aside, src_dir_fd=there, dst_dir_fd=source)
        try:
            if identity(os.lstat(aside, dir_fd=source)) != identity(older):
                raise PlaceError("what lies where the output goes was replaced meanwhile")
            os.rename(temporary, last, src_dir_fd=source, dst_dir_fd=there)
        except (OSError, PlaceError):
            if not beneath.is_there(last, there):
                os.rename(aside, last, src_dir_fd=source, dst_dir_fd=there)
            raise
        beneath.remove(aside, source)

    def _carry(self, index: int, is_directory: bool, target: "Target") -> None:
        """To another file system: copied to the output's side, into a directory that is for us
        alone as well, and renamed there when it is whole."""
        assert self._outputs is not None and self._workplace is not None  # noqa: S101
        place, temporary, there = self._workplace, target.temporary, target.there
        name = place.name + workplace.CARRIED
        directory = self._outputs.resolve(target.directory)
        beside = os.path.join(directory, name)
        place.note_landing(directory)
        beneath.remove(name, there)
        landing = workplace.open_private(there, name, make=True)
        try:
            # Nobody else may write to either directory: paths by their descriptors hold.
            old, new = self._path(place.number, place.name), self._path(landing, beside)
            old, new = os.path.join(old, temporary), os.path.join(new, temporary)
            if is_directory:
                shutil.copytree(os.fsdecode(old), os.fsdecode(new), symlinks=True)
            else:
                shutil.copy2(old, new)
            if is_directory:
                sign(landing, temporary, target.output)
            landed = os.lstat(temporary, dir_fd=landing)
            place.prove(index, self._device(landed), landed.st_ino)
            try:
                os.rename(temporary, target.last, src_dir_fd=landing, dst_dir_fd=there)
            except OSError as error:
                if error.errno not in IN_THE_WAY:
                    raise
                self._replace(landing, target)
        finally:
            os.close(landing)
            beneath.remove(name, there)
        beneath.remove(temporary, place.number)

    def _path(self, number: int, path: bytes) -> bytes:
        """Of a directory in the output directory."""
        assert self._outputs is not None  # noqa: S101 - there is a directory in it
        if private.directory() is not None:
            return b"/proc/self/fd/%d" % number
        return os.path.join(self._outputs.path, path)

    def discard(self, index: int, name: bytes) -> None:
        """Removes what there is of an output that will not be."""
        if self._workplace is not None:
            try:
                beneath.remove(self._temporary(index, self._output(name)), self._workplace.number)
            except OSError:
                pass

    def forget(self) -> None:
        """Looks at every directory afresh from here on: one may have been removed."""
        self._inputs.forget()
        if self._workplace is not None and self._workplace.lock is None:
            self._workplace.close()
            self._workplace = None
        if self._outputs is not None:
            self._outputs.forget()

    def close(self) -> None:
        """Lets everything go. What is removed then is gone on NFS, too."""
        self.put_down()
        if self._workplace is not None:
            self._workplace.close()
            self._workplace = None
        if self._desk is not None:
            self._desk.close()
            self._desk = None
        self._inputs.forget()
        if self._outputs is not None:
            self._outputs.forget()

    # Whose fault it was

    def fault(self, error: BaseException | None) -> str | None:
        """What is wrong with the run's directories, so that a file failed for it; None: nothing.
        To be asked before what the file has written is removed: it may be what fills the disk."""
        numbers = set(_errnos(error))
        text = str(error) if error is not None else ""
        said_full = bool(numbers.intersection(FULL)) or any(
            os.strerror(number) in text for number in FULL
        )
        shown = f"the input directory {names.shown(self.source_root)}"
        if (flaw := _flaw(self._inputs, os.R_OK | os.X_OK)) is not None:
            return f"{shown} {flaw}"
        if self._outputs is not None:
            shown = f"the output directory {names.shown(self._outputs.path)}"
            flaw = _flaw(self._outputs, os.W_OK | os.X_OK) or self._probe(said_full)
            if flaw is not None:
                return f"{shown} {flaw}"
        if said_full and _is_full(tempfile.gettempdir()):
            return f"the directory for temporary files {tempfile.gettempdir()} is full"
        return None

    def _probe(self, said_full: bool) -> str | None:
        """Writes a little to the output directory."""
        assert self._outputs is not None  # noqa: S101 - `fault` has looked
        name = names.TEMPORARY_PREFIX + b"probe-%d" % os.getpid()
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            room = os.statvfs(self._outputs.path)
            try:
                directory = self._workplace.number if self._workplace else self._outputs.root
                number = os.open(name, flags, 0o600, dir_fd=directory)
            except FileNotFoundError:  # the file has removed the workplace
                directory = self._outputs.root
                number = os.open(name, flags, 0o600, dir_fd=directory)
            try:
                written = os.write(number, bytes(PROBE))
            finally:
                os.close(number)  # where a network file system tells
                os.unlink(name, dir_fd=directory)
        except OSError as error:
            return _described(error.errno)
        little = room.f_blocks and room.f_bavail * room.f_frsize < LITTLE_ROOM
        return "is full" if written < PROBE or (said_full and little) else None


def _indexes(directory: int) -> set[int]:
    """Of the files whose temporary outputs lie in a workplace."""
    try:
        heads = [entry.partition("_")[0] for entry in os.listdir(directory)]
    except OSError:
        return set()
    return {int(head) for head in heads if head.isascii() and head.isdigit()}


def _flaw(tree: Tree, rights: int) -> str | None:
    """What is wrong with a root."""
    try:
        if not tree.is_in_place():
            return "is not the one it was when the job was begun"
        if rights & os.W_OK and os.statvfs(tree.path).f_flag & os.ST_RDONLY:
            return "is read-only"
    except OSError as error:
        return _described(error.errno) or f"cannot be looked at: {error.strerror}"
    if not os.access(tree.path, rights):
        return "cannot be written to" if rights & os.W_OK else "cannot be read"
    return None


def _described(number: int | None) -> str | None:
    if number in FULL:
        return "is full"
    if number == errno.EROFS:
        return "is read-only"
    if number == errno.ENOENT:
        return "is gone"
    if number in BROKEN:
        return f"cannot be used: {os.strerror(number or 0)}"
    return None


def _is_full(directory: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as stream:
            return stream.write(bytes(PROBE)) != PROBE
    except OSError as error:
        return error.errno in FULL


def _errnos(error: BaseException | None) -> Iterator[int]:
    """Those of an error and of all it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = getattr(error, "errno", None)
        if isinstance(number, int):
            yield number
        error = error.__cause__ or error.__context__


def signature(output: bytes) -> bytes:
    return hashlib.sha256(output).hexdigest().encode()


def sign(directory: int, name: bytes, output: bytes) -> None:
    """Marks a directory as ours, made as this output. One that cannot be marked is not."""
    try:
        number = os.open(name, beneath.LISTED, dir_fd=directory)
    except OSError:
        return
    try:
        try:
            os.setxattr(number, SIGNATURE, signature(output))
        except (OSError, AttributeError):
            flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(SIGNATURE_FILE, flags, 0o644, dir_fd=number), "wb") as stream:
                stream.write(signature(output))
    except OSError:
        pass
    finally:
        os.close(number)


def is_signed(directory: int, name: bytes, output: bytes) -> bool:
    """Whether a directory was made by imece as this output."""
    try:
        number = os.open(name, beneath.LISTED, dir_fd=directory)
    except OSError:
        return False
    try:
        try:
            return os.getxattr(number, SIGNATURE) == signature(output)
        except (OSError, AttributeError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            with open(os.open(SIGNATURE_FILE, flags, dir_fd=number), "rb") as stream:
                return stream.read(100) == signature(output)
    except OSError:
        return False
    finally:
        os.close(number)
