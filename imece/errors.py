"""The errors that a person can fix, each with its exit code.

A message says what happened, to which file or setting, and what to do. Only the command lines
catch these; everybody else lets them pass.
"""

BY_SIGNAL = 128
"""Plus the number of a signal: the exit code of a command that the signal has ended."""


class ImeceError(Exception):
    """Base of all errors that are meant to be read by the person at the terminal.

    Args:
        what: what happened, to which file or setting.
        hint: what to do, if that is said apart from it.
    """

    exit_code = 2
    may_pass = False
    """Whether waiting may fix it."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what}: {hint}" if hint else what)
        self.what = what
        self.hint = hint


class UsageError(ImeceError):
    """The call asks for something that cannot be done."""


class SettingsError(ImeceError):
    """A setting is missing or has a value it does not take."""


class ListingError(ImeceError):
    """The input cannot be turned into a list of files."""


class RunError(ImeceError):
    """The run is not there, or not in a state that allows what was asked."""


class ServiceError(ImeceError):
    """A service imece needs is out of reach, or refuses us."""

    exit_code = 3
    may_pass = True


class TrustError(ServiceError):
    """A service does not accept who we are, or forbids what we need; or we do not accept its
    certificate. Waiting does not fix it."""

    may_pass = False
