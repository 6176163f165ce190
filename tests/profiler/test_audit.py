"""Accuracy of predictions: scipy's correlations, figures by hand, a line that a known law gives back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from profiler.audit import accuracy, fitted_line, kendall, spearman

_FEW = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
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
