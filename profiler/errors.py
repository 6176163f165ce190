"""Errors that a caller can act on.

Everything derived from :class:`UserError` is the user's mistake: the command line prints its message as one line and
exits with code 2. Any other exception is ours and exits with code 1.
"""

__all__ = ["BackendUnavailableError", "PrecisionNotMetError", "UserError"]


class UserError(Exception):
    """The user's mistake. The message is one line: the rule first, then what was got."""


class BackendUnavailableError(UserError):
    """A known backend that this machine can not run; the message names what is missing and the command that adds it."""


class PrecisionNotMetError(RuntimeError):
    """A backend took a graph and computes less of it in the asked precision than the graph says."""
