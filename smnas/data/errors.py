"""The error that every mistake in a data set is reported with."""

from profiler.errors import UserError

__all__ = ["DataError"]


class DataError(UserError):
    """A data set breaks a rule. One line: the rule, then the file and the entry that breaks it."""
