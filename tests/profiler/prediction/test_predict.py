"""Prediction: the fit is the non-negative least squares one, intervals cover what they claim, and gaps are named."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from profiler.prediction.predict import (
    UNCALIBRATED_RELATIVE,
    FailedPartError,
    Latency,
    LatencyModel,
    MissingPartsError,
    PartsSum,
    sum_parts,
)
from profiler.table.latency_table import Row, Target

TARGET = Target("d", "b", "1")


def row(key: str, ms: float, half_ms: float = 0.0) -> Row:
    return Row(key, f"block {key}", TARGET, median_ms=ms, low_ms=ms - half_ms, high_ms=ms + half_ms)


def sums(*values: tuple[float, int]) -> list[PartsSum]:
    return [PartsSum(ms, 0.0, count) for ms, count in values]


def population(
    rng: np.random.Generator, n: int, noise: float, scale: float = 0.9, per_part_ms: float = 0.05
) -> tuple[list[PartsSum], list[float]]:
    parts = [PartsSum(float(rng.uniform(2, 40)), 0.0, int(rng.integers(5, 30))) for _ in range(n)]
    wholes = [(scale * p.ms + per_part_ms * p.count) * float(1 + noise * rng.standard_normal()) for p in parts]
    return parts, wholes


def test_parts_add_up_as_often_as_they_occur() -> None:
    rows = {"a": row("a", 1.0, 0.3), "b": row("b", 2.0, 0.4), "c": row("c", 50.0)}
    total = sum_parts(["a", "b", "a"], rows)
    assert total.ms == 4.0
    assert total.count == 3
    assert total.half_ms == pytest.approx(math.hypot(0.6, 0.4))
    assert sum_parts([], rows) == PartsSum(0.0, 0.0, 0)


def test_missing_parts_are_all_named_once() -> None:
    with pytest.raises(MissingPartsError) as caught:
        sum_parts(["x", "a", "y", "x"], {"a": row("a", 1.0)})
    assert caught.value.keys == ("x", "y")


def test_a_failed_part_says_why() -> None:
    failed = Row("bad", "block bad", TARGET, status="failed", reason="out of memory")
    with pytest.raises(FailedPartError, match="block bad has no latency: out of memory"):
        sum_parts(["a", "bad"], {"a": row("a", 1.0), "bad": failed})


@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(1, 60), st.floats(0.1, 100)), min_size=8, max_size=30))
def test_the_fit_is_scipys_non_negative_least_squares(data: list[tuple[float, int, float]]) -> None:
    s, n, w = (np.array(column, dtype=float) for column in zip(*data, strict=True))
    model = LatencyModel.fit(sums(*((a, int(b)) for a, b, _ in data)), w.tolist())
    design = np.stack([s / w, n / w], axis=1)
    _, expected_error = optimize.nnls(design, np.ones(len(w)))
    error = float(np.linalg.norm(design @ [model.scale, model.per_part_ms] - 1))
    assert model.scale >= 0
    assert model.per_part_ms >= 0
    assert error == pytest.approx(expected_error, rel=1e-6, abs=1e-6)


def test_exact_wholes_are_predicted_exactly() -> None:
    parts, wholes = population(np.random.default_rng(0), 8, noise=0.0)
    model = LatencyModel.fit(parts, wholes)
    assert model.scale == pytest.approx(0.9)
    assert model.per_part_ms == pytest.approx(0.05)
    predicted = model.predict(PartsSum(10.0, 0.0, 10))
    assert predicted.calibrated
    assert predicted.ms == pytest.approx(9.5)
    assert predicted.high_ms - predicted.low_ms < 1e-6


@pytest.mark.parametrize("n", [3, 5, 8, 12, 25, 60])
def test_intervals_cover_as_often_as_they_claim(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = 0
    trials = 600
    for _ in range(trials):
        parts, wholes = population(rng, n + 1, noise=0.03, per_part_ms=0.0 if n < 8 else 0.05)
        latency = LatencyModel.fit(parts[:n], wholes[:n], level=0.9).predict(parts[n])
        hits += latency.low_ms <= wholes[n] <= latency.high_ms
    assert 0.87 <= hits / trials <= 0.975


@pytest.mark.parametrize("n", [2, 5, 7, 8, 13, 19])
def test_few_residuals_give_students_interval_with_the_degrees_that_the_fit_leaves(n: int) -> None:
    model = LatencyModel.fit(*population(np.random.default_rng(n), n, 0.03), level=0.9)
    spread = math.sqrt(sum(residual**2 for residual in model.residuals) / n)
    assert model.relative_half_width == pytest.approx(stats.t.ppf(0.95, n - (2 if n >= 8 else 1)) * spread)


@pytest.mark.parametrize(("n", "rank"), [(20, 19), (29, 27), (60, 55)])
def test_many_residuals_give_the_conformal_interval(n: int, rank: int) -> None:
    """The ceil((n + 1) level)-th smallest, Lei et al. 2018: one more than the residuals' own quantile."""
    model = LatencyModel.fit(*population(np.random.default_rng(n), n, 0.03), level=0.9)
    assert model.relative_half_width == sorted(map(abs, model.residuals))[rank - 1]


