"""Errors that a caller can act on.

:class:`UserError` and its subclasses are the user's mistake: the command line prints the message as one line and exits
with code 2. Any other exception is ours and exits with code 1.
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
    """A user's mistake. The message is one line: the rule, then the value that broke it."""


class BackendUnavailableError(UserError):
    """A known backend that can not run on this machine; the message names the missing part and how to install it."""


class PrecisionNotMetError(RuntimeError):
    """A backend accepted a graph but computes fewer layers in the requested precision than the graph specifies."""


def one_line(error: BaseException) -> str:
    """Return an error's message in one line; its class if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line, up to 300 characters, of an error's message; its class if the message is empty."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def named_line(error: BaseException) -> str:
    """Return :func:`first_line` after the error's class, as a stored reason."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name
