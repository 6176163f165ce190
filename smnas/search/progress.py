"""Events of a running search; the command line renders them."""

from collections.abc import Iterable
from dataclasses import dataclass

from smnas.search.pareto import joined
from smnas.search.study.candidate import Candidate, StageName, State, in_search
from smnas.search.study.settings import SearchSettings

__all__ = ["SearchEvent", "SearchProgress", "is_timed", "planned_runs"]


@dataclass(frozen=True)
class SearchEvent:
    """State of the search after a trial, or at the start of a training run (``state`` is ``running``).

    Attributes:
        trained: Training runs finished so far in all stages; partial runs count by their epochs.
        total: Training runs planned in all stages.
        metric: Metric of ``score`` and ``best_score``, such as ``AP``.
        best_score: Best so far among runs of the same number of epochs, within the latency limit if there is one.
        front: (score, latency in ms) of the Pareto front of the search, fastest first.
        seconds_left: Estimate from the mean epoch time and the number of parallel runs; None before the first run
            ended.
        reason: Why the trial failed or was pruned.
    """

    number: int
    stage: StageName
    state: State
    architecture: str
    trained: int
    total: int
    metric: str
    score: float | None
    latency_ms: float | None
    best_score: float | None
    best_architecture: str | None
    front: tuple[tuple[float, float], ...]
    seconds_left: float | None
    reason: str | None


def planned_runs(settings: SearchSettings) -> tuple[int, int]:
    """Training runs of the search, baseline included, and of the final phase."""
    search = 1 + settings.trials.structural + settings.trials.modular
    final = (1 + settings.top) * settings.final_seeds if settings.final_epochs else 0
    return search, final


def is_timed(candidate: Candidate) -> bool:
    """Whether the trial gives an epoch time: trained here, not in another search or by a training-free score."""
    return candidate.state == "complete" and bool(candidate.seconds) and candidate.own_epochs > 0


class SearchProgress:
    """Progress of a search, updated trial by trial: an event costs the same after thousands of trials as at first.

    Args:
        settings: The search's.
        at_once: Number of parallel training runs.
        candidates: Trials of earlier runs of the search.
    """

    def __init__(self, settings: SearchSettings, at_once: int, candidates: Iterable[Candidate] = ()) -> None:
        self._settings = settings
        self._at_once = at_once
        self._spent = 0  # epochs of the search
        self._finals = 0
        self._timed_epochs = 0
        self._timed_s = 0.0
        self._front: list[tuple[float, float]] = []
        self._best: dict[bool, Candidate] = {}  # by whether of the final phase
        for candidate in candidates:
            self._add(candidate)

    def event(self, candidate: Candidate) -> SearchEvent:
        """The event of a trial that begins or has ended; to be called once for an ended one."""
        self._add(candidate)
        best = self._best.get(candidate.stage == "final")
        search, final = planned_runs(self._settings)
        return SearchEvent(
            number=candidate.number,
            stage=candidate.stage,
            state=candidate.state,
            architecture=str(candidate.architecture),
            trained=self._spent // self._settings.epochs + self._finals,
            total=search + final,
            metric=candidate.metric,
            score=candidate.score,
            latency_ms=candidate.latency_ms,
            best_score=None if best is None else best.score,
            best_architecture=None if best is None else str(best.architecture),
            front=tuple(sorted(self._front, key=lambda point: point[1])),
            seconds_left=self._seconds_left(),
            reason=candidate.reason,
        )

    def _add(self, candidate: Candidate) -> None:
        if candidate.state != "complete":
            return
        if is_timed(candidate):
            self._timed_epochs += candidate.reached_epoch
            self._timed_s += candidate.seconds or 0.0
        final = candidate.stage == "final"
        if final:
            self._finals += 1
        else:
            self._spent += candidate.own_epochs
        if in_search(candidate):
            self._front = joined(self._front, candidate.point)
        limit = self._settings.latency_ms
        if (final or in_search(candidate)) and (limit is None or candidate.limited_ms <= limit):
            best = self._best.get(final, candidate)
            self._best[final] = max(best, candidate, key=lambda c: (c.point[0], -c.number))

    def _seconds_left(self) -> float | None:
        if not self._timed_epochs:
            return None
        settings = self._settings
        search, final = planned_runs(settings)
        searched = self._spent / settings.epochs
        # In the final phase nothing of the search is left, even if a stage ended early.
        left = max(search - searched, 0) * settings.epochs / min(self._at_once, settings.generation)
        left = 0.0 if self._finals else left
        left += max(final - self._finals, 0) * settings.expected_final_epochs / min(self._at_once, final or 1)
        return left * self._timed_s / self._timed_epochs
