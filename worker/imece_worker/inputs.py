"""The inputs of a job, one at a time and held open: what the processor reads is what was looked at,
whatever is put in its place. That nobody writes to it meanwhile cannot be ensured, only seen
(`changed`).
"""

import errno
import os
import shutil
import stat

from imece.files import beneath
from imece.process import move_up
from imece_worker import private_directory
from imece_worker.directories import PathError, Tree

FILE = os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK)
NOTHING = os.stat_result([0] * 10)
CHANGED = "the input changed while it was processed"


class Inputs:
    """The input directory's.

    The processor gets a link in the worker's private directory. It leads to the open file, and has
    the name of the input. Where descriptors have no paths, the processor gets the input's path.

    Args:
        execution: names the directory of the link.
        tree: the input directory, if it is open already.
        slot: tells links of one execution apart.

    Attributes:
        path: that of the current file, for the processor.
    """

    def __init__(
        self, root: bytes, execution: str, tree: Tree | None = None, slot: int = 0
    ) -> None:
        self.tree = tree or Tree(root)
        self.path = b""
        self._execution, self._slot = execution, slot
        # The directory of the link, and the file that the link leads to; -1: not open.
        self._links = self._number = -1
        self._prefix = self._leads_to = self._link = b""
        # Where the current file really lies, and what it was when it was looked at.
        self._directory = self._last = b""
        self._found = NOTHING

    def look(self, name: bytes) -> os.stat_result:
        """Opens a file; what it is now.

        Raises:
            PathError: it is not there, not a file, or a link that leaves the input directory.
        """
        directory, _, last = name.rpartition(b"/")
        self._directory, self._last = directory, last
        try:
            number = os.open(last, FILE, dir_fd=self.tree.directory(directory))
            found = os.fstat(number)
            if stat.S_ISLNK(found.st_mode):
                number, found = self._follow(number, name)
        except FileNotFoundError:
            raise PathError("the input is no longer there", errno.ENOENT) from None
        except OSError as error:
            why = f"the input cannot be looked at: {error.strerror}"
            raise PathError(why, error.errno) from None
        if not stat.S_ISREG(found.st_mode):
            os.close(number)
            raise PathError("the input is not a regular file")
        if self._links != -1 or self._make_links():
            self.path = self._link_to(number, last)
        else:
            os.close(number)
            self.path = os.path.join(self.tree.path, self._directory, self._last)
        self._found = found
        return found

    def _follow(self, number: int, name: bytes) -> tuple[int, os.stat_result]:
        os.close(number)
        self._directory, _, self._last = self.tree.resolve(name).rpartition(b"/")
        number = os.open(self._last, FILE, dir_fd=self.tree.directory(self._directory))
        return number, os.fstat(number)

    def _make_links(self) -> bool:
        """False where descriptors have no paths."""
        if (base := private_directory.directory()) is None:
            return False
        path = private_directory.path_of(base, self._execution, self._slot)
        shutil.rmtree(path, ignore_errors=True)  # of a runner that died
        os.mkdir(path, 0o700)
        self._prefix = path + b"/"
        self._links = move_up(os.open(path, beneath.LISTED))
        return True

    def _link_to(self, number: int, name: bytes) -> bytes:
        """Makes the link lead to an open file, which stays open until the next one; its path.

        The one link there is gets another name: to make one for each file takes four times as long.
        """
        here = self._links
        if self._number == -1:
            self._number = move_up(number)
            self._leads_to = private_directory.path_by(self._number)
        else:
            os.dup2(number, self._number, inheritable=False)
            os.close(number)
        try:
            os.rename(self._link, name, src_dir_fd=here, dst_dir_fd=here)
            sound = os.readlink(name, dir_fd=here) == self._leads_to
        except OSError:  # the processor has moved it away, or put something in its place
            sound = False
        if not sound:
            beneath.remove(name, here)
            os.symlink(self._leads_to, name, dir_fd=here)
        self._link = name
        return self._prefix + name

    def changed(self) -> bool:
        """Whether the input was written to or replaced since `look`. One that is gone counts as
        consumed."""
        try:
            now = os.stat(self._last, dir_fd=self.tree.directory(self._directory))
        except (OSError, PathError):
            return False
        found = self._found
        return (
            now.st_mtime_ns != found.st_mtime_ns
            or now.st_size != found.st_size
            or now.st_ino != found.st_ino
            or now.st_dev != found.st_dev
        )

    def found(self, name: bytes) -> os.stat_result | None:
        """What an input is now; None if it is not there: the processor may have consumed it."""
        directory, _, last = name.rpartition(b"/")
        try:
            return os.stat(last, dir_fd=self.tree.directory(directory))
        except (OSError, PathError):
            return None

    def close(self) -> None:
        """Closes what is open; the parent removes the link."""
        for number in (self._links, self._number):
            if number != -1:
                try:
                    os.close(number)
                except OSError:
                    pass  # the processor has closed it
        self._links = self._number = -1
        self.tree.forget()
