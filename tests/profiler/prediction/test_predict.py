"""Prediction: the posterior's fit, and least squares for many; intervals cover what they claim, and gaps are named."""

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from profiler.prediction.predict import (
    PRIORS,
    UNCALIBRATED_RELATIVE,
    FailedPartError,
    Latency,
    LatencyModel,
    MissingPartsError,
    PartsSum,
    Prior,
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


@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(1, 60), st.floats(0.1, 100)), min_size=1, max_size=30))
def test_no_other_terms_that_are_not_negative_are_more_likely(data: list[tuple[float, int, float]]) -> None:
    s, n, w = (np.array(column, dtype=float) for column in zip(*data, strict=True))
    prior = Prior()
    model = LatencyModel.fit(sums(*((a, int(b)) for a, b, _ in data)), w.tolist(), prior=prior)

    def loss(scale: float, per_part_ms: float) -> float:
        pulled = [(scale - prior.scale) / prior.scale_sd, (per_part_ms - prior.per_part_ms) / prior.per_part_sd_ms]
        errors = (scale * s + per_part_ms * n) / w - 1
        return float(errors @ errors + prior.noise**2 * np.dot(pulled, pulled))

    assert model.scale >= 0
    assert model.per_part_ms >= 0
    least = loss(model.scale, model.per_part_ms)
    for step in (1e-3, 1e-2, 0.1):
        for scale, part in ((step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step), (step, -step), (-step, step)):
            other = max(model.scale * (1 + scale), 0.0), max(model.per_part_ms + part / 10, 0.0)
            assert loss(*other) >= least * (1 - 1e-9)


def test_many_wholes_give_least_squares() -> None:
    """As numpy's, without a prior; five standard errors of the terms apart at the very most for few."""
    for n, close in ((8, 0.05), (100, 4e-3), (1000, 4e-4)):
        parts, wholes = population(np.random.default_rng(n), n, 0.03)
        design = np.array([[part.ms, part.count] for part in parts]) / np.array(wholes)[:, None]
        (scale, per_part_ms), *_ = np.linalg.lstsq(design, np.ones(n), rcond=None)
        model = LatencyModel.fit(parts, wholes)
        assert model.scale == pytest.approx(scale, rel=close)
        assert model.per_part_ms == pytest.approx(per_part_ms, rel=5 * close)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_the_interval_is_the_posteriors_by_numerical_integration(n: int) -> None:
    """The predictive density of a new network, the terms and the noise integrated out on a grid, without a formula."""
    prior = Prior(scale_sd=0.1, per_part_ms=0.05, per_part_sd_ms=0.02, noise=0.03, noise_weight=3)
    parts, wholes = population(np.random.default_rng(n), n, 0.03)
    model = LatencyModel.fit(parts, wholes, level=0.9, prior=prior)
    s, c, w = np.array([p.ms for p in parts]), np.array([p.count for p in parts]), np.array(wholes)
    noise = np.geomspace(0.005, 0.3, 50)[:, None, None]
    scale = np.linspace(0.4, 1.4, 201)[None, :, None]
    per_part = np.linspace(-0.2, 0.3, 101)[None, None, :]
    # scaled inverse chi-squared variance, in terms of log noise; normal terms whose width goes with the noise
    log = stats.chi2.logpdf(prior.noise_weight * prior.noise**2 / noise**2, prior.noise_weight) - 2 * np.log(noise)
    log = log + stats.norm.logpdf(scale, prior.scale, prior.scale_sd * noise / prior.noise)
    log = log + stats.norm.logpdf(per_part, prior.per_part_ms, prior.per_part_sd_ms * noise / prior.noise)
    for one_s, one_c, one_w in zip(s, c, w, strict=True):
        log = log + stats.norm.logpdf((scale * one_s + per_part * one_c) / one_w, 1.0, noise)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    new = PartsSum(12.0, 0.0, 9)
    found = model.predict(new)
    mean = float((weight * (scale * new.ms + per_part * new.count)).sum())
    assert found.ms == pytest.approx(mean, rel=1e-3)
    # the error of the new network is relative to its prediction
    inside = stats.norm.cdf(
        (found.high_ms - scale * new.ms - per_part * new.count) / (noise * found.ms)
    ) - stats.norm.cdf((found.low_ms - scale * new.ms - per_part * new.count) / (noise * found.ms))
    assert float((weight * inside).sum()) == pytest.approx(0.9, abs=2e-3)


