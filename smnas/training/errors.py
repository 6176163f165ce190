"""How a training run fails without anybody's mistake: a candidate's stored reason, never the end of a search."""

__all__ = ["DivergedError", "TrainingFailedError"]


class TrainingFailedError(RuntimeError):
    """The run can not go on, as when it does not fit in memory.

    Attributes:
        reason: One line.
        step: Steps taken over the whole run when it happened.
    """

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.step = step


class DivergedError(TrainingFailedError):
    """The loss or the gradients are no longer finite."""
