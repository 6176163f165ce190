"""The error for every mistake in a data set."""

from profiler.errors import UserError

__all__ = ["DataError"]


class DataError(UserError):
    """A data set breaks a rule. One line: the rule, then the file and entry that break it."""
