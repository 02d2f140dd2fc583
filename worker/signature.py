"""How a directory is known as an output of ours: an extended attribute, or a file in it where the
file system has none. It names the output, so that no other is taken for it. No proof against
somebody who writes such a mark: it keeps people's own directories from being replaced.
"""

import hashlib
import os

from imece import beneath, names

ATTRIBUTE = "user.imece.output"
FILE = names.TEMPORARY_PREFIX + b"output"


def sign(directory: int, name: bytes, output: bytes) -> None:
    """Marks a directory as ours, made as this output. One that cannot be marked is not."""
    try:
        number = os.open(name, beneath.LISTED, dir_fd=directory)
    except OSError:
        return
    try:
        try:
            os.setxattr(number, ATTRIBUTE, _mark(output))
        except (OSError, AttributeError):
            flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(FILE, flags, 0o644, dir_fd=number), "wb") as stream:
                stream.write(_mark(output))
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
            return os.getxattr(number, ATTRIBUTE) == _mark(output)
        except (OSError, AttributeError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            with open(os.open(FILE, flags, dir_fd=number), "rb") as stream:
                return stream.read(100) == _mark(output)
    except OSError:
        return False
    finally:
        os.close(number)


def _mark(output: bytes) -> bytes:
    return hashlib.sha256(output).hexdigest().encode()
