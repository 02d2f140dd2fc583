"""A run's directory and those beneath it, held open by their descriptors (imece/files/beneath.py).

Nobody who may write to them can lead a worker out of them. Only `leads_to_held` sees that a
directory was moved away.
"""

import errno
import os

from imece import names
from imece.files import beneath
from imece.process import Identity, move_up

HELD = 16
"""How many directories below each root are held open. Files come sorted, so few are enough."""


class PathError(Exception):
    """A file cannot be read or written where it should be. The text is the reason that is kept.

    Attributes:
        cause: the text, without what differs from file to file.
    """

    def __init__(self, text: str, number: int | None = None, cause: str = "") -> None:
        super().__init__(text)
        self.errno = number
        self.cause = cause or text


class Tree:
    """A directory, and those beneath it that were used last."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._within = path.rstrip(b"/") + b"/"
        self._root: int | None = None
        self._identity: Identity = (0, 0)
        self._held: dict[bytes, int] = {}
        self._identities: dict[bytes, Identity] = {}

    @property
    def root(self) -> int:
        """Raises OSError if it is not there."""
        if self._root is None:
            self._root = move_up(os.open(self.path, beneath.PINNED | os.O_NOFOLLOW))
            self._identity = identity(os.fstat(self._root))
        return self._root

    @property
    def device(self) -> int:
        if self._root is None:
            self.root  # noqa: B018 - opens it
        return self._identity[0]

    def directory(self, path: bytes, make: bool = False) -> int:
        """The descriptor of a directory beneath.

        Raises:
            PathError: a link leads it out.
            OSError: it is not there, or cannot be made.
        """
        held = self._held.get(path)
        if held is not None:
            return held
        if not path:
            return self._root if self._root is not None else self.root
        try:
            number = self._open(path, make)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            number = self._open(self.resolve(path), make)
        if len(self._held) == HELD:
            oldest = next(iter(self._held))
            del self._identities[oldest]
            os.close(self._held.pop(oldest))
        self._held[path] = number = move_up(number)
        self._identities[path] = identity(os.fstat(number))
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
            PathError: it leads out.
        """
        resolved = os.path.realpath(self._within + path)
        if resolved == self.path:
            return b""
        if not resolved.startswith(self._within):
            raise PathError(
                f"a link leads it out of {names.shown(self.path)}, to {names.shown(resolved)}",
                cause=f"a link leads it out of {names.shown(self.path)}",
            )
        return resolved[len(self._within) :]

    def leads_to_held(self, path: bytes) -> bool:
        """Whether a directory's path still leads to what is held open."""
        try:
            now = os.stat(self._within + path)
        except OSError:
            return False
        return identity(now) == (self._identities[path] if path else self._identity)

    def is_in_place(self) -> bool:
        """Whether the root still is what it was. Raises OSError if it cannot be looked at."""
        self.root  # noqa: B018 - opens it
        return identity(os.stat(self.path)) == self._identity

    def is_held(self) -> bool:
        """Whether the root's descriptor still leads to the root. A processor may have closed it
        with all others of ours, and may have opened a file of its own that got the same number."""
        try:
            return self._root is None or identity(os.fstat(self._root)) == self._identity
        except OSError:
            return False

    def forget(self) -> None:
        """Closes everything; it is opened again when it is needed."""
        for number in [*self._held.values(), self._root]:
            if number is not None:
                try:
                    os.close(number)
                except OSError:
                    pass  # a processor has closed it
        self._held.clear()
        self._identities.clear()
        self._root = None


def identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino
