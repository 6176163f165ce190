"""Which architectures the final phase trains again, for longer and with several seeds."""

from collections.abc import Sequence

from smnas.search.pareto import as_points, front_layers
from smnas.search.study.candidate import Candidate, in_search

__all__ = ["finalists"]


def finalists(candidates: Sequence[Candidate], top: int, latency_limit_ms: float | None) -> tuple[Candidate, ...]:
    """The baseline, where it was trained, then up to ``top`` candidates.

    First those of the front that may be recommended (within the limit, or not slower than the baseline), best AP first:
    one of them wins. Then the rest of the front, and then the layers behind it in the same way, because one short
    training orders near equals badly.

    Args:
        candidates: All trials.
        top: How many besides the baseline.
        latency_limit_ms: The limit; None: the baseline's latency.
    """
    trained = [c for c in candidates if in_search(c)]
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
