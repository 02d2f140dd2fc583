"""The outputs of a job. Each is written in the execution's staging directory, a directory in the
output directory (imece/files/staging.py), and renamed when it is whole. If its place is on another
file system, it is carried there first.

In the staging directory there is a draft directory for it. So it has its real name there: tools go
by the ending, and some write the name into the output. The draft directory is used again, unless
something is left in it.

If they were written beside their places, workers would wait for each other: a directory takes one
new name at a time (bench/process.py). And what an execution leaves behind is removed at once.
After an output is in its place, its directory is looked for: if it was moved away, the output is
not done.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable

from imece import names
from imece.files import beneath, staging
from imece.files.signature import is_signed, sign
from imece.files.staging import StagingDirectory
from imece.process import move_up
from imece_worker import private_directory
from imece_worker.directories import PathError, Tree, identity

BACKUP = b".old"
"""The end of the name under which an older output is kept while a new one takes its place."""

DRAFT = b"draft-"
IN_THE_WAY = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY)
"""A directory can be renamed over an empty directory only, and a file over no directory."""

KINDS = {
    stat.S_IFDIR: "a directory that imece has not made for this file",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


class Outputs:
    """The output directory's.

    Args:
        suffix: see `names.with_suffix`.
        execution: names the staging directory, so that no other execution writes to the same.
        overwrite: whether a directory output may replace any directory, and any output a link.
        tree: the output directory, if it is open already.

    Attributes:
        staging_directory: while it is open.
    """

    def __init__(
        self,
        root: bytes,
        suffix: bytes | None,
        execution: str,
        overwrite: bool,
        tree: Tree | None = None,
    ) -> None:
        self.tree = tree or Tree(root)
        self.staging_directory: StagingDirectory | None = None
        self._suffix = suffix
        self._execution = execution
        self._overwrite = overwrite
        # The draft directory: its name, its descriptor, and its path for the processor.
        self._draft_name = b""
        self._draft = -1
        self._written = b""
        # Of the current output: its name, its directory and its last part, relative to the root;
        # the descriptor of that directory; and the name of what is kept of it elsewhere.
        self._output = self._directory = self._last = b""
        self._there = -1
        self._temporary = b""

    def name(self, name: bytes) -> bytes:
        """Of an input's output, relative to the root."""
        return names.with_suffix(name, self._suffix)

    def temporary(self, index: int) -> bytes:
        """The name of what is kept of an output outside of its place and the draft directory."""
        return b"%d_" % index

    def existing(self, name: bytes) -> os.stat_result | None:
        """What is in the output's place already, if anything."""
        directory, _, last = self.name(name).rpartition(b"/")
        try:
            found = os.lstat(last, dir_fd=self.tree.directory(directory))
        except (OSError, PathError):
            return None
        return found if self.tree.leads_to_held(directory) else None

    def _in_the_way(self, there: os.stat_result, output: bytes) -> PathError:
        what = KINDS.get(stat.S_IFMT(there.st_mode), "a device")
        path = names.shown(os.path.join(self.tree.path, output))
        return PathError(
            f"{path} is in the way: {what}. Move it away, then: imece retry RUN "
            "(with imece local: the same call)",
            errno.EEXIST,
            cause=f"{what} is in the way of its output",
        )

    def prepare(self, index: int, name: bytes) -> bytes:
        """Makes the output's directory, and the staging directory; the path to write to.

        Raises:
            PathError: one cannot be made, or a link leads it out of the output directory.
        """
        output = name if self._suffix is None else self.name(name)
        directory, _, last = output.rpartition(b"/")
        try:
            self._there = self.tree.directory(directory, make=True)
            if self._draft == -1:
                self._open_draft()
        except OSError as error:
            wanted = os.path.join(self.tree.path, directory)
            raise PathError(
                f"the directory {names.shown(wanted)} cannot be made: {error.strerror}",
                error.errno,
                cause=f"the directory of its output cannot be made: {error.strerror}",
            ) from None
        self._output, self._directory, self._last = output, directory, last
        self._temporary = self.temporary(index)
        return self._written + last

    def _open_draft(self) -> None:
        """Opens the draft directory, or makes one."""
        staged, number = self.staged(), 0
        while not self._draft_name:
            try:
                name = DRAFT + b"%d" % number
                os.mkdir(name, 0o700, dir_fd=staged.number)
                self._draft_name = name
            except FileExistsError:
                number += 1
        self._draft = move_up(os.open(self._draft_name, beneath.LISTED, dir_fd=staged.number))
        self._written = self._path(self._draft, staged.name + b"/" + self._draft_name) + b"/"

    def _leave_draft(self) -> None:
        """The next file gets an empty draft directory. What the processor has left beside its
        output is removed with the staging directory."""
        try:
            if not os.listdir(self._draft):
                return
        except OSError:
            pass  # the processor has removed it
        self._close_draft()
        self._draft_name = b""

    def _close_draft(self) -> None:
        if self._draft != -1:
            try:
                os.close(self._draft)
            except OSError:
                pass  # the processor has closed it
            self._draft = -1

    def staged(self) -> StagingDirectory:
        """The staging directory. It is made if it is not there.

        Raises:
            OSError: it cannot be made.
        """
        place = self.staging_directory
        if place is None:
            place = StagingDirectory.make(self.tree.root, self._execution)
            self.staging_directory = place
        return place

    def commit(self, note: Callable[[os.stat_result], None]) -> None:
        """Puts the finished output in its place.

        Args:
            note: told right before which file or directory will be there.

        Raises:
            PathError: the processor has not written it, or it cannot be put there.
        """
        try:
            self._commit(note)
        except OSError as error:
            why = f"the output cannot be put in its place: {error.strerror or error}"
            raise PathError(why, error.errno) from None

    def _commit(self, note: Callable[[os.stat_result], None]) -> None:
        last, draft = self._last, self._draft
        self._there = self.tree.directory(self._directory, make=True)  # may have been closed
        try:
            found = os.stat(last, dir_fd=draft, follow_symlinks=False)
        except FileNotFoundError:
            raise PathError("the processor returned without writing its output") from None
        is_directory = False
        if not stat.S_ISREG(found.st_mode):
            is_directory = stat.S_ISDIR(found.st_mode)
            if not is_directory:
                raise PathError("the processor's output is neither a file nor a directory")
            sign(draft, last, self._output)
            found = os.stat(last, dir_fd=draft, follow_symlinks=False)
        note(found)
        try:
            self._put(draft, last, self.staged().number, is_directory)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._carry(is_directory, note)
        if not self.tree.leads_to_held(self._directory):
            raise PathError("the output's directory was moved away while it was put there")
        self._leave_draft()

    def _put(self, source: int, name: bytes, kept: int, is_directory: bool) -> None:
        """From a directory of ours to its place. It replaces what it may replace.

        Args:
            kept: the directory in which an older output is kept meanwhile.
        """
        last, there = self._last, self._there
        try:
            older = os.lstat(last, dir_fd=there)
        except FileNotFoundError:
            pass
        else:
            self._check_yields(older, is_directory)
        try:
            os.rename(name, last, src_dir_fd=source, dst_dir_fd=there)
        except OSError as error:
            if error.errno not in IN_THE_WAY:
                raise
            self._replace(source, name, kept, is_directory)

    def _check_yields(self, older: os.stat_result, is_directory: bool) -> None:
        """Raises PathError unless what is in the output's place may be replaced."""
        if stat.S_ISREG(older.st_mode):
            return
        if stat.S_ISDIR(older.st_mode):
            yields = is_directory and self._overwrite
            yields = yields or is_signed(self._there, self._last, self._output)
        else:
            yields = stat.S_ISLNK(older.st_mode) and self._overwrite
        if not yields:
            raise self._in_the_way(older, self._output)

    def _replace(self, source: int, name: bytes, kept: int, is_directory: bool) -> None:
        """Moves a directory away for another or for a file, or a file for a directory."""
        last, there = self._last, self._there
        backup = self._temporary + BACKUP
        older = os.lstat(last, dir_fd=there)
        self._check_yields(older, is_directory)
        os.rename(last, backup, src_dir_fd=there, dst_dir_fd=kept)
        try:
            if identity(os.lstat(backup, dir_fd=kept)) != identity(older):
                raise PathError("what lies where the output goes was replaced at that time")
            os.rename(name, last, src_dir_fd=source, dst_dir_fd=there)
        except (OSError, PathError):
            if not beneath.is_there(last, there):
                os.rename(backup, last, src_dir_fd=kept, dst_dir_fd=there)
            raise
        beneath.remove(backup, kept)

    def _carry(self, is_directory: bool, note: Callable[[os.stat_result], None]) -> None:
        """To another file system: copied into a private directory beside its place, and renamed
        when it is whole."""
        place, temporary, there = self.staged(), self._temporary, self._there
        name = place.name + staging.CARRIED
        directory = self.tree.resolve(self._directory)
        beside = os.path.join(directory, name)
        place.note_copy_target(directory)
        beneath.remove(name, there)
        copy_target = staging.open_private(there, name, make=True)
        try:
            # Nobody else may write to either directory: paths by their descriptors hold.
            old = self._written + self._last
            new = os.path.join(self._path(copy_target, beside), temporary)
            if is_directory:
                shutil.copytree(os.fsdecode(old), os.fsdecode(new), symlinks=True)
            else:
                shutil.copy2(old, new)
            if is_directory:
                sign(copy_target, temporary, self._output)
            note(os.lstat(temporary, dir_fd=copy_target))
            self._put(copy_target, temporary, copy_target, is_directory)
        finally:
            os.close(copy_target)
            beneath.remove(name, there)
        beneath.remove(self._last, self._draft)

    def _path(self, number: int, path: bytes) -> bytes:
        """Of a directory in the output directory, for the processor."""
        if private_directory.directory() is not None:
            return private_directory.path_by(number)
        return os.path.join(self.tree.path, path)

    def discard(self) -> None:
        """Removes what a file that failed has written."""
        self._close_draft()
        if self._draft_name and self.staging_directory is not None:
            try:
                beneath.remove(self._draft_name, self.staging_directory.number)
            except OSError:
                pass
        self._draft_name = b""

    def forget(self) -> None:
        """Closes every directory; it is opened again when it is needed."""
        self._close_draft()
        if self.staging_directory is not None and self.staging_directory.lock is None:
            self.close_staging_directory()
        self.tree.forget()

    def close_staging_directory(self) -> None:
        if self.staging_directory is not None:
            self.staging_directory.close()
            self.staging_directory = None

    def close(self) -> None:
        self._close_draft()
        self.close_staging_directory()
        self.tree.forget()
