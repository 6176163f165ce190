"""How well one number orders detectors as another one does."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan, sqrt

from smnas.search.ranking_row import RankingRow

__all__ = ["Correlation", "kendall_tau", "rank_correlations"]

_LEAST_PAIRS = 3


@dataclass(frozen=True)
class Correlation:
    """Kendall's tau-b between two numbers of the ranked detectors, NaN-free: it is left out where it is undefined.

    Attributes:
        what: Both numbers in words.
        tau: -1 (opposite orders) to 1 (the same order).
        detectors: How many have both.
    """

    what: str
    tau: float
    detectors: int


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b: agreeing less disagreeing pairs, with ties taken out of the scale (Kendall, 1945).

    NaN where one side has no two different values.
    """
    agree = disagree = tied_a = tied_b = 0
    for (a1, b1), (a2, b2) in combinations(zip(a, b, strict=True), 2):
        tied_a += a1 == a2
        tied_b += b1 == b2
        product = (a1 > a2) - (a1 < a2), (b1 > b2) - (b1 < b2)
        agree += product[0] * product[1] > 0
        disagree += product[0] * product[1] < 0
    pairs = len(a) * (len(a) - 1) // 2
    scale = sqrt((pairs - tied_a) * (pairs - tied_b))
    return (agree - disagree) / scale if scale else nan


def rank_correlations(rows: Sequence[RankingRow]) -> tuple[Correlation, ...]:
    """AP in the search against AP in the final phase, and predicted against measured latency, where three have both."""
    ap = [(row.search_ap, row.ap) for row in rows if row.search_ap is not None]
    latency = [
        (row.predicted_latency_ms, row.measured_latency_ms) for row in rows if row.measured_latency_ms is not None
    ]
    found = []
    for what, pairs in (
        ("AP in the search and AP in the final phase", ap),
        ("predicted and measured latency", latency),
    ):
        tau = kendall_tau([x for x, _ in pairs], [y for _, y in pairs])
        if len(pairs) >= _LEAST_PAIRS and tau == tau:
            found.append(Correlation(what, tau, len(pairs)))
    return tuple(found)
