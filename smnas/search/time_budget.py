"""A search's time limit: when to stop proposing so that running training and the final phase end in time."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from smnas.search.progress import is_timed, planned_runs
from smnas.search.study.candidate import Candidate
from smnas.search.study.settings import SearchSettings

__all__ = ["Clock"]


@dataclass
class Clock:
    """A clock that starts when it is made.

    Args:
        limit_s: Time limit of this run of the search; infinite without one.
        settings: The search's.
        at_once: Number of parallel training runs.
        now: Monotonic seconds.
    """

    limit_s: float
    settings: SearchSettings
    at_once: int
    now: Callable[[], float] = time.monotonic
    _was_up: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._began = self.now()

    def is_up(self, share: float, candidates: Sequence[Candidate]) -> bool:
        """Whether a training run proposed now would end after ``share`` of the limit less the final phase.

        Both times are estimated from the mean epoch time so far, a proposal as a full-length run; they are 0 until one
        is known.
        """
        if math.isinf(self.limit_s):
            return False
        generation_s, final_s = self._expected(candidates)
        up = self.now() - self._began + generation_s >= share * (self.limit_s - final_s)
        self._was_up = self._was_up or up
        return up

    def each_s(self, runs: int) -> float | None:
        """Time that each of the last training runs may take; None without a limit."""
        if math.isinf(self.limit_s):
            return None
        left_s = max(self.limit_s - (self.now() - self._began), 0.0)
        return left_s / math.ceil(runs / self.at_once) if runs else left_s

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the reader of the ranking."""
        return ("Proposing stopped at the time limit; run again, the search resumes.",) if self._was_up else ()

    def _expected(self, candidates: Sequence[Candidate]) -> tuple[float, float]:
        """Expected seconds of a generation, and of the final phase."""
        timed = [c for c in candidates if is_timed(c)]
        epochs = sum(c.reached_epoch for c in timed)
        if not epochs:
            return 0.0, 0.0
        an_epoch_s = sum(c.seconds or 0.0 for c in timed) / epochs
        settings = self.settings
        _, final = planned_runs(settings)
        rounds = math.ceil(settings.generation / self.at_once)
        return (
            rounds * settings.epochs * an_epoch_s,
            final * settings.expected_final_epochs * an_epoch_s / min(self.at_once, final or 1),
        )
