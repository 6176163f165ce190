"""Whether the recommended detector keeps the promise: not slower than the baseline at equal or better AP."""

from dataclasses import dataclass
from typing import Literal

from smnas.search.ranking import RankingRow

__all__ = ["Verdict", "verdict"]

Speed = Literal["faster", "same", "slower"]
Accuracy = Literal["better", "equal", "lower", "unknown"]

_LEAST_DIFFERENCE = 0.0005


@dataclass(frozen=True)
class Verdict:
    """How the winner compares with the baseline.

    Attributes:
        speed: ``same`` when the two latency intervals overlap.
        accuracy: ``equal`` within the spread over seeds, or to the printed three decimals; ``unknown`` when the two
            were not trained for as long.
        keeps_promise: Not slower at equal or better AP.
        sentence: The comparison in plain words; its numbers are in the recommendation's reason and in the table.
    """

    speed: Speed
    accuracy: Accuracy
    keeps_promise: bool
    sentence: str


def verdict(winner: RankingRow | None, baseline: RankingRow | None) -> Verdict | None:
    """Compare the recommended row with the baseline's; ``None`` where one of them is missing.

    Like is compared with like: measured latencies only if both rows have one, else predicted ones.
    """
    if winner is None or baseline is None:
        return None
    if winner.architecture == baseline.architecture:
        return Verdict("same", "equal", True, "No candidate did better: the baseline itself is recommended.")
    speed, accuracy = _speed(winner, baseline), _accuracy(winner, baseline)
    first = {
        "faster": "The recommended detector is faster than the baseline",
        "same": "The recommended detector is as fast as the baseline (the latency intervals overlap)",
        "slower": "The recommended detector is slower than the baseline",
    }[speed]
    second = {
        "better": "its AP is better",
        "equal": "its AP is equal",
        "lower": "its AP is lower",
        "unknown": "their APs do not compare: the two were trained for different numbers of epochs",
    }[accuracy]
    good = (speed != "slower") == (accuracy in ("better", "equal"))
    keeps = speed != "slower" and accuracy in ("better", "equal")
    return Verdict(speed, accuracy, keeps, f"{first}, {'and' if good else 'but'} {second}.")


def _speed(winner: RankingRow, baseline: RankingRow) -> Speed:
    measured = winner.measured_latency_ms is not None and baseline.measured_latency_ms is not None
    ours, low, high = _latency(winner, measured)
    theirs, their_low, their_high = _latency(baseline, measured)
    if low <= their_high and their_low <= high:
        return "same"
    return "faster" if ours < theirs else "slower"


def _latency(row: RankingRow, measured: bool) -> tuple[float, float, float]:
    if measured and row.measured_latency_ms is not None:
        value, low, high = row.measured_latency_ms, row.measured_latency_low_ms, row.measured_latency_high_ms
    else:
        value, low, high = row.predicted_latency_ms, row.predicted_latency_low_ms, row.predicted_latency_high_ms
    return value, value if low is None else low, value if high is None else high


def _accuracy(winner: RankingRow, baseline: RankingRow) -> Accuracy:
    if winner.epochs != baseline.epochs:
        return "unknown"
    gain = winner.ap - baseline.ap
    spread = 0.0 if winner.ap_std is None or baseline.ap_std is None else winner.ap_std + baseline.ap_std
    if abs(gain) <= max(spread, _LEAST_DIFFERENCE):
        return "equal"
    return "better" if gain > 0 else "lower"
