"""What the settings may say of the code that processes a file: a function or class, a command, or a
text for a shell. And the names that functions and classes may have."""

import json
import os
import re
import shlex
from functools import cache

from imece.run.parameters import PROCESSOR_NAME

GROUP = "imece.processors"
"""The group of entry points in which installed packages give processors names."""

_PLACE = re.compile(r"[\w.]+:[\w.]+")

_FOR_A_SHELL = re.compile(r"[|<>]|^&+$|;$")
_QUOTED = re.compile(r"\\.|'[^']*'|\"(\\.|[^\"\\])*\"", re.DOTALL)


@cache
def named(given: str | None) -> dict[str, str]:
    """The processors that have names here: name -> `package.module:function`.

    Args:
        given: the setting, sound. Its names come before those of installed packages.
    """
    from importlib.metadata import entry_points

    found = {point.name: f"{point.module}:{point.attr}" for point in entry_points(group=GROUP)}
    return found | (json.loads(given) if given else {})


def processors_flaw(given: str) -> str | None:
    """What is wrong with the setting that gives names, or None."""
    takes = 'takes a JSON object: {"NAME": "package.module:function"}'
    try:
        found = json.loads(given)
    except (ValueError, RecursionError):
        return takes
    if not isinstance(found, dict):
        return takes
    for name, place in found.items():
        if not re.fullmatch(PROCESSOR_NAME, name):
            return f"{name[:70]!r}: a name has letters, digits, dashes, dots and underscores"
        if not isinstance(place, str) or not _PLACE.fullmatch(place):
            return f"{name}: takes package.module:function"
    return None


def processor_flaw(given: str) -> str | None:
    """What is wrong with the place of a function or class, or None; the others are alike."""
    if _PLACE.fullmatch(given):
        return None
    file, _, function = given.partition(":")
    if not file.endswith(".py"):
        says = f"'{given}': takes package.module:function"
        if re.fullmatch(PROCESSOR_NAME, given):
            says += f", or a name that IMECE_PROCESSORS or an entry point of {GROUP} has"
        return says
    folder, name = os.path.split(os.path.abspath(file.removesuffix(".py")))
    says = f"'{given}': takes package.module:function, not a file: {name}:"
    says += function or "FUNCTION"
    if folder != os.getcwd():
        says += f", and the directory of the file in PYTHONPATH: PYTHONPATH={folder}"
    return says


def command_flaw(given: str) -> str | None:
    """What a shell would do in quotes is an argument; outside of them it is meant for one."""
    try:
        shlex.split(given)
    except ValueError:
        return "a quotation is not closed"
    for word in _QUOTED.sub("", given).split():
        if _FOR_A_SHELL.search(word):
            return (
                f"{word} is for a shell, and imece starts the program without one. If the program "
                "writes to its standard output: --stdout (IMECE_COMMAND_STDOUT=true). For pipes "
                """and redirections: --shell 'sort "$1" | uniq > "$2"' (IMECE_SHELL). """
                "If it is an argument of the program, write it in quotes"
            )
    return None


def shell_flaw(given: str) -> str | None:
    if place := re.search(r"\{(input|output)\}", given):
        return (
            f"takes no {place[0]}: a name could be read as a command. The input is "
            '"$1", the output is "$2"'
        )
    return None


KINDS = ("processor", "command", "shell")
"""The settings of which only one may be set."""

FLAWS = {
    "processors": processors_flaw,
    "processor": processor_flaw,
    "command": command_flaw,
    "shell": shell_flaw,
}
