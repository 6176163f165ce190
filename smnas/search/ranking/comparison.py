"""How two ranked detectors compare: latencies by their intervals, APs by their spread over seeds."""

from dataclasses import dataclass
from typing import Literal

from smnas.search.ranking.row import RankingRow

__all__ = ["Accuracy", "RowLatency", "Speed", "accuracy", "alike", "latency", "overlap", "speed", "within_spread"]

Speed = Literal["faster", "same", "slower"]
Accuracy = Literal["better", "equal", "lower", "unknown"]

_LEAST_AP_DIFFERENCE = 0.0005  # what three printed decimals can not show


@dataclass(frozen=True)
class RowLatency:
    """A latency with its interval; ``kind`` is ``measured`` or ``predicted``."""

    ms: float
    low_ms: float
    high_ms: float
    kind: str


def latency(row: RankingRow, measured: bool = True) -> RowLatency:
    """The latency measured on the exported file, where there is one and it is wanted; else the predicted one."""
    if measured and row.measured_latency_ms is not None:
        value, low, high = row.measured_latency_ms, row.measured_latency_low_ms, row.measured_latency_high_ms
        kind = "measured"
    else:
        value, low, high = row.predicted_latency_ms, row.predicted_latency_low_ms, row.predicted_latency_high_ms
        kind = "predicted"
    return RowLatency(value, value if low is None else low, value if high is None else high, kind)


def alike(row: RankingRow, other: RankingRow) -> tuple[RowLatency, RowLatency]:
    """Both latencies of one kind: measured where both were, else predicted."""
    both = row.measured_latency_ms is not None and other.measured_latency_ms is not None
    return latency(row, both), latency(other, both)


def overlap(a: RowLatency, b: RowLatency) -> bool:
    """Whether two latencies can not be told apart."""
    return a.low_ms <= b.high_ms and b.low_ms <= a.high_ms


def speed(row: RankingRow, other: RankingRow) -> Speed:
    """Whether ``row`` is faster than ``other``; ``same`` where their intervals overlap."""
    own, its = alike(row, other)
    if overlap(own, its):
        return "same"
    return "faster" if own.ms < its.ms else "slower"


def within_spread(row: RankingRow, other: RankingRow) -> bool:
    """Whether two APs can not be told apart; False where the spread is not known and they differ."""
    if row.epochs != other.epochs:
        return False
    spread = 0.0 if row.ap_std is None or other.ap_std is None else row.ap_std + other.ap_std
    return abs(row.ap - other.ap) <= spread


def accuracy(row: RankingRow, other: RankingRow) -> Accuracy:
    """Whether the AP of ``row`` is better than that of ``other``.

    ``equal`` within the spread over seeds, or to the printed three decimals; ``unknown`` where the two were not trained
    for as long.
    """
    if row.epochs != other.epochs:
        return "unknown"
    if within_spread(row, other) or abs(row.ap - other.ap) < _LEAST_AP_DIFFERENCE:
        return "equal"
    return "better" if row.ap > other.ap else "lower"
