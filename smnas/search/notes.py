"""What a reader of the ranking should know about how the search went, derived from its trials."""

from collections import Counter
from collections.abc import Sequence

from smnas.scoring.entropy import ENTROPY_FORMS
from smnas.search.candidate import Candidate, in_search
from smnas.search.pruning import broken_order
from smnas.search.settings import SearchSettings

__all__ = ["OVER_LIMIT", "PRELIMINARY", "search_notes"]

OVER_LIMIT = "over the latency limit"
"""How the reason of a trial that is pruned for its latency begins."""

PRELIMINARY = "The search has not finished: this ranking is preliminary."


def search_notes(candidates: Sequence[Candidate], settings: SearchSettings, finished: bool) -> tuple[str, ...]:
    """One sentence for each thing worth knowing.

    Args:
        candidates: All trials.
        settings: The search's.
        finished: Whether nothing is left to do; else the first note says that the ranking is preliminary.
    """
    notes = [] if finished else [PRELIMINARY]
    verb = "trained"
    if settings.scorer in ENTROPY_FORMS:
        verb = "scored"
        notes.append(
            f"Candidates were scored by the {settings.scorer} of their backbones, without training; it is close to a "
            "count of layers. Only what the final phase trained has an AP and is ranked."
        )
    notes += _baseline(candidates)
    for stage, planned in (("structural", settings.trials.structural), ("modular", settings.trials.modular)):
        trials = [c for c in candidates if c.stage == stage]
        trained = sum(c.state == "complete" for c in trials)
        if finished and trained < planned:
            notes.append(
                f"The {stage} stage {verb} {trained} of {planned} planned candidates and ended: {_looked_at(trials)}."
            )
        elif trained < len(trials):
            notes.append(f"The {stage} stage {verb} {trained} candidates: {_looked_at(trials)}.")
    if any(c.latency_calibrated is False for c in candidates):
        notes.append("Predicted latencies were not calibrated on whole detectors: their intervals are assumptions.")
    failed = [c for c in candidates if c.stage == "final" and c.state == "failed"]
    if failed:
        notes.append(f"{len(failed)} trainings of the final phase failed, the first one with: {failed[0].reason}")
    if finished and settings.partial_order:
        broken, pairs = broken_order([c for c in candidates if in_search(c)])
        if pairs:
            notes.append(
                f"Partial order pruning assumes that a smaller architecture is not better: of {pairs} trained pairs "
                f"that it compares, {broken} broke that."
            )
    return tuple(notes)


def _baseline(candidates: Sequence[Candidate]) -> list[str]:
    failed = [c for c in candidates if c.stage == "baseline" and c.state == "failed"]
    return [f"The baseline failed and is not in the ranking: {c.reason}" for c in failed]


def _looked_at(trials: Sequence[Candidate]) -> str:
    kinds = Counter(_kind(trial) for trial in trials)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{len(trials)} were proposed ({counts})" if trials else "nothing was left to propose"


def _kind(trial: Candidate) -> str:
    if trial.state == "pruned":
        reason = trial.reason or ""
        return OVER_LIMIT if reason.startswith(OVER_LIMIT) else "beaten by the partial order"
    return {"complete": "trained", "failed": "failed"}.get(trial.state, "running")
