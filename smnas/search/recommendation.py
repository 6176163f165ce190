"""Which detector to deploy, and why, in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass

from smnas.search.ranking_row import RankingRow

__all__ = ["Recommendation", "recommend"]


@dataclass(frozen=True)
class Recommendation:
    """The recommended architecture and the reason."""

    architecture: str
    reason: str


@dataclass(frozen=True)
class _Latency:
    ms: float
    low_ms: float
    high_ms: float
    kind: str


def recommend(rows: Sequence[RankingRow], latency_limit_ms: float | None) -> tuple[Recommendation, list[int]]:
    """Choose by the rule, and order all rows by it.

    With a limit, the best AP among the detectors within it; without one, the best AP among those not slower than the
    baseline; where there is none, the best AP, and the reason says so. Only detectors that were trained with the final
    budget are chosen, if any were. A latency measured on an exported file counts instead of the predicted one, against
    the baseline only where both were measured. Of equal APs the faster one is chosen.

    Args:
        rows: At least one.
        latency_limit_ms: The limit, or None.

    Returns:
        The recommendation, and the indices of ``rows`` from best to worst.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a recommendation needs at least one row, but got none")
    baseline = next((row for row in rows if row.role == "baseline"), None)
    final = any(row.stage == "final" for row in rows)

    def key(index: int) -> tuple[bool, bool, float, float, str]:
        row = rows[index]
        fits = _fits(row, baseline, latency_limit_ms)
        return (final and row.stage != "final", not fits, -row.ap, _latency(row).ms, row.architecture)

    order = sorted(range(len(rows)), key=key)
    winner = rows[order[0]]
    compared = sum(not key(index)[0] and not key(index)[1] for index in order)
    why = _why(winner, baseline, latency_limit_ms, compared)
    reason = f"{_figures(winner)}: {why}{_against(winner, baseline)}"
    return Recommendation(winner.architecture, reason), order


def _latency(row: RankingRow, measured: bool = True) -> _Latency:
    if measured and row.measured_latency_ms is not None:
        value, low, high = row.measured_latency_ms, row.measured_latency_low_ms, row.measured_latency_high_ms
        kind = "measured"
    else:
        value, low, high = row.predicted_latency_ms, row.predicted_latency_low_ms, row.predicted_latency_high_ms
        kind = "predicted"
    return _Latency(value, value if low is None else low, value if high is None else high, kind)


def _alike(row: RankingRow, baseline: RankingRow) -> tuple[_Latency, _Latency]:
    """Both measured, or both predicted."""
    both = row.measured_latency_ms is not None and baseline.measured_latency_ms is not None
    return _latency(row, both), _latency(baseline, both)


def _fits(row: RankingRow, baseline: RankingRow | None, limit_ms: float | None) -> bool:
    if limit_ms is not None:
        return _latency(row).ms <= limit_ms
    if baseline is None:
        return True
    own, its = _alike(row, baseline)
    return own.ms <= its.ms


def _figures(row: RankingRow) -> str:
    spread = "" if row.ap_std is None else f" ± {row.ap_std:.3f}"
    seeds = f"{len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''}"
    latency = _latency(row)
    return f"AP {row.ap:.3f}{spread} ({seeds}, {row.epochs} epochs) at {latency.ms:.2f} ms ({latency.kind})"


def _why(winner: RankingRow, baseline: RankingRow | None, limit_ms: float | None, compared: int) -> str:
    among = f"the {compared} detectors" if compared > 1 else "the only detector"
    latency = _latency(winner)
    if limit_ms is not None:
        if compared:
            best = f"the best AP among {among}" if compared > 1 else among
            return f"{best} within {limit_ms:g} ms"
        over = latency.ms - limit_ms
        return f"no detector is within {limit_ms:g} ms, so the best AP of all, {over:.2f} ms over the limit"
    if baseline is None:
        return "the best AP of all; there is no trained baseline to compare with"
    if not compared:
        return "no detector is as fast as the baseline, so the best AP of all"
    if compared == 1 and winner.architecture == baseline.architecture:
        return "nothing else is as fast"
    best = f"the best AP among {among}" if compared > 1 else among
    return f"{best} not slower than the baseline"


def _against(winner: RankingRow, baseline: RankingRow | None) -> str:
    if baseline is None:
        return "."
    if winner.architecture == baseline.architecture:
        return ". It is the baseline itself: no candidate did better."
    own, its = _alike(winner, baseline)
    if own.low_ms <= its.high_ms and its.low_ms <= own.high_ms:
        speed = f"as fast as the baseline within the {own.kind} intervals ({own.ms:.2f} against {its.ms:.2f} ms)"
    else:
        change = own.ms / its.ms - 1.0
        word = "faster" if change < 0 else "slower"
        speed = f"{abs(change):.0%} {word} than the baseline ({own.ms:.2f} against {its.ms:.2f} ms, {own.kind})"
    return f". It is {speed}; its AP is {_accuracy(winner, baseline)}."


def _accuracy(winner: RankingRow, baseline: RankingRow) -> str:
    if winner.epochs != baseline.epochs:
        return f"not comparable: the baseline has {baseline.ap:.3f} after {baseline.epochs} epochs"
    gain = winner.ap - baseline.ap
    figures = f"{winner.ap:.3f} against {baseline.ap:.3f}"
    if winner.ap_std is not None and baseline.ap_std is not None and abs(gain) <= winner.ap_std + baseline.ap_std:
        return f"equal within the spread over seeds ({figures})"
    if abs(gain) < 0.0005:
        return f"equal ({figures})"
    return f"{'better' if gain > 0 else 'worse'} by {abs(gain):.3f} ({figures})"
