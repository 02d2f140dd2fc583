"""The user's code: one input path in, one output path out.

Named by the worker's settings, never by what is in the queue. Loaded in the interpreter that
imece_worker/loader.py is, never in the worker itself.
"""

import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any, BinaryIO

from imece.errors import SettingsError
from imece.process import follow_parent
from imece.run import records
from imece.run.failure import LONGEST_REASON
from imece.run.parameters import SET_PREFIX
from imece_worker import stops
from imece_worker.capture import Capture

LONGEST_LINE = 500


class CommandError(Exception):
    """The program failed. The text is the reason that is kept.

    Attributes:
        code: its exit code, negative for a signal.
    """

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


class ParameterError(Exception):
    """The processor does not take what a run sets for it."""


class CloseError(Exception):
    """The processor has raised an error when it was closed."""


class Processor:
    """What the settings name.

    Attributes:
        package: the name of its package; "" for a program.
        batch: how many files it gets at a time.
    """

    package = ""
    batch = 1

    def check(self, given: Mapping[str, Any]) -> None:
        """Raises ParameterError if it does not take these parameters; see `Parameters.set`."""
        raise NotImplementedError

    def take(self, given: Mapping[str, Any]) -> None:
        """Makes it ready for files with these parameters; raises as `check`."""
        raise NotImplementedError

    def close_others(self, given: Mapping[str, Any]) -> None:
        """Closes what it has for other parameters than these; raises as `close`."""

    def close(self) -> None:
        """There will be no further file. Raises CloseError."""

    def process_batch(self, pairs: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Processes several files, or raises; each is a pair of source and target."""
        raise NotImplementedError

    def __call__(self, source: bytes, target: bytes | None, name: bytes) -> None:
        """Processes one file, or raises.

        Args:
            source: path of the input.
            target: path to write the output to; None if the run wants no output.
            name: of the input, relative to the input directory.
        """
        raise NotImplementedError


class Function(Processor):
    """`package.module:function`."""

    def __init__(self, spec: str, found: Callable[..., object]) -> None:
        self.package = spec.partition(":")[0].partition(".")[0]
        self._spec, self._function = spec, found
        self._given: Mapping[str, Any] = {}

    def check(self, given: Mapping[str, Any]) -> None:
        if flaw := misfit(self._function, 2, given):
            raise ParameterError(f"{self._spec} {flaw}")

    def take(self, given: Mapping[str, Any]) -> None:
        self.check(given)
        self._given = given

    def __call__(self, source: bytes, target: bytes | None, name: bytes) -> None:
        given = deepcopy(self._given) if self._given else {}  # what it changes is not the next's
        self._function(os.fsdecode(source), _text(target), **given)


class Class(Processor):
    """`package.module:Class`: made once for each set of parameters, then called for each file."""

    def __init__(self, spec: str, found: type, batch: int) -> None:
        self.package = spec.partition(":")[0].partition(".")[0]
        self._spec, self._class = spec, found
        self._made: Any = None
        self._known = ""
        self._is_callable = any("__call__" in vars(one) for one in found.__mro__)
        takes_batches = hasattr(found, "process_batch")
        if not self._is_callable and not takes_batches:
            raise SettingsError(
                f"IMECE_PROCESSOR={spec}: the class needs a method __call__(self, source, target)"
            )
        if batch > 1 and not takes_batches:
            raise SettingsError(f"IMECE_BATCH: {spec} has no method process_batch(self, pairs)")
        self.batch = batch

    def check(self, given: Mapping[str, Any]) -> None:
        if flaw := misfit(self._class, 0, given):
            raise ParameterError(f"{self._spec} {flaw}")

    def take(self, given: Mapping[str, Any]) -> None:
        """Raises, too, what the class raises when it is made."""
        if self._made is not None:
            return
        self.check(given)
        self._known = json.dumps(given, sort_keys=True)
        self._made = self._class(**deepcopy(given))
        if self._is_callable and (flaw := misfit(self._made, 2, {})):
            raise ParameterError(f"{self._spec}: its __call__ {flaw}")

    def close_others(self, given: Mapping[str, Any]) -> None:
        if json.dumps(given, sort_keys=True) != self._known:
            self.close()

    def close(self) -> None:
        made, self._made = self._made, None
        if (close := getattr(made, "close", None)) is None:
            return
        try:
            close()
        except BaseException as error:
            raise CloseError(f"{self._spec}: close() failed: {said(error)}") from None

    def __call__(self, source: bytes, target: bytes | None, name: bytes) -> None:
        if self.batch > 1 or not self._is_callable:
            self.process_batch([(source, target)])
        else:
            self._made(os.fsdecode(source), _text(target))

    def process_batch(self, pairs: Sequence[tuple[bytes, bytes | None]]) -> None:
        self._made.process_batch([(os.fsdecode(one), _text(other)) for one, other in pairs])


def said(error: BaseException) -> str:
    """An error in a line."""
    try:
        return traceback.format_exception_only(error)[-1].strip()[:LONGEST_LINE]
    except Exception:  # a processor's own class
        return type(error).__name__


def _text(path: bytes | None) -> str | None:
    return os.fsdecode(path) if path is not None else None


def misfit(called: Callable[..., object], paths: int, given: Mapping[str, Any]) -> str | None:
    """Why a function cannot be called with so many paths and these parameters; None if it can.

    A decorator may give its function more than it gets: so what it wraps is not looked at.
    """
    try:
        signature = inspect.signature(called, follow_wrapped=False)
    except (TypeError, ValueError):
        return None  # some that are written in C have none
    try:
        signature.bind(*[""] * paths, **given)
        return None
    except TypeError as error:
        why = str(error)
    kinds = inspect.Parameter
    takes = {
        name: parameter.default is kinds.empty
        for place, (name, parameter) in enumerate(signature.parameters.items())
        if parameter.kind == kinds.KEYWORD_ONLY
        or (parameter.kind == kinds.POSITIONAL_OR_KEYWORD and place >= paths)
    }
    takes_any = any(one.kind == kinds.VAR_KEYWORD for one in signature.parameters.values())
    for name in given:
        if name not in takes and (name in signature.parameters or not takes_any):
            known = f"it has {', '.join(takes)}" if takes else "it has none that a run may set"
            return f"has no parameter {name}: {known}"
    for name, is_needed in takes.items():
        if is_needed and name not in given:
            return f"needs the parameter {name}: --set {name}=VALUE"
    return f"cannot be called with {paths} paths: {why}"


class Command(Processor):
    """A program, started once a file.

    Attributes:
        errors: where its standard error goes; set before the first file.
        environment: what it gets, if not ours.
    """

    errors: Capture
    _PLACE = re.compile(rb"\{(\{(input|output|name|stem|dir)\})\}|\{(input|output|name|stem|dir)\}")

    def __init__(self, program: Sequence[str], arguments: Sequence[str], has_stdout: bool) -> None:
        self._program = [os.fsencode(word) for word in program]
        self._arguments = [os.fsencode(word) for word in arguments]
        self._has_stdout = has_stdout
        self.environment: dict[str, str] | None = None

    @classmethod
    def of(cls, template: str, has_stdout: bool) -> "Command":
        """Of words, as a shell splits them, with places for what differs from file to file."""
        words = shlex.split(template)
        if not words or "{input}" not in template:
            raise SettingsError(
                "IMECE_COMMAND: takes a program and its arguments with {input} in them"
            )
        program = shutil.which(words[0])
        if program is None:
            raise SettingsError(f"IMECE_COMMAND: there is no program {words[0]} here")
        return cls([program], words[1:], has_stdout)

    @classmethod
    def of_shell(cls, text: str, has_stdout: bool) -> "Command":
        """Of a text for `sh`, which gets the paths as arguments: no name is ever read as a part of
        the text. A pipe fails if any program in it does, where the shell can do that."""
        if (shell := shutil.which("sh")) is None:
            raise SettingsError("IMECE_SHELL: there is no program sh here")
        options = ["-o", "pipefail"]
        trial = subprocess.run(
            [shell, *options, "-c", ":"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if trial.returncode != 0:
            options = []
        return cls([shell, *options, "-c", text, "sh"], ["{input}", "{output}"], has_stdout)

    def check(self, given: Mapping[str, Any]) -> None:
        self._variables(given)

    def take(self, given: Mapping[str, Any]) -> None:
        values = self._variables(given)
        self.environment = {**os.environ, **values} if values else None

    def _variables(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Programs get them in their environment, and take any."""
        values = {
            f"{SET_PREFIX}{name}": value if isinstance(value, str) else json.dumps(value)
            for name, value in given.items()
        }
        for name, value in values.items():
            if flaw := records.text_flaw(value):
                raise ParameterError(f"a program cannot have the parameter {name}: it {flaw}")
        return values

    def words(self, source: bytes, target: bytes | None, name: bytes) -> list[bytes]:
        """The program and its arguments, for one file."""
        directory, _, last = name.rpartition(b"/")
        values = {
            b"input": source,
            b"output": target or b"",
            b"name": last,
            b"stem": os.path.splitext(last)[0],
            b"dir": directory or b".",
        }

        def value(place: re.Match[bytes]) -> bytes:
            return place[1] or values[place[3]]  # {{name}} is the word {name}

        return [*self._program, *(self._PLACE.sub(value, word) for word in self._arguments)]

    def stdout(self, target: bytes | None) -> BinaryIO | None:
        """Where its standard output goes, if not where ours goes."""
        return open(target, "wb") if self._has_stdout and target is not None else None

    def __call__(self, source: bytes, target: bytes | None, name: bytes) -> None:
        signals = stops.heard()
        words = self.words(source, target, name)
        self.errors.clear()
        with self.stdout(target) or nullcontext() as stdout:
            # If it goes nowhere else, it goes where the runner's own goes: into its capture.
            ended = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=self.errors.number,
                env=self.environment,
                preexec_fn=partial(follow_parent, os.getpid(), signal.SIGKILL),
                check=False,
            )
        if ended.returncode == 0 and stops.heard() == signals:
            return
        said = self.errors.end(LONGEST_REASON)
        if ended.returncode < 0:
            how = f"was killed by signal {-ended.returncode}"
        elif ended.returncode == 0:
            how = "was told by a signal to stop, and may not have finished"
        else:
            how = f"ended with exit code {ended.returncode}"
        program = os.fsdecode(os.path.basename(words[0]))
        lines = said.splitlines()
        end = f"{program} {how}: {lines[-1]}" if lines else f"{program} {how}"
        reason = "\n".join([*lines, end]) if len(lines) > 1 else end
        raise CommandError(reason, ended.returncode)


