"""Which architectures the final phase trains again, for longer and with several seeds."""

import math
from collections.abc import Sequence
from dataclasses import replace

from smnas.scoring.base import AP
from smnas.search.pareto import as_points, front_layers, spread
from smnas.search.ranking.comparison import as_good
from smnas.search.study.candidate import Candidate, in_search
from smnas.search.study.settings import SearchSettings

__all__ = ["final_drafts", "finalists"]


def finalists(
    candidates: Sequence[Candidate], top: int, latency_limit_ms: float | None, max_parameters: int | None = None
) -> tuple[Candidate, ...]:
    """The baseline, where it was trained, for comparison; then up to ``top`` candidates.

    Everything within the latency limit comes before anything over it. Of those within, their front comes first, then
    the layers behind it, because one short training run orders near equals badly; of those over it the same, by the
    layers of all. A layer is in this order: the fastest that is as good as the baseline and faster; the best within the
    limit; the best of all. Those are what the ranking names, so they must be confirmed. The rest is ordered by
    hypervolume contribution: it spreads them over latency and, unlike latency bands, needs no number of bands and
    prefers a knee of the front to its flat parts.

    Finalists that were chosen already keep their places, as long as the search itself has not gone on since.

    Args:
        candidates: All trials.
        top: How many besides the baseline.
        latency_limit_ms: The limit; None: the baseline's latency, which excludes nothing.
        max_parameters: Larger ones, which another run may have trained, are left out.
    """
    searched = max((c.number for c in candidates if c.stage != "final"), default=-1)
    begun = list(dict.fromkeys(c.architecture for c in candidates if c.stage == "final" and c.number > searched))
    most = max_parameters or math.inf
    trained = [c for c in candidates if in_search(c) and (c.stage == "baseline" or (c.parameters or 0) <= most)]
    baseline = [c for c in trained if c.stage == "baseline"]
    chosen = sorted(
        (c for c in trained if c.architecture in begun and c.stage != "baseline"),
        key=lambda c: begun.index(c.architecture),
    )
    most_ms = latency_limit_ms or math.inf
    for over in (False, True):
        compared = [c for c in trained if over or not c.limited_ms > most_ms]
        layers = front_layers(as_points([c.point for c in compared])).tolist()
        for layer in range(max(layers, default=-1) + 1):
            if len(chosen) >= top:
                break
            front = [c for c, own in zip(compared, layers, strict=True) if own == layer and c.stage != "baseline"]
            members = [c for c in front if (c.limited_ms > most_ms) == over]
            chosen += [c for c in _in_order(members, baseline, latency_limit_ms) if c.architecture not in begun]
    return (*baseline[:1], *chosen[:top])


def _in_order(front: Sequence[Candidate], baseline: Sequence[Candidate], limit_ms: float | None) -> list[Candidate]:
    """The members of one front, the most telling first; see :func:`finalists`."""
    by_ap = sorted(front, key=lambda c: (-c.point[0], c.point[1], c.number))
    order: list[int] = []  # by place in by_ap
    for ap, latency_ms in (c.point for c in baseline):
        good = [i for i, c in enumerate(by_ap) if c.point[1] < latency_ms and as_good(c.point[0], ap)]
        order += sorted(good, key=lambda i: by_ap[i].point[1])[:1]
        within = (c.limited_ms <= limit_ms if limit_ms else c.point[1] <= latency_ms for c in by_ap)
        order += [i for i, fits in enumerate(within) if fits][:1]
    order = list(dict.fromkeys((*order, *range(len(by_ap))[:1])))
    points = as_points([c.point for c in (*by_ap, *baseline)])
    order += spread(points, len(by_ap), (*order, *range(len(by_ap), len(points))))
    return [by_ap[i] for i in dict.fromkeys((*order, *range(len(by_ap))))]


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
