"""Which detector to deploy, and why, in one sentence."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from smnas.search.ranking.comparison import accuracy, alike, latency, overlap, within_spread
from smnas.search.ranking.row import RankingRow

__all__ = ["BandRecommendation", "Recommendation", "band_limits", "band_recommendations", "recommend"]


@dataclass(frozen=True)
class Recommendation:
    """The recommended architecture and the reason."""

    architecture: str
    reason: str


@dataclass(frozen=True)
class BandRecommendation:
    """What to deploy where the latency limit is anywhere from ``from_ms`` on, and below ``below_ms`` (None: no end)."""

    from_ms: float
    below_ms: float | None
    architecture: str
    reason: str


def recommend(rows: Sequence[RankingRow], latency_limit_ms: float | None) -> tuple[Recommendation, list[int]]:
    """Choose by the rule, and order all rows by it.

    With a limit, the best AP among the detectors within it; without one, the best AP among those not slower than the
    baseline; where there is none, the best AP, and the reason says so. Only detectors that were trained with the final
    budget are chosen, if any were. A latency measured on an exported file counts instead of the predicted one, against
    the baseline only where both were measured.

    Of detectors whose AP is equal to the best one's within the spread over seeds, the fastest is chosen; of those that
    are as fast as it within the latency intervals, the one with the best AP.

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

    groups: dict[tuple[bool, bool], list[int]] = {}
    for index, row in enumerate(rows):
        outside = not _fits(row, baseline, latency_limit_ms)
        groups.setdefault((final and row.stage != "final", outside), []).append(index)
    order = [index for key in sorted(groups) for index in _ordered(rows, groups[key])]
    winner = rows[order[0]]
    best_group = groups[min(groups)]
    compared = len(best_group) if not any(min(groups)) else 0
    why = _why(winner, baseline, latency_limit_ms, compared, _best_ap(winner, [rows[i] for i in best_group]))
    reason = f"{_figures(winner)}: {why}{_against(winner, baseline)}"
    return Recommendation(winner.architecture, reason), order


def band_recommendations(rows: Sequence[RankingRow]) -> tuple[BandRecommendation, ...]:
    """The recommendation for every latency limit, as bands in which it is the same.

    Only detectors with the longest training are compared, as in :func:`recommend`.
    """
    final = any(row.stage == "final" for row in rows)
    compared = [row for row in rows if row.stage == "final" or not final]
    latencies_ms = [latency(row).ms for row in compared]
    by_ap = _by_ap(compared, range(len(compared)))
    bands: list[BandRecommendation] = []
    for limit_ms in sorted(set(latencies_ms)):
        fits = [i for i in by_ap if latencies_ms[i] <= limit_ms]
        winner = compared[_best(compared, fits)]
        if bands and bands[-1].architecture == winner.architecture:
            continue
        if bands:
            bands[-1] = replace(bands[-1], below_ms=limit_ms)
        within = [compared[i] for i in fits]
        among = f"{_best_ap(winner, within)} of {len(within)}" if len(within) > 1 else "the only one so fast"
        reason = f"{_figures(winner)}: {among}."
        bands.append(BandRecommendation(limit_ms, None, winner.architecture, reason))
    return tuple(bands)


def band_limits(band: BandRecommendation) -> str:
    """The limits of a band in words."""
    if band.below_ms is None:
        return f"{band.from_ms:.2f} ms and more"
    return f"{band.from_ms:.2f} to {band.below_ms:.2f} ms"


def _ordered(rows: Sequence[RankingRow], indices: Iterable[int]) -> list[int]:
    """Indices from best to worst: the winner, the winner of the rest, and so on."""
    left = _by_ap(rows, indices)
    order = []
    while left:
        order.append(_best(rows, left))
        left.remove(order[-1])
    return order


def _by_ap(rows: Sequence[RankingRow], indices: Iterable[int]) -> list[int]:
    return sorted(indices, key=lambda i: (-rows[i].ap, latency(rows[i]).ms, rows[i].architecture))


