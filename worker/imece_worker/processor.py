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
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

from imece.errors import SettingsError
from imece.process import follow_parent
from imece.run import records
from imece.run.failure import LONGEST_REASON
from imece.run.parameters import SET_PREFIX
from imece_worker import stops
from imece_worker.capture import Capture


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


class Function:
    """`package.module:function`, imported once.

    Attributes:
        package: the name of the function's package.
    """

    def __init__(self, spec: str) -> None:
        module, _, attributes = spec.partition(":")
        self.package = module.partition(".")[0]
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
        self._spec = spec
        self._function: Callable[..., object] = found
        self._given: Mapping[str, Any] = {}

    def take(self, given: Mapping[str, Any]) -> None:
        """The parameters that the next files get; see `Parameters.set`.

        Raises:
            ParameterError: it does not take them.
        """
        if flaw := misfit(self._function, 2, given):
            raise ParameterError(f"{self._spec} {flaw}")
        self._given = given

    def __call__(self, source: bytes, target: bytes | None) -> None:
        """Processes one file, or raises.

        Args:
            source: path of the input.
            target: path to write the output to; None if the run wants no output.
        """
        given = deepcopy(self._given) if self._given else {}  # what it changes is not the next's
        target_path = os.fsdecode(target) if target is not None else None
        self._function(os.fsdecode(source), target_path, **given)


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


class Command:
    """A program, started once a file, without a shell.

    Attributes:
        errors: where its standard error goes; set before the first file.
        environment: what it gets, if not ours.
    """

    errors: Capture
    package = ""
    _PLACES = re.compile(rb"\{(input|output)\}")

    def __init__(self, template: str) -> None:
        words = shlex.split(template)
        if not words or "{input}" not in template:
            raise SettingsError(
                "IMECE_COMMAND: takes a program and its arguments with {input} in them"
            )
        program = shutil.which(words[0])
        if program is None:
            raise SettingsError(f"IMECE_COMMAND: there is no program {words[0]} here")
        self._words = [os.fsencode(word) for word in (program, *words[1:])]
        self.environment: dict[str, str] | None = None

    def take(self, given: Mapping[str, Any]) -> None:
        """As that of `Function`. Programs get them in their environment, and take any."""
        values = {
            f"{SET_PREFIX}{name}": value if isinstance(value, str) else json.dumps(value)
            for name, value in given.items()
        }
        for name, value in values.items():
            if flaw := records.text_flaw(value):
                raise ParameterError(f"a program cannot have the parameter {name}: it {flaw}")
        self.environment = {**os.environ, **values} if values else None

    def words(self, source: bytes, target: bytes | None) -> list[bytes]:
        """The program and its arguments, for one file."""
        values = {b"input": source, b"output": target or b""}
        return [self._PLACES.sub(lambda place: values[place[1]], word) for word in self._words]

    def __call__(self, source: bytes, target: bytes | None) -> None:
        """As that of `Function`."""
        signals = stops.heard()
        words = self.words(source, target)
        self.errors.clear()
        # Standard output goes where the runner's own goes: into its capture.
        ended = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
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


Processor = Function | Command


def load(function: str | None, command: str | None) -> Processor:
    """The processor that the settings name: one of the two.

    Raises:
        SettingsError: it cannot be loaded.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # so that a script beside the user is found, as with python -m
    return Function(function) if function else Command(command or "")
