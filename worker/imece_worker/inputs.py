"""The inputs of a job, one in hand at a time and held open: what the processor reads is what was
looked at, whatever is put in its place. That nobody writes to it meanwhile cannot be ensured, only
seen (`changed`).
"""

import errno
import os
import stat

from imece_worker.directories import PathError, Tree
from imece_worker.private import InputLink

FILE = os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK)
NOTHING = os.stat_result([0] * 10)


class Inputs:
    """The input directory's.

    Attributes:
        path: that of the file in hand, for the processor.
    """

    def __init__(self, root: bytes, link: InputLink) -> None:
        self.tree = Tree(root)
        self.path = b""
        self._link = link
        self._number: int | None = None  # of the file in hand, where no link leads to it
        # Where it really lies, and what it was then.
        self._directory = self._last = b""
        self._found = NOTHING

    def look(self, name: bytes) -> os.stat_result:
        """Takes a file in hand, as it is now.

        Raises:
            PathError: it is not there, not a file, or a link that leaves the input directory.
        """
        if self._number is not None:
            self.put_down()
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
        if self._link.is_there:
            self.path = self._link.input(number, last)
        else:
            self._number = number
            self.path = os.path.join(self.tree.path, self._directory, self._last)
        self._found = found
        return found

    def _follow(self, number: int, name: bytes) -> tuple[int, os.stat_result]:
        os.close(number)
        self._directory, _, self._last = self.tree.resolve(name).rpartition(b"/")
        number = os.open(self._last, FILE, dir_fd=self.tree.directory(self._directory))
        return number, os.fstat(number)

    def put_down(self) -> None:
        """Closes the file in hand. One that a link leads to is the link's, until the next one."""
        if self._number is not None:
            try:
                os.close(self._number)
            except OSError:
                pass  # the processor has closed it
        self._number = None

    def changed(self) -> bool:
        """Whether the input was written to or replaced since `look`. One that is gone counts as
        consumed."""
        try:
            now = self._stat()
        except (OSError, PathError):
            return False
        found = self._found
        return (
            now.st_mtime_ns != found.st_mtime_ns
            or now.st_size != found.st_size
            or now.st_ino != found.st_ino
            or now.st_dev != found.st_dev
        )

    def _stat(self) -> os.stat_result:
        try:
            return os.stat(self._last, dir_fd=self.tree.directory(self._directory))
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
        self.tree.forget()  # the processor has closed what it has not opened
        return os.stat(self._last, dir_fd=self.tree.directory(self._directory))

    def size(self, name: bytes) -> int:
        """0 if it is not there: the processor may have consumed it."""
        directory, _, last = name.rpartition(b"/")
        try:
            return os.stat(last, dir_fd=self.tree.directory(directory)).st_size
        except (OSError, PathError):
            return 0

    def close(self) -> None:
        self.put_down()
        self.tree.forget()