def _best(rows: Sequence[RankingRow], by_ap: Sequence[int]) -> int:
    """The winner of some rows, whose indices are ordered by AP."""
    tied = [i for i in by_ap if within_spread(rows[by_ap[0]], rows[i])]
    fastest = min((latency(rows[i]) for i in tied), key=lambda one: one.ms)
    # Of those that are as fast as the fastest the first one has the best AP.
    return next(i for i in tied if overlap(latency(rows[i]), fastest))


def _best_ap(winner: RankingRow, compared: Sequence[RankingRow]) -> str:
    """The best AP, or that the winner's can not be told from it."""
    best = max(compared, key=lambda row: row.ap)
    if winner.ap == best.ap:
        return "the best AP"
    tied = sum(within_spread(best, row) for row in compared)
    return f"as fast as any of the {tied} that tie within the spread over seeds for the best AP ({best.ap:.3f})"


def _fits(row: RankingRow, baseline: RankingRow | None, limit_ms: float | None) -> bool:
    if limit_ms is not None:
        return latency(row).ms <= limit_ms
    if baseline is None:
        return True
    own, its = alike(row, baseline)
    return own.ms <= its.ms


def _figures(row: RankingRow) -> str:
    spread = "" if row.ap_std is None else f" ± {row.ap_std:.3f}"
    seeds = f"{len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''}"
    own = latency(row)
    return f"AP {row.ap:.3f}{spread} ({seeds}, {row.epochs} epochs) at {own.ms:.2f} ms ({own.kind})"


def _why(winner: RankingRow, baseline: RankingRow | None, limit_ms: float | None, compared: int, best: str) -> str:
    among = f"the {compared} detectors" if compared > 1 else "the only detector"
    if limit_ms is not None:
        if compared:
            why = f"{best} among {among}" if compared > 1 else among
            return f"{why} within {limit_ms:g} ms"
        over = latency(winner).ms - limit_ms
        return f"no detector is within {limit_ms:g} ms, so {best} of all, {over:.2f} ms over the limit"
    if baseline is None:
        return f"{best} of all; there is no trained baseline to compare with"
    if not compared:
        return f"no detector is as fast as the baseline, so {best} of all"
    if compared == 1 and winner.architecture == baseline.architecture:
        return "nothing else is as fast"
    why = f"{best} among {among}" if compared > 1 else among
    return f"{why} not slower than the baseline"


def _against(winner: RankingRow, baseline: RankingRow | None) -> str:
    if baseline is None:
        return "."
    if winner.architecture == baseline.architecture:
        return ". It is the baseline itself: no candidate did better."
    own, its = alike(winner, baseline)
    if overlap(own, its):
        speed = f"as fast as the baseline within the {own.kind} intervals ({own.ms:.2f} against {its.ms:.2f} ms)"
    else:
        change = own.ms / its.ms - 1.0
        word = "faster" if change < 0 else "slower"
        speed = f"{abs(change):.0%} {word} than the baseline ({own.ms:.2f} against {its.ms:.2f} ms, {own.kind})"
    return f". It is {speed}; its AP is {_accuracy(winner, baseline)}."


def _accuracy(winner: RankingRow, baseline: RankingRow) -> str:
    gain = winner.ap - baseline.ap
    figures = f"{winner.ap:.3f} against {baseline.ap:.3f}"
    match accuracy(winner, baseline):
        case "unknown":
            return f"not comparable: the baseline has {baseline.ap:.3f} after {baseline.epochs} epochs"
        case "equal" if None not in (winner.ap_std, baseline.ap_std) and within_spread(winner, baseline):
            return f"equal within the spread over seeds ({figures})"
        case "equal":
            return f"equal ({figures})"
        case "better":
            return f"better by {gain:.3f} ({figures})"
        case "lower":
            return f"worse by {-gain:.3f} ({figures})"
