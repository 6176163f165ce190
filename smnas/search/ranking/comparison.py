"""Comparison of two ranked detectors: latencies by their intervals, APs by their spread over seeds."""

from dataclasses import dataclass
from typing import Literal

from smnas.search.ranking.row import RankingRow

__all__ = [
    "AS_GOOD_AP",
    "Accuracy",
    "RowLatency",
    "Speed",
    "accuracy",
    "alike",
    "as_good",
    "latency",
    "overlap",
    "same_budget",
    "speed",
    "within_spread",
]

Speed = Literal["faster", "same", "slower"]
Accuracy = Literal["better", "equal", "lower", "unknown"]

AS_GOOD_AP = 0.005
"""A detector is as good as another if its AP is at most half a point lower: the AP of one run is no more certain."""

_LEAST_AP_DIFFERENCE = 0.0005  # below three printed decimals


@dataclass(frozen=True)
class RowLatency:
    """A latency with its interval.

    Attributes:
        kind: ``measured`` or ``predicted``.
        of_blocks: Fraction of a prediction whose blocks were measured, where the device is elsewhere; else None.
    """

    ms: float
    low_ms: float
    high_ms: float
    kind: str
    of_blocks: float | None = None

    @property
    def limited_ms(self) -> float:
        """What a limit bounds: the latency or, of a prediction for a device elsewhere, the end of its interval."""
        return self.ms if self.of_blocks is None else self.high_ms


def latency(row: RankingRow, measured: bool = True) -> RowLatency:
    """Latency of the exported file if it was measured and is wanted; else the predicted one."""
    if measured and row.measured_latency_ms is not None:
        value, low, high = row.measured_latency_ms, row.measured_latency_low_ms, row.measured_latency_high_ms
        kind, of_blocks = "measured", None
    else:
        value, low, high = row.predicted_latency_ms, row.predicted_latency_low_ms, row.predicted_latency_high_ms
        kind, of_blocks = "predicted", row.predicted_latency_measured
    return RowLatency(value, value if low is None else low, value if high is None else high, kind, of_blocks)


def alike(row: RankingRow, other: RankingRow) -> tuple[RowLatency, RowLatency]:
    """Both latencies of one kind: measured if both were, else predicted."""
    both = row.measured_latency_ms is not None and other.measured_latency_ms is not None
    return latency(row, both), latency(other, both)


def overlap(a: RowLatency, b: RowLatency) -> bool:
    """Whether two latency intervals overlap."""
    return a.low_ms <= b.high_ms and b.low_ms <= a.high_ms


def speed(row: RankingRow, other: RankingRow) -> Speed:
    """Speed of ``row`` against ``other``; ``same`` if their intervals overlap."""
    own, its = alike(row, other)
    if overlap(own, its):
        return "same"
    return "faster" if own.ms < its.ms else "slower"


def as_good(ap: float, baseline_ap: float) -> bool:
    """Whether an AP is at most :data:`AS_GOOD_AP` below the baseline's, for the same number of epochs."""
    return ap >= baseline_ap - AS_GOOD_AP - 1e-9  # the difference of two decimals is not exact


def same_budget(row: RankingRow, other: RankingRow) -> bool:
    """Whether two rows were trained alike: for as many epochs, or each until its AP no longer rose."""
    return row.epochs == other.epochs or None not in (row.stop_reason, other.stop_reason)


def within_spread(row: RankingRow, other: RankingRow) -> bool:
    """Whether two APs of equal epochs agree within their spread over seeds; an unknown spread counts as 0."""
    if not same_budget(row, other):
        return False
    spread = 0.0 if row.ap_std is None or other.ap_std is None else row.ap_std + other.ap_std
    return abs(row.ap - other.ap) <= spread


def accuracy(row: RankingRow, other: RankingRow) -> Accuracy:
    """AP of ``row`` against ``other``.

    ``equal`` within the spread over seeds or three printed decimals, ``unknown`` for different numbers of epochs.
    """
    if not same_budget(row, other):
        return "unknown"
    if within_spread(row, other) or abs(row.ap - other.ap) < _LEAST_AP_DIFFERENCE:
        return "equal"
    return "better" if row.ap > other.ap else "lower"
