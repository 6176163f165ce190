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
    """The user's mistake. The message is one line: the rule first, then what was got."""


class BackendUnavailableError(UserError):
    """A known backend that this machine can not run; the message names what is missing and the command that adds it."""


class PrecisionNotMetError(RuntimeError):
    """A backend took a graph and computes less of it in the asked precision than the graph says."""


def one_line(error: BaseException) -> str:
    """All that an error says, in one line; its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an error says, 300 characters at most; its class where it says nothing.

    What libraries raise may go on for pages.
    """
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def named_line(error: BaseException) -> str:
    """:func:`first_line` behind the error's class, as a reason that is kept."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name
