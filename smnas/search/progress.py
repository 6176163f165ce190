"""What a search tells about itself while it runs. Rendering is the command line's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smnas.scoring.entropy import ENTROPY_FORMS
from smnas.search.candidate import Candidate, StageName, State, in_search
from smnas.search.pareto import as_points, non_dominated
from smnas.search.settings import SearchSettings

__all__ = ["SearchEvent", "event_after", "planned_trainings"]


@dataclass(frozen=True)
class SearchEvent:
    """The state of the search after a trial, or at the start of a training (``state`` is ``running``).

    Attributes:
        trained: Trainings finished so far, of all stages; short ones count together, by their epochs.
        total: Trainings planned, of all stages.
        ap: The trial's own result, where it has one.
        best_ap: Best AP so far among the trainings with the trial's budget, within the latency limit if there is one.
        front_size: Architectures on the front of the search's trainings.
        seconds_left: Estimate from the mean time of an epoch so far and the trainings that run at once; None before the
            first training ended.
        reason: Why the trial failed or was pruned.
        measure: What ``ap`` and ``best_ap`` are: ``AP``, or the name of a score without training.
    """

    number: int
    stage: StageName
    state: State
    architecture: str
    trained: int
    total: int
    ap: float | None
    latency_ms: float | None
    best_ap: float | None
    best_architecture: str | None
    front_size: int
    seconds_left: float | None
    reason: str | None
    measure: str = "AP"


def planned_trainings(settings: SearchSettings) -> tuple[int, int]:
    """Trainings of the search with the baseline's, and of the final phase."""
    search = 1 + settings.trials.structural + settings.trials.modular
    final = (1 + settings.top) * settings.final_seeds if settings.final_epochs else 0
    return search, final


def event_after(
    candidate: Candidate, candidates: Sequence[Candidate], settings: SearchSettings, at_once: int
) -> SearchEvent:
    """The event for ``candidate``, which ``candidates`` holds; ``at_once`` trainings can run at the same time."""
    complete = [c for c in candidates if c.state == "complete"]
    searched = [c for c in complete if in_search(c)]
    finals = [c for c in complete if c.stage == "final"]
    spent = sum(c.own_epochs for c in complete if c.stage != "final") / settings.epochs
    alike = finals if candidate.stage == "final" else searched
    within = [c for c in alike if settings.latency_ms is None or c.point[1] <= settings.latency_ms]
    best = max(within, key=lambda c: (c.point[0], -c.number), default=None)
    search, final = planned_trainings(settings)
    return SearchEvent(
        number=candidate.number,
        stage=candidate.stage,
        state=candidate.state,
        architecture=str(candidate.architecture),
        trained=math.floor(spent) + len(finals),
        total=search + final,
        ap=candidate.ap,
        latency_ms=candidate.latency_ms,
        best_ap=None if best is None else best.ap,
        best_architecture=None if best is None else str(best.architecture),
        front_size=int(non_dominated(as_points([c.point for c in searched])).sum()),
        seconds_left=_seconds_left(complete, spent, len(finals), settings, at_once),
        reason=candidate.reason,
        measure=settings.scorer if settings.scorer in ENTROPY_FORMS and candidate.stage != "final" else "AP",
    )


def _seconds_left(
    complete: Sequence[Candidate], searched: float, finals: int, settings: SearchSettings, at_once: int
) -> float | None:
    timed = [c for c in complete if c.seconds is not None]
    epochs = sum(c.reached_epoch for c in timed)
    if not epochs:
        return None
    search, final = planned_trainings(settings)
    # In the final phase nothing of the search is left, also where a stage ended before its planned number.
    left = 0.0 if finals else max(search - searched, 0) * settings.epochs / min(at_once, settings.generation)
    left += max(final - finals, 0) * settings.final_epochs / min(at_once, final or 1)
    return left * sum(c.seconds or 0.0 for c in timed) / epochs
