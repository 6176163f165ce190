"""Errors that a caller can act on.

Everything derived from :class:`UserError` is the user's mistake: the command line prints its message as one line and
exits with code 2. Any other exception is ours and exits with code 1.
"""

__all__ = [
    "BackendUnavailableError",
    "PrecisionNotMetError",
    "UserError",
    "first_line",
    "named_line",
    "one_line",
]

_LONGEST = 300  # characters


class UserError(Exception):
    """The user's mistake. The message is one line: the rule, then the value that broke it."""


class BackendUnavailableError(UserError):
    """A known backend that this machine can not run; the message names what is missing and the command that adds it."""


class PrecisionNotMetError(RuntimeError):
    """A backend accepted a graph but computes fewer of its layers in the requested precision than it specifies."""


def one_line(error: BaseException) -> str:
    """An error's message in one line; its class if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, 300 characters at most; its class if the message is empty.

    Messages of libraries may be pages long.
    """
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def named_line(error: BaseException) -> str:
    """:func:`first_line` after the error's class, as a stored reason."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name
