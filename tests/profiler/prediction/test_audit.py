"""Accuracy of predictions: scipy's correlations, figures by hand, a line that a known law gives back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from profiler.prediction.audit import accuracy, coverage_over_splits, fitted_line, kendall, spearman
from profiler.prediction.predict import LatencyModel, PartsSum

_FEW = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12)


@settings(max_examples=60)
@given(_FEW)
def test_rank_correlations_are_scipys_with_ties_too(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, dtype=float).T
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert spearman(first, second) is None
        assert kendall(first, second) is None
        return
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert kendall(first, second) == pytest.approx(stats.kendalltau(first, second).statistic)


def test_shares_and_the_mean_error_are_counted_by_hand() -> None:
    found = accuracy([10.4, 9.2, 12.0, 40.0], [10.0, 10.0, 10.0, 20.0])
    assert (found.count, found.within_5, found.within_10) == (4, 0.25, 0.5)
    assert found.mape == pytest.approx((0.04 + 0.08 + 0.2 + 1.0) / 4)


def test_a_line_that_holds_is_found_whatever_its_unit() -> None:
    flops = np.array([1e6, 5e6, 2e9, 7e8])
    wholes = 3e-9 * flops + 0.25
    np.testing.assert_allclose(fitted_line(flops, wholes, [0.0, 1e9]), [0.25, 3.25], rtol=1e-6)


def test_the_line_never_falls_and_never_starts_below_zero() -> None:
    values = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(np.diff(fitted_line(values, [3.0, 2.0, 1.0], [0.0, 10.0])), 0.0, atol=1e-12)
    assert fitted_line(values, [0.5, 2.0, 4.0], [0.0])[0] >= 0


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one prediction per measurement"):
        accuracy([1.0], [1.0, 2.0])


def test_coverage_over_splits_is_what_the_intervals_claim() -> None:
    rng = np.random.default_rng(7)
    sums = rng.uniform(1, 10, 400)
    wholes = 1.2 * sums * rng.normal(1, 0.04, 400)  # errors of one kind, whichever wholes are fitted on
    parts = [PartsSum(float(ms), 0.0, 5) for ms in sums]
    found = coverage_over_splits(parts, wholes, 60, level=0.9, rng=np.random.default_rng(0), splits=60)
    assert found.splits == 60
    assert found.mean == pytest.approx(0.9, abs=0.02)
    assert found.low < found.mean < found.high
    # the same by a loop over one split
    order = np.random.default_rng(5).permutation(400)
    model = LatencyModel.fit([parts[i] for i in order[:60]], [float(wholes[i]) for i in order[:60]], level=0.9)
    inside = [model.predict(parts[i]) for i in order[60:]]
    share = np.mean([one.low_ms <= wholes[i] <= one.high_ms for one, i in zip(inside, order[60:], strict=True)])
    once = coverage_over_splits(parts, wholes, 60, level=0.9, rng=np.random.default_rng(5), splits=1)
    assert once.mean == once.low == once.high == pytest.approx(share)