def test_more_wholes_narrow_the_interval() -> None:
    rng = np.random.default_rng(1)
    widths = [
        float(np.mean([LatencyModel.fit(*population(rng, n, 0.03)).relative_half_width for _ in range(50)]))
        for n in (5, 10, 50)
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(1.645 * 0.03, rel=0.25)


def test_without_wholes_it_is_the_plain_sum_and_says_so() -> None:
    model = LatencyModel.fit([], [])
    predicted = model.predict(PartsSum(8.0, 0.0, 5))
    assert predicted == Latency(8.0, 4.0, 12.0, calibrated=False)
    assert "not calibrated" in str(predicted)
    assert model == LatencyModel()


def test_one_whole_sets_the_scale_but_not_the_interval() -> None:
    model = LatencyModel.fit(sums((10.0, 4)), [8.0])
    assert (model.scale, model.per_part_ms) == (pytest.approx(0.8), 0.0)
    assert model.relative_half_width == UNCALIBRATED_RELATIVE
    assert not model.calibrated


def test_the_parts_own_uncertainty_widens_the_interval() -> None:
    parts, wholes = population(np.random.default_rng(0), 8, noise=0.0)
    model = LatencyModel.fit(parts, wholes)
    unsure = model.predict(PartsSum(10.0, 2.0, 10))
    assert unsure.high_ms - unsure.ms == pytest.approx(0.9 * 2.0)


def test_many_at_once_equal_one_by_one() -> None:
    rng = np.random.default_rng(2)
    model = LatencyModel.fit(*population(rng, 30, 0.05))
    parts = [
        PartsSum(*values) for values in zip(rng.uniform(1, 50, 1000), rng.uniform(0, 1, 1000), range(1000), strict=True)
    ]
    many = model.predict_many(
        [part.ms for part in parts], [part.count for part in parts], [part.half_ms for part in parts]
    )
    for index in range(0, 1000, 37):
        one = model.predict(parts[index])
        assert (one.ms, one.low_ms, one.high_ms) == (many.ms[index], many.low_ms[index], many.high_ms[index])
    assert (many.low_ms <= many.ms).all()
    assert (many.ms <= many.high_ms).all()
    assert (many.low_ms >= 0).all()


@pytest.mark.parametrize(
    ("parts", "wholes", "level", "message"),
    [
        (sums((1.0, 1)), [1.0, 2.0], 0.9, "one latency per whole"),
        (sums((1.0, 1)), [0.0], 0.9, "positive"),
        (sums((1.0, 1)), [math.nan], 0.9, "positive"),
        (sums((1.0, 1)), [1.0], 1.0, "level"),
    ],
)
def test_wrong_arguments_are_refused(parts: list[PartsSum], wholes: list[float], level: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatencyModel.fit(parts, wholes, level=level)


def test_prediction_loads_no_torch() -> None:
    code = "import sys, profiler.prediction.predict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
