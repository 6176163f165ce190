"""Compare two latency tables, workload by workload."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from profiler.errors import UserError
from profiler.table.latency_table import TARGET_COLUMNS, LatencyTable, Row

__all__ = ["VERDICTS", "Comparison", "Difference", "Verdict", "diff", "verdict"]

Verdict = Literal["faster", "slower", "equal", "failed", "only in the first", "only in the second"]
VERDICTS: tuple[Verdict, ...] = ("faster", "slower", "equal", "failed", "only in the first", "only in the second")
"""Verdict about the second row; ``failed`` where at least one of the two has no latency."""


@dataclass(frozen=True)
class Comparison:
    """Current rows of one workload in two tables, ``None`` where a table has none; the verdict is about the second."""

    key: str
    name: str
    first: Row | None
    second: Row | None
    verdict: Verdict

    @property
    def ratio(self) -> float | None:
        """Median of the second by that of the first; ``None`` unless both have one and the first is above 0."""
        if self.first is None or self.second is None or not self.first.median_ms or self.second.median_ms is None:
            return None
        return self.second.median_ms / self.first.median_ms


@dataclass(frozen=True)
class Difference:
    """Two tables compared.

    Attributes:
        comparisons: one per workload and target of either table, by key and target.
        median_ratio: median of second by first; ``None`` where no workload has a latency in both.
    """

    comparisons: tuple[Comparison, ...]
    counts: Mapping[Verdict, int]
    median_ratio: float | None


def diff(first: LatencyTable, second: LatencyTable, *, across: Sequence[str] = ()) -> Difference:
    """Compare the current rows of two tables.

    Args:
        first: baseline.
        second: subject of the verdicts.
        across: target fields in which the two may differ, such as ``device`` or ``backend_version``: rows pair up if
            key and all other fields agree.

    Raises:
        UserError: a name in ``across`` is no field of a target, or a table holds several rows for one pair.
    """
    for name in across:
        if name not in TARGET_COLUMNS:
            raise UserError(f"tables are compared across {', '.join(TARGET_COLUMNS)}, but got {name!r}")
    agreeing = tuple(name for name in TARGET_COLUMNS if name not in across)
    one, other = _paired_by(first, agreeing), _paired_by(second, agreeing)
    comparisons = []
    for place in sorted(one.keys() | other.keys(), key=repr):
        a, b = one.get(place), other.get(place)
        named = b or a
        if named is not None:
            comparisons.append(Comparison(named.key, named.name, a, b, verdict(a, b)))
    found = Counter(comparison.verdict for comparison in comparisons)
    ratios = [comparison.ratio for comparison in comparisons if comparison.ratio is not None]
    return Difference(
        tuple(comparisons), {name: found[name] for name in VERDICTS}, float(np.median(ratios)) if ratios else None
    )


def verdict(first: Row | None, second: Row | None) -> Verdict:
    """Compare the second row with the first; two latencies inside each other's intervals are equal."""
    if first is None or second is None:
        if first is second:
            raise ValueError("a verdict needs a row, but got none")
        return "only in the second" if first is None else "only in the first"
    a, b = first.interval, second.interval
    if a is None or b is None:
        return "failed"
    (a_low, a_ms, a_high), (b_low, b_ms, b_high) = a, b
    # Equal medians are equal, whatever their intervals are.
    if a_ms == b_ms or (a_low <= b_ms <= a_high and b_low <= a_ms <= b_high):
        return "equal"
    return "faster" if b_ms < a_ms else "slower"


def _paired_by(table: LatencyTable, agreeing: Sequence[str]) -> dict[tuple[object, ...], Row]:
    found: dict[tuple[object, ...], Row] = {}
    for row in table.rows():
        place = (row.key, *(getattr(row.target, name) for name in agreeing))
        before = found.setdefault(place, row)
        if before is not row:
            raise UserError(
                f"a table must hold each workload once for the comparison, but {table.path} holds {row.name} for "
                f"{before.target} and for {row.target}"
            )
    return found
