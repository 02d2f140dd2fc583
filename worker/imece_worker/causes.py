"""The cause of a failed try, in a short text: what it has in common with other failures.

Messages are not in it: they have paths and numbers of one file in them.
"""

import os
import signal
import traceback
from collections.abc import Iterator
from opcode import opmap
from subprocess import SubprocessError
from types import CodeType, TracebackType
from typing import Any
from zlib import crc32

from imece import names
from imece.process import signal_name
from imece.run.causes import LONGEST
from imece.run.failure import LONGEST_REASON, tail
from imece_worker.directories import PathError
from imece_worker.processor import CommandError

_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
_COMPREHENSIONS = (".<listcomp>", ".<setcomp>", ".<dictcomp>")
_INSTALLED = {"site-packages", "dist-packages"}

DIED_WITH_WORKER = "its worker died while at it"
MAY_PASS = (PathError, CommandError, OSError, MemoryError, SubprocessError)
"""Errors of files, networks, memory and other processes: another try may end well."""

CLOSED_OURS = "the processor closed files that imece had opened"
CODE_OF_CLOSED_OURS = 79
"""The exit code of a runner whose processor has done so."""


def of_exception(error: BaseException, package: str, memory_limit: int | None) -> str:
    """`ValueError in convert.py:12 read_header`; of an error that was raised from another one, also
    where that came from.

    Args:
        package: the processor's, which is not taken for somebody else's, wherever it is installed.
        memory_limit: bytes, or None.
    """
    if isinstance(error, PathError):
        return _short(error.cause)
    if isinstance(error, CommandError):
        return of_exit(error.code) if error.code else "told by a signal to stop"
    if isinstance(error, MemoryError) and memory_limit is not None:
        return f"more than its memory limit of {memory_limit // 2**20} MiB"
    try:
        first = _first(error)
        text = _place(error, package)
        return _short(text if first is error else f"{text}, from {_place(first, package)}")
    except Exception:  # a processor's own class
        return _short(type(error).__name__)


def error_number(error: BaseException, cause: str) -> int:
    """A number for this cause, if the next try is likely to end alike; 0 if waiting may help."""
    if isinstance(error, Exception) and not may_pass(error):
        return crc32(cause.encode()) or 1
    return 0


def may_pass(error: BaseException) -> bool:
    return any(isinstance(one, MAY_PASS) for one in _chain(error))


def of_exit(code: int) -> str:
    """Of a process that has ended; negative for a signal."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal_name(-code)}"


def death(code: int) -> tuple[str, str]:
    """What a process has died of, by its exit code, negative for a signal: cause and reason."""
    if code == CODE_OF_CLOSED_OURS:
        return CLOSED_OURS, f"{CLOSED_OURS}, and failed"
    cause = of_exit(code)
    if code >= 0:
        return cause, f"its process ended itself with {cause}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return cause, f"its process was {cause}{hint}"


def reason(error: BaseException) -> str:
    """The end of what is known of a failed try."""
    if isinstance(error, PathError | CommandError):
        return str(error)
    try:
        frames = frames_of(error)
        text = "".join(traceback.format_exception(type(error), error, frames))
    except Exception:  # a processor's own class
        text = type(error).__name__
    return tail(text, LONGEST_REASON)


def of_timeout(seconds: float) -> str:
    return f"took longer than {seconds:g} s"


def frames_of(error: BaseException) -> TracebackType | None:
    """Its traceback from the processor's frames on: ours do not help the processor's author."""
    frames = error.__traceback__
    while frames is not None and _module(frames).startswith("imece_worker."):
        frames = frames.tb_next
    return frames


def _first(error: BaseException) -> BaseException:
    """What an error was raised from (`raise … from`), at the beginning of all."""
    for one in _chain(error):
        error = one
        if one.__cause__ is None:
            break
    return error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised from, or while one of them was handled."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _place(error: BaseException, package: str) -> str:
    """What kind of error it is, and the innermost frame of the user's code."""
    kind = type(error).__qualname__.replace(".<locals>", "")
    found = list(_outermost_first(frames_of(error)))
    if not found:
        return kind
    if isinstance(error, SyntaxError) and _imports(found[-1]):
        return f"{kind} in {os.path.basename(str(error.filename))}:{error.lineno}"
    users = [frame for frame in found if _is_users(frame, package)]
    innermost = users[-1] if users else found[-1]
    code = _code(innermost)
    function = code.co_qualname.replace(".<locals>", "")
    for comprehension in _COMPREHENSIONS:  # from Python 3.12 on they have no frames of their own
        function = function.removesuffix(comprehension)
    return f"{kind} in {os.path.basename(code.co_filename)}:{innermost.tb_lineno} {function}"


def _outermost_first(frames: TracebackType | None) -> Iterator[TracebackType]:
    while frames is not None:
        yield frames
        frames = frames.tb_next


def _is_users(frame: TracebackType, package: str) -> bool:
    if _module(frame).partition(".")[0] == package:
        return True
    file = _code(frame).co_filename
    if file.startswith("<frozen ") or _INSTALLED.intersection(file.split(os.sep)):
        return False
    return not file.startswith(_STANDARD_LIBRARY)


def _imports(frame: TracebackType) -> bool:
    """Whether the error came out of an import: Python removes its own frames from most of them."""
    code = _code(frame)
    return (
        code.co_filename.startswith("<frozen importlib")
        or code.co_code[frame.tb_lasti] == opmap["IMPORT_NAME"]
    )


def _module(frame: TracebackType) -> str:
    name: Any = frame.tb_frame.f_globals.get("__name__", "")
    return name if isinstance(name, str) else ""


def _code(frame: TracebackType) -> CodeType:
    return frame.tb_frame.f_code


def _short(text: str) -> str:
    return names.printable(" ".join(text.split()))[:LONGEST]