def test_four_wholes_fit_both_terms() -> None:
    """Of a default search: fitted by the scale alone their 90% interval was 51% wide to either side."""
    parts, wholes = sums((1.16, 8), (8.62, 16), (9.44, 16), (18.36, 16)), [1.8, 9.8, 10.6, 19.6]
    model = LatencyModel.fit(parts, wholes, prior=PRIORS["onnxruntime"])
    assert 0.07 <= model.per_part_ms <= 0.08
    for part, whole in zip(parts, wholes, strict=True):
        found = model.predict(part)
        assert found.ms == pytest.approx(whole, rel=0.0105)
        assert 0.03 < found.high_ms / found.ms - 1 < 0.1


def test_exact_wholes_are_predicted_exactly() -> None:
    parts, wholes = population(np.random.default_rng(0), 8, noise=0.0)
    model = LatencyModel.fit(parts, wholes)
    assert model.scale == pytest.approx(0.9, rel=5e-3)
    assert model.per_part_ms == pytest.approx(0.05, rel=0.1)
    predicted = model.predict(PartsSum(10.0, 0.0, 10))
    assert predicted.calibrated
    assert predicted.ms == pytest.approx(9.5, rel=1e-3)
    assert predicted.high_ms / predicted.ms - 1 < 0.06, "no more than the prior allows for"


@pytest.mark.parametrize("n", [3, 5, 8, 12, 25, 60])
def test_intervals_cover_as_often_as_they_claim(n: int) -> None:
    assert (
        0.86
        <= coverage(np.random.default_rng(n), n, lambda rng: (0.9, 0.05, 0.03), Prior(), 600 if n < 20 else 4800 // n)
        <= 0.985
    )


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
def test_intervals_cover_exactly_over_the_prior(n: int) -> None:
    prior = Prior(scale_sd=0.1, per_part_ms=0.5, per_part_sd_ms=0.02, noise=0.03, noise_weight=6)

    def drawn(rng: np.random.Generator) -> tuple[float, float, float]:
        noise = prior.noise * math.sqrt(prior.noise_weight / rng.chisquare(prior.noise_weight))
        wide = noise / prior.noise
        return (
            float(rng.normal(prior.scale, prior.scale_sd * wide)),
            float(rng.normal(prior.per_part_ms, prior.per_part_sd_ms * wide)),
            noise,
        )

    assert coverage(np.random.default_rng(n), n, drawn, prior, 1500) == pytest.approx(0.9, abs=0.025)


@pytest.mark.parametrize("truth", [(0.7, 0.05, 0.03), (1.3, 0.0, 0.03), (1.0, 0.4, 0.03), (0.9, 0.05, 0.1)])
@pytest.mark.parametrize("n", [4, 8])
def test_a_wrong_prior_costs_width_not_coverage(n: int, truth: tuple[float, float, float]) -> None:
    """A truth three to seven standard deviations from the prior, or 2.5 times its noise."""
    rng = np.random.default_rng(n)
    assert coverage(rng, n, lambda rng: truth, PRIORS["onnxruntime"], 600) >= (0.78 if truth[2] > 0.05 else 0.87)


def coverage(
    rng: np.random.Generator,
    n: int,
    truth: Callable[[np.random.Generator], tuple[float, float, float]],
    prior: Prior,
    trials: int,
) -> float:
    """Fraction of 90% intervals that hold a new network, fitted on ``n`` of a drawn scale, cost per block and noise."""
    hits = 0
    for _ in range(trials):
        scale, per_part_ms, noise = truth(rng)
        parts, wholes = population(rng, n + 1, noise, scale, per_part_ms)
        found = LatencyModel.fit(parts[:n], wholes[:n], level=0.9, prior=prior).predict(parts[n])
        hits += found.low_ms <= wholes[n] <= found.high_ms
    return hits / trials


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


def test_one_whole_moves_both_terms_and_its_interval_is_the_priors() -> None:
    model = LatencyModel.fit(sums((10.0, 4)), [8.0])
    assert model.scale < 1
    assert model.per_part_ms < Prior().per_part_ms
    found = model.predict(PartsSum(10.0, 0.0, 4))
    assert found.ms == pytest.approx(8.0, rel=0.02)
    assert 0.1 < found.high_ms / found.ms - 1 < UNCALIBRATED_RELATIVE
    assert model.calibrated


def test_the_parts_own_uncertainty_widens_the_interval() -> None:
    parts, wholes = population(np.random.default_rng(0), 8, noise=0.0)
    model = LatencyModel.fit(parts, wholes)
    unsure = model.predict(PartsSum(10.0, 2.0, 10))
    sure = model.predict(PartsSum(10.0, 0.0, 10))
    assert unsure.high_ms - unsure.ms == pytest.approx(math.hypot(sure.high_ms - sure.ms, model.scale * 2.0))


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
        (sums((1.0, 1)), [1.0, 2.0], 0.9, "one latency per network"),
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
