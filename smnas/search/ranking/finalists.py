"""Which architectures the final phase trains again, for longer and with several seeds."""

import math
from collections.abc import Sequence
from dataclasses import replace

from smnas.scoring.base import AP
from smnas.search.pareto import as_points, front_layers
from smnas.search.study.candidate import Candidate, in_search
from smnas.search.study.settings import SearchSettings

__all__ = ["final_drafts", "finalists"]


def finalists(
    candidates: Sequence[Candidate], top: int, latency_limit_ms: float | None, max_parameters: int | None = None
) -> tuple[Candidate, ...]:
    """The baseline, where it was trained, for comparison; then up to ``top`` candidates.

    First those of the front that may be recommended (within the limit, or not slower than the baseline), best AP first:
    one of them wins. Then the rest of the front, and then the layers behind it in the same way, because one short
    training orders near equals badly.

    Args:
        candidates: All trials.
        top: How many besides the baseline.
        latency_limit_ms: The limit; None: the baseline's latency.
        max_parameters: Larger ones, which another run may have trained, are left out.
    """
    most = max_parameters or math.inf
    trained = [c for c in candidates if in_search(c) and (c.stage == "baseline" or (c.parameters or 0) <= most)]
    baseline = [c for c in trained if c.stage == "baseline"]
    limit = latency_limit_ms
    if limit is None and baseline:
        limit = baseline[0].point[1]
    layers = front_layers(as_points([c.point for c in trained])).tolist()
    order = sorted(
        (layer, limit is not None and c.point[1] > limit, -c.point[0], c.number, c)
        for layer, c in zip(layers, trained, strict=True)
        if c.stage != "baseline" and layer >= 0
    )
    return (*baseline, *(entry[-1] for entry in order[:top]))


def final_drafts(candidates: Sequence[Candidate], settings: SearchSettings) -> tuple[Candidate, ...]:
    """The final phase's trials that are not there yet, numbered on.

    Seed by seed, so that a search that is stopped here has compared all finalists with fewer seeds.
    """
    if not settings.final_epochs:
        return ()
    chosen = finalists(candidates, settings.top, settings.latency_ms, settings.max_parameters)
    there = {(c.architecture, c.seed) for c in candidates if c.stage == "final"}
    missing = [
        (source, seed)
        for seed in range(settings.seed, settings.seed + settings.final_seeds)
        for source in chosen
        if (source.architecture, seed) not in there
    ]
    return tuple(
        replace(
            source,
            number=number,
            stage="final",
            origin="ranking",
            parent=None,
            generation=None,
            state="running",
            seed=seed,
            epochs=settings.final_epochs,
            start_epoch=0,
            stop_epoch=None,
            score=None,
            metric=AP,
            metrics={},
            seconds=None,
            checkpoint=None,
        )
        for number, (source, seed) in enumerate(missing, start=len(candidates))
    )
