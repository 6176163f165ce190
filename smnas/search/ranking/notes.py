"""Notes for the reader of a ranking on how the search went, derived from its trials."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from smnas.scoring.by_name import SCORERS
from smnas.search.pruning import broken_order
from smnas.search.study.candidate import Candidate, StageName, in_search
from smnas.search.study.settings import SearchSettings

__all__ = ["OVER_LIMIT", "PRELIMINARY", "TOO_LARGE", "search_notes"]

OVER_LIMIT = "over the latency limit"
"""Start of the reason of a trial that is pruned for its latency."""

TOO_LARGE = "over the limit of parameters"
"""Start of the reason of a trial that is pruned for its size."""

PRELIMINARY = "The search has not finished: this ranking is preliminary."


def search_notes(
    candidates: Sequence[Candidate], settings: SearchSettings, planned: Mapping[StageName, int], finished: bool
) -> tuple[str, ...]:
    """One sentence for each noteworthy fact, given the ``planned`` training runs of each stage.

    Unless ``finished``, the first note says that the ranking is preliminary.
    """
    notes = [] if finished else [PRELIMINARY]
    verb = "trained" if settings.trains else "scored"
    if not settings.trains:
        remark = getattr(
            SCORERS.get(settings.scorer), "remark", f"Candidates were scored by {settings.metric}, without training."
        )
        notes.append(f"{remark} Only what the final phase trained has an AP and is ranked.")
    if settings.final == "fine-tune":
        notes.append("The final phase fine-tuned every detector, the baseline too, from its shared weights.")
    if settings.pretrained is not None:
        what = "ImageNet weights" if settings.pretrained == "imagenet" else Path(settings.pretrained).name
        notes.append(
            f"Every detector, the baseline too, started from {what} ({settings.pretrained_digest}), remapped to its "
            "depth, width and kernels."
        )
    if settings.recipe.get("evaluate_every"):
        notes.append("A detector has the weights of the evaluated epoch with the highest AP on the validation images.")
    if settings.precision != "fp32":
        notes.append(
            f"Latencies and exported files are of {settings.precision}. AP is that of the training, in fp32; a file's "
            "own AP stands beside it."
        )
    if settings.elsewhere:
        notes.append(
            f"{settings.device} was not in this machine: nothing was timed here. Latencies are predicted from its "
            f"table, with intervals that are to hold {settings.latency_confidence:.0%} of them; a latency limit bounds "
            "the upper end."
        )
    notes += _baseline(candidates)
    for stage, count in planned.items():
        trials = [c for c in candidates if c.stage == stage]
        trained = sum(c.state == "complete" for c in trials)
        stopped = [c for c in trials if c.stop_epoch is not None]
        if stopped:
            notes.append(_halved(stage, trials, settings.epochs, count))
        elif finished and trained < count:
            notes.append(
                f"The {stage} stage {verb} {trained} of {count} planned candidates and ended: {_looked_at(trials)}."
            )
        elif trained < len(trials):
            notes.append(f"The {stage} stage {verb} {trained} candidates: {_looked_at(trials)}.")
    if any(c.latency_calibrated is False for c in candidates):
        notes.append("Predicted latencies were not calibrated on whole detectors: their intervals are assumptions.")
    retrained = [c for c in candidates if c.stage == "final" and c.state == "complete"]
    useless = {c.architecture for c in retrained} - {c.architecture for c in retrained if c.point[0] > 0}
    if useless:
        of = len({c.architecture for c in retrained})
        notes.append(f"AP is 0 for {len(useless)} of {of} retrained detectors: such a detector is never recommended.")
    failed = [c for c in candidates if c.stage == "final" and c.state == "failed"]
    if failed:
        notes.append(f"{len(failed)} training runs of the final phase failed, the first one with: {failed[0].reason}")
    if finished and settings.partial_order:
        broken, pairs = broken_order([c for c in candidates if in_search(c)])
        if pairs:
            notes.append(
                f"Partial order pruning assumes that a smaller architecture is not better: of {pairs} trained pairs "
                f"that it compares, {broken} broke that."
            )
    return tuple(notes)


def _halved(stage: StageName, trials: Sequence[Candidate], epochs: int, planned: int) -> str:
    complete = [c for c in trials if c.state == "complete"]
    designs = len({c.architecture for c in complete})
    whole = sum(c.stop_epoch is None for c in complete)
    spent = sum(c.own_epochs for c in complete)
    proposed = [c for c in trials if c.origin != "promotion"]
    left_out = "" if len(proposed) == designs else f"; {_looked_at(proposed)}"
    return (
        f"The {stage} stage began {designs} candidates and trained {whole} of them to the end, in {spent} epochs: "
        f"{spent / epochs:.1f} training runs' worth of {planned} planned{left_out}."
    )


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
        return next(
            (kind for kind in (OVER_LIMIT, TOO_LARGE) if reason.startswith(kind)), "beaten by the partial order"
        )
    return {"complete": "trained", "failed": "failed"}.get(trial.state, "running")
