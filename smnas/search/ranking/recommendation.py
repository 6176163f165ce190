"""Which detector to deploy, and why, in one sentence."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from smnas.search.ranking.comparison import (
    AS_GOOD_AP,
    accuracy,
    alike,
    as_good,
    latency,
    overlap,
    same_budget,
    within_spread,
)
from smnas.search.ranking.row import RankingRow

__all__ = [
    "BandRecommendation",
    "Pick",
    "Recommendation",
    "band_limits",
    "band_recommendations",
    "is_barred",
    "picks",
    "recommend",
    "why_nothing",
]


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


@dataclass(frozen=True)
class Pick:
    """A detector that the ranking names, ``name`` in words such as ``best of all``, and the reason."""

    name: str
    architecture: str
    reason: str


def recommend(
    rows: Sequence[RankingRow], latency_limit_ms: float | None, max_parameters: int | None = None
) -> tuple[Recommendation | None, list[int]]:
    """Choose by the rule, and order all rows by it.

    With a latency limit, the best AP among the detectors within it; without one, the best AP among those not slower
    than the baseline, or where there is none, the best AP, and the reason says so. What is over a limit, or has an AP
    of 0, is never chosen. Of the others those that were trained with the final budget come first. A latency measured
    on an exported file counts instead of the predicted one, against the baseline only where both were measured.

    Of detectors whose AP is equal to the best one's within the spread over seeds, the fastest is chosen; of those that
    are as fast as it within the latency intervals, the one with the best AP.

    Args:
        rows: At least one.
        latency_limit_ms: The limit, or None.
        max_parameters: The largest number of parameters, or None.

    Returns:
        The recommendation, or None (:func:`why_nothing`), and the indices of ``rows`` from best to worst.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a recommendation needs at least one row, but got none")
    baseline = next((row for row in rows if row.role == "baseline"), None)
    final = any(row.stage == "final" for row in rows)

    groups: dict[tuple[bool, bool, bool], list[int]] = {}
    for index, row in enumerate(rows):
        barred = is_barred(row, latency_limit_ms, max_parameters)
        slow = latency_limit_ms is None and baseline is not None and _is_slower(row, baseline)
        groups.setdefault((final and row.stage != "final", barred, slow), []).append(index)
    # a detector of the search's budget goes in front where none of the final budget may be recommended
    best = min(groups, key=lambda key: (key[1], key))
    order = [i for key in (best, *sorted(groups.keys() - {best})) for i in _ordered(rows, groups[key])]
    if best[1]:
        return None, order
    winner, among = rows[order[0]], [rows[i] for i in groups[best]]
    bars = ["an AP above 0"] if any(row.ap <= 0 for row in rows) else []
    if max_parameters is not None and any((row.parameters or 0) > max_parameters for row in rows):
        bars.append(f"at most {max_parameters:,} parameters")
    keeping = f" with {' and '.join(bars)}" if bars else ""
    compared = 0 if best[2] else len(among)
    why = _why(winner, baseline, latency_limit_ms, compared, keeping, _best_ap(winner, among))
    return Recommendation(winner.architecture, _reason(winner, why, baseline)), order


def why_nothing(rows: Sequence[RankingRow], latency_limit_ms: float | None, max_parameters: int | None) -> str:
    """The limits that bar all rows, and how near the nearest one comes."""
    works = [row for row in rows if row.ap > 0]
    if not works:
        return "every AP is 0"
    limits, nearest = [], []
    if latency_limit_ms is not None:
        limits.append(f"within {latency_limit_ms:g} ms")
        nearest.append(f"the fastest takes {min(latency(row).limited_ms for row in works):.2f} ms")
    if max_parameters is not None:
        limits.append(f"of at most {max_parameters:,} parameters")
        nearest.append(f"the smallest has {min(row.parameters or 0 for row in works):,}")
    return f"no trained detector is {' and '.join(limits)} ({', '.join(nearest)})"


def is_barred(row: RankingRow, latency_limit_ms: float | None, max_parameters: int | None) -> bool:
    """Whether it is over a limit, or finds nothing: such a detector is never recommended."""
    too_slow = latency_limit_ms is not None and latency(row).limited_ms > latency_limit_ms
    return row.ap <= 0 or too_slow or (row.parameters or 0) > (max_parameters or math.inf)


