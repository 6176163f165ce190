"""Rank correlation between two numbers of the ranked detectors."""

from collections.abc import Sequence
from dataclasses import dataclass

from profiler.prediction.audit import kendall
from smnas.search.ranking.row import RankingRow

__all__ = ["Correlation", "rank_correlations"]

_LEAST_PAIRS = 3


@dataclass(frozen=True)
class Correlation:
    """Kendall's tau-b between two numbers of the ranked detectors; left out where undefined.

    Attributes:
        what: Both numbers in words.
        tau: -1 (opposite orders) to 1 (same order).
        detectors: How many have both.
    """

    what: str
    tau: float
    detectors: int


def rank_correlations(rows: Sequence[RankingRow]) -> tuple[Correlation, ...]:
    """AP in the search against the final phase, and predicted against measured latency, for three detectors or more."""
    ap = [(row.search_ap, row.ap) for row in rows if row.search_ap is not None]
    latency = [
        (row.predicted_latency_ms, row.measured_latency_ms) for row in rows if row.measured_latency_ms is not None
    ]
    found = []
    for what, pairs in (
        ("AP in the search and AP in the final phase", ap),
        ("predicted and measured latency", latency),
    ):
        tau = kendall([x for x, _ in pairs], [y for _, y in pairs])
        if len(pairs) >= _LEAST_PAIRS and tau is not None:
            found.append(Correlation(what, tau, len(pairs)))
    return tuple(found)
