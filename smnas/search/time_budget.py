"""A search's time limit: when to stop proposing, so that the final phase ends in time as well."""

import time
from collections.abc import Callable, Sequence

from smnas.search.candidate import Candidate
from smnas.search.progress import is_timed, planned_trainings
from smnas.search.settings import SearchSettings

__all__ = ["Clock"]


class Clock:
    """Runs from when it is made.

    Args:
        budget_s: Seconds that this run of the search may take.
        settings: The search's, for the final phase that is to come.
        at_once: Trainings at the same time.
        now: Seconds that only go forward.
    """

    def __init__(
        self, budget_s: float, settings: SearchSettings, at_once: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._budget_s = budget_s
        self._settings = settings
        self._at_once = at_once
        self._now = now
        self._began = now()
        self._was_up = False

    def is_up(self, share: float, candidates: Sequence[Candidate]) -> bool:
        """Whether ``share`` of the time for proposing is over: the budget less what the final phase will take.

        The expectation is the mean time of an epoch so far; until one is known the final phase counts nothing.
        """
        for_proposing_s = self._budget_s - self._final_s(candidates)
        up = self._now() - self._began >= share * for_proposing_s
        self._was_up = self._was_up or up
        return up

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the ranking should know."""
        if not self._was_up:
            return ()
        return (f"Proposing stopped at the time budget of {self._budget_s / 3600:g} hours; run again, it goes on.",)

    def _final_s(self, candidates: Sequence[Candidate]) -> float:
        timed = [c for c in candidates if is_timed(c)]
        epochs = sum(c.reached_epoch for c in timed)
        _, final = planned_trainings(self._settings)
        if not epochs or not final:
            return 0.0
        seconds_an_epoch = sum(c.seconds or 0.0 for c in timed) / epochs
        return final * self._settings.final_epochs * seconds_an_epoch / min(self._at_once, final)