def picks(
    ranked: Sequence[RankingRow],
    recommendation: Recommendation | None,
    latency_limit_ms: float | None,
    max_parameters: int | None = None,
) -> tuple[Pick, ...]:
    """Name three detectors: the fastest as good as the baseline, the recommended one, and the best of all.

    As good is an AP at most :data:`~smnas.search.ranking.comparison.AS_GOOD_AP` lower after as many epochs. The first
    two keep the limits; the third may be over the latency limit and then says so. One detector may be all of them;
    where nothing is recommended nothing is named.
    """
    if recommendation is None:
        return ()
    named: list[tuple[str, RankingRow, str]] = []
    small = _longest([row for row in ranked if not is_barred(row, None, max_parameters)])
    baseline = next((row for row in ranked if row.role == "baseline"), None)
    if baseline is not None:
        good = [row for row in small if same_budget(row, baseline) and as_good(row.ap, baseline.ap)]
        fast = [row for row in good if not is_barred(row, latency_limit_ms, None) and not _is_slower(row, baseline)]
        for row in sorted(fast, key=lambda row: latency(row).ms)[:1]:
            why = f"the fastest of {len(good)} with an AP of at least the baseline's less {AS_GOOD_AP}"
            named.append(("fastest as good as the baseline", row, why))
    best = small[_best(small, _by_ap(small, range(len(small))))]
    over = f", over the limit of {latency_limit_ms:g} ms" if is_barred(best, latency_limit_ms, None) else ""
    named.append(("best of all", best, f"{_best_ap(best, small)} of all{over}"))
    found = [Pick(name, row.architecture, _reason(row, why, baseline)) for name, row, why in named]
    if latency_limit_ms is not None:
        found.insert(-1, Pick("best within the limit", **asdict(recommendation)))
    elif baseline is not None and not _is_slower(ranked[0], baseline):
        found.insert(-1, Pick("best at the baseline's latency", **asdict(recommendation)))
    return tuple(found)


def _longest(rows: Sequence[RankingRow]) -> Sequence[RankingRow]:
    """Those of the final phase, or all without one: AP of different budgets does not compare."""
    return [row for row in rows if row.stage == "final"] or rows


def _reason(row: RankingRow, why: str, baseline: RankingRow | None) -> str:
    return f"{_figures(row)}: {why}{_against(row, baseline)}"


def band_recommendations(rows: Sequence[RankingRow]) -> tuple[BandRecommendation, ...]:
    """The recommendation for every latency limit, as bands in which it is the same.

    Only detectors with the longest training are compared, as in :func:`recommend`.
    """
    compared = _longest(rows)
    latencies_ms = [latency(row).limited_ms for row in compared]
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


def _is_slower(row: RankingRow, baseline: RankingRow) -> bool:
    own, its = alike(row, baseline)
    return own.ms > its.ms


def _figures(row: RankingRow) -> str:
    spread = "" if row.ap_std is None else f" ± {row.ap_std:.3f}"
    seeds = f"{len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''}"
    own = latency(row)
    part = "" if own.of_blocks is None else f", {own.of_blocks:.0%} of it measured, up to {own.high_ms:.2f} ms"
    return f"AP {row.ap:.3f}{spread} ({seeds}, {row.epochs} epochs) at {own.ms:.2f} ms ({own.kind}{part})"


def _why(
    winner: RankingRow, baseline: RankingRow | None, limit_ms: float | None, compared: int, keeping: str, best: str
) -> str:
    """Why it was chosen of ``compared`` detectors, ``keeping`` what bars others; 0: all of those are slow."""
    among = f"the {compared} detectors{keeping}" if compared > 1 else f"the only detector{keeping}"
    if limit_ms is not None:
        why = f"{best} among {among}" if compared > 1 else among
        return f"{why} within {limit_ms:g} ms"
    if baseline is None:
        return f"{best} of all; there is no trained baseline to compare with"
    if not compared:
        kind = "retrained detector" if winner.stage == "final" else "detector"
        return f"no {kind}{keeping} is as fast as the baseline, so {best} of the slower ones"
    if compared == 1 and winner.architecture == baseline.architecture:
        return f"nothing else{keeping} is as fast"
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
