"""Failures of a training run that are no user's mistake: during a search only that candidate fails."""

__all__ = ["DivergedError", "TrainingFailedError"]


class TrainingFailedError(RuntimeError):
    """The run cannot continue, for example because it is out of memory.

    Attributes:
        reason: One line.
        step: Steps of the whole run taken before the failure.
    """

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.step = step


class DivergedError(TrainingFailedError):
    """The loss or the gradients are no longer finite."""
