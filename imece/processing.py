"""What the settings may say of the code that processes a file: a function or class, a command, or a
text for a shell. Each function here says what is wrong with one, or None."""

import os
import re
import shlex

_FOR_A_SHELL = re.compile(r"[|<>]|^&+$|;$")
_QUOTED = re.compile(r"\\.|'[^']*'|\"(\\.|[^\"\\])*\"", re.DOTALL)


def processor_flaw(given: str) -> str | None:
    if re.fullmatch(r"[\w.]+:[\w.]+", given):
        return None
    file, _, function = given.partition(":")
    if not file.endswith(".py"):
        return f"'{given}': takes package.module:function"
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


FLAWS = {"processor": processor_flaw, "command": command_flaw, "shell": shell_flaw}