def load(processing: Mapping[str, str]) -> Processor:
    """The processor that the settings name; see `Settings.processing`.

    Raises:
        SettingsError: it cannot be loaded.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # so that a script beside the user is found, as with python -m
    if not processing:  # the worker knows processors by name only
        return Processor()
    has_stdout = "command_stdout" in processing
    if (command := processing.get("command")) is not None:
        return Command.of(command, has_stdout)
    if (text := processing.get("shell")) is not None:
        return Command.of_shell(text, has_stdout)
    spec = processing["processor"]
    found, batch = _imported(spec), int(processing.get("batch", 1))
    if inspect.isclass(found):
        return Class(spec, found, batch)
    if batch > 1:
        raise SettingsError(f"IMECE_BATCH: {spec} is no class with a method process_batch")
    return Function(spec, found)


def _imported(spec: str) -> Callable[..., object]:
    module, _, attributes = spec.partition(":")
    try:
        found: object = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except AttributeError as error:
        raise SettingsError(f"IMECE_PROCESSOR={spec}: {error}") from None
    except BaseException as error:
        what = "".join(traceback.format_exception_only(error)).strip()
        raise SettingsError(
            f"IMECE_PROCESSOR={spec}: importing {module} failed with {what}. It must be "
            "installed, or lie in the directory the worker starts in"
        ) from None
    if not callable(found):
        raise SettingsError(f"IMECE_PROCESSOR={spec}: that is not a function")
    return found
