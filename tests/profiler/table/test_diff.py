"""Comparing two latency tables, against NumPy and by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiler.errors import UserError
from profiler.table.diff import VERDICTS, Difference, diff, verdict
from profiler.table.latency_table import LatencyTable, Row, Target

CPU = Target("some CPU", "onnxruntime", "1.0")


def row(key: str, ms: tuple[float, float, float] | None, target: Target = CPU) -> Row:
    """A row of a median with the ends of its interval, or of a failure."""
    if ms is None:
        return Row(key=key, name=f"block {key}", target=target, status="failed", reason="no memory")
    median, low, high = ms
    return Row(key=key, name=f"block {key}", target=target, median_ms=median, low_ms=low, high_ms=high)


def compared(folder: Path, first: list[Row], second: list[Row], *across: str) -> Difference:
    with LatencyTable(folder / "first.db") as one, LatencyTable(folder / "second.db") as other:
        one.add_many(first)
        other.add_many(second)
        return diff(one, other, across=across)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((1.0, 0.9, 1.1), (2.0, 1.9, 2.1), "slower"),
        ((2.0, 1.9, 2.1), (1.0, 0.9, 1.1), "faster"),
        ((1.0, 0.9, 1.1), (1.05, 0.95, 1.2), "equal"),
        ((1.0, 0.9, 1.1), (1.1, 1.0, 1.2), "equal"),  # the ends belong to an interval
        ((1.0, 0.5, 1.5), (1.1, 1.09, 1.11), "slower"),  # only one lies in the other's interval
        ((1.0, 0.9, 1.12), (1.1, 1.05, 1.2), "slower"),  # overlapping is not yet being inside
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), "equal"),
        ((1.0, 0.9, 1.1), None, "failed"),
        (None, (1.0, 0.9, 1.1), "failed"),
        (None, None, "failed"),
    ],
)
def test_verdicts(
    first: tuple[float, float, float] | None, second: tuple[float, float, float] | None, expected: str
) -> None:
    assert verdict(row("a", first), row("a", second)) == expected


def test_a_workload_of_one_table_only(tmp_path: Path) -> None:
    found = compared(tmp_path, [row("a", (1, 1, 1))], [row("b", None)])
    assert [(one.key, one.verdict, one.ratio) for one in found.comparisons] == [
        ("a", "only in the first", None),
        ("b", "only in the second", None),
    ]
    assert found.median_ratio is None


def test_many_rows_against_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = np.array([f"k{number:03d}" for number in range(200)])
    medians, widths = rng.uniform(1, 1.2, (2, 200)), rng.uniform(0.001, 0.1, (2, 200, 2))
    lows, highs = medians - widths[..., 0], medians + widths[..., 1]
    there = rng.random((2, 200)) < 0.8
    tables = [
        [row(keys[i], (medians[t, i], lows[t, i], highs[t, i])) for i in np.flatnonzero(there[t])] for t in range(2)
    ]
    found = compared(tmp_path, *tables)

    both, ratio = there.all(axis=0), medians[1] / medians[0]
    inside = (lows[0] <= medians[1]) & (medians[1] <= highs[0]) & (lows[1] <= medians[0]) & (medians[0] <= highs[1])
    expected = np.select(
        [~there.any(axis=0), ~there[0], ~there[1], inside, ratio < 1],
        ["absent", "only in the second", "only in the first", "equal", "faster"],
        "slower",
    )
    assert {one.key: one.verdict for one in found.comparisons} == {
        key: text for key, text in zip(keys.tolist(), expected.tolist(), strict=True) if text != "absent"
    }
    assert found.counts == {name: int(np.sum(expected == name)) for name in VERDICTS}
    assert min(found.counts[name] for name in ("faster", "slower", "equal")) > 10
    assert found.median_ratio == pytest.approx(np.median(ratio[both]))
    ratios = {one.key: one.ratio for one in found.comparisons if one.ratio is not None}
    assert ratios == pytest.approx(dict(zip(keys[both].tolist(), ratio[both].tolist(), strict=True)))


def test_only_current_rows_are_compared(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "first.db") as one, LatencyTable(tmp_path / "second.db") as other:
        one.add(row("a", (5, 5, 5)))
        for table in (one, other):
            table.add(row("a", (1, 1, 1)))
        found = diff(one, other)
    assert [(one.verdict, one.ratio) for one in found.comparisons] == [("equal", 1.0)]


def test_a_median_of_zero_has_no_ratio(tmp_path: Path) -> None:
    found = compared(tmp_path, [row("a", (0, 0, 0))], [row("a", (1, 1, 1))])
    assert [(one.verdict, one.ratio) for one in found.comparisons] == [("slower", None)]


def test_targets_are_apart_unless_compared_across(tmp_path: Path) -> None:
    newer = replace(CPU, backend_version="2.0")
    first, second = [row("a", (1, 1, 1))], [row("a", (2, 2, 2), newer)]
    assert compared(tmp_path, first, second).counts == {
        **dict.fromkeys(VERDICTS, 0),
        "only in the first": 1,
        "only in the second": 1,
    }
    across = compared(tmp_path, [], [], "backend_version")
    assert [(one.verdict, one.ratio) for one in across.comparisons] == [("slower", 2.0)]


def test_across_what_is_not_known_or_not_clear(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"device, backend, .*'colour'"):
        compared(tmp_path, [], [], "colour")
    with pytest.raises(UserError, match="holds block a for"):
        compared(tmp_path, [row("a", (1, 1, 1)), row("a", (1, 1, 1), replace(CPU, device="other"))], [], "device")
