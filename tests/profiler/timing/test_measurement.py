"""Timing: the interval is the binomial one, and sampling stops for the stated reason."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from profiler.timing.measurement import Measurement, StopReason, TimingSettings, WallTimer, measure, median_interval


class FakeClock:
    """A clock that moves only when the workload says so."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def workload(self, durations_ns: Iterator[int]) -> Callable[[], None]:
        def run() -> None:
            self.now += next(durations_ns)

        return run


def constant(value: int) -> Iterator[int]:
    while True:
        yield value


def normal(mean: float, deviation: float, seed: int = 0) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield max(1, round(rng.normal(mean, deviation)))


def timed(durations: Iterator[int], settings: TimingSettings | None = None) -> tuple[Measurement, FakeClock]:
    clock = FakeClock()
    return measure(clock.workload(durations), timer=WallTimer(clock), settings=settings), clock


@given(n=st.integers(1, 400), confidence=st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_the_interval_has_scipys_binomial_ranks(n: int, confidence: float) -> None:
    low, high = median_interval([float(i) for i in range(1, n + 1)], confidence)
    # The widest symmetric pair of ranks (k, n + 1 - k) that still covers: scipy's quantile of the coin tosses.
    k = max(1, int(stats.binom.ppf((1 - confidence) / 2, n, 0.5)))
    if 1 - 2 * stats.binom.cdf(k, n, 0.5) >= confidence:
        k += 1  # ppf's quantile itself is met exactly
    assert (low, high) == (float(k), float(n + 1 - k))
    if n >= 6 and confidence <= 0.95:
        assert 1 - 2 * stats.binom.cdf(k - 1, n, 0.5) >= confidence


def test_the_interval_agrees_with_scipys_quantile_test() -> None:
    samples = np.random.default_rng(3).lognormal(size=57)
    expected = stats.quantile_test(samples, q=0, p=0.5).confidence_interval(confidence_level=0.95)
    low, high = median_interval(samples.tolist(), 0.95)
    # scipy's two one-sided ends each hold 97.5%; they are the same order statistics up to one rank.
    ordered = np.sort(samples)
    assert abs(int(np.searchsorted(ordered, low)) - int(np.searchsorted(ordered, expected.low))) <= 1
    assert abs(int(np.searchsorted(ordered, high)) - int(np.searchsorted(ordered, expected.high))) <= 1


def test_the_interval_covers_the_true_median_as_often_as_it_claims() -> None:
    rng = np.random.default_rng(0)
    true_median = math.exp(0.0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval(rng.lognormal(0.0, 0.5, size=25).tolist(), 0.95)
        hits += low <= true_median <= high
    assert 0.94 <= hits / 2000 <= 0.99


def test_thousands_of_samples_do_not_underflow() -> None:
    low, high = median_interval([float(i) for i in range(5000)], 0.95)
    assert low == pytest.approx(2500 - 1.96 * math.sqrt(5000) / 2, abs=3)
    assert high == pytest.approx(2500 + 1.96 * math.sqrt(5000) / 2, abs=3)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        median_interval([])


def test_a_steady_workload_converges_on_the_fewest_samples() -> None:
    measurement, _ = timed(constant(1_000_000))
    assert measurement.stop_reason is StopReason.CONVERGED
    assert measurement.median_ms == measurement.low_ms == measurement.high_ms == 1.0
    assert measurement.samples_ns == (1e6,) * TimingSettings().min_samples
    assert measurement.inner_runs == 1
    assert "stopped" not in str(measurement)


def test_a_noisy_workload_takes_more_samples_until_it_is_narrow() -> None:
    settings = TimingSettings(time_limit_s=1000, max_samples=100_000)
    steady, _ = timed(normal(1e6, 2e4), settings)
    noisy, _ = timed(normal(1e6, 1e5), settings)
    for measurement in (steady, noisy):
        assert measurement.stop_reason is StopReason.CONVERGED
        assert measurement.relative_half_width <= 0.01
        assert measurement.low_ms <= 1.0 <= measurement.high_ms
    assert len(noisy.samples_ns) > 5 * len(steady.samples_ns)
    # 95% of a normal's median: 1.96 * 1.2533 * deviation / sqrt(n) = 1% of the mean.
    assert len(noisy.samples_ns) == pytest.approx((1.96 * 1.2533 * 0.1 / 0.01) ** 2, rel=0.5)


def test_the_time_limit_is_reported_and_the_interval_stays_honest() -> None:
    measurement, clock = timed(normal(1e6, 4e5), TimingSettings(time_limit_s=0.1))
    assert measurement.stop_reason is StopReason.TIME_LIMIT
    assert measurement.relative_half_width > 0.01
    assert clock.now < 0.11e9
    assert "stopped by time_limit" in str(measurement)


def test_too_many_samples_is_reported() -> None:
    measurement, _ = timed(normal(1e6, 4e5), TimingSettings(max_samples=50, time_limit_s=100))
    assert measurement.stop_reason is StopReason.MAX_SAMPLES
    assert len(measurement.samples_ns) == 50


@pytest.mark.parametrize("least", [1, 3])
def test_runs_longer_than_the_limit_still_yield_the_least_samples(least: int) -> None:
    measurement, clock = timed(constant(5_000_000_000), TimingSettings(least_samples=least))
    assert measurement.stop_reason is StopReason.TIME_LIMIT
    assert measurement.samples_ns == (5e9,) * least
    assert clock.now == 5_000_000_000 * (1 + least)  # one warm-up run


def test_warm_up_runs_are_not_samples() -> None:
    def slow_start() -> Iterator[int]:
        yield from [500_000_000, 90_000_000, 20_000_000]
        yield from constant(1_000_000)

    measurement, _ = timed(slow_start())
    assert set(measurement.samples_ns) == {1e6}


def test_short_runs_are_timed_in_batches_and_reported_per_run() -> None:
    measurement, _ = timed(constant(10_000))
    assert measurement.inner_runs == 20
    assert measurement.median_ms == pytest.approx(0.01)
    assert all(sample * measurement.inner_runs >= 200_000 for sample in measurement.samples_ns)


def test_slow_first_runs_do_not_say_how_long_a_run_takes() -> None:
    settings = TimingSettings(warmup_runs=6, warmup_s=0.0, time_limit_s=10.0)
    first = chain([5_000_000] * 3, constant(20_000))
    measurement, _ = timed(first, settings)
    assert measurement.inner_runs == 10, "as many as last 0.2 ms by the later warm-up runs"


def test_a_free_run_does_not_divide_by_zero() -> None:
    clock = FakeClock()
    ticks = constant(0)

    def run() -> None:
        clock.now += next(ticks)

    # The clock never moves, so only max_samples can end it; warm-up must not wait for time either.
    settings = TimingSettings(max_samples=20, warmup_s=0.0)
    measurement = measure(run, timer=WallTimer(clock), settings=settings)
    assert measurement.median_ms == 0.0
    assert measurement.relative_half_width == math.inf


def test_the_garbage_collector_rests_while_sampling_and_wakes_after_an_error() -> None:
    states: list[bool] = []

    def run() -> None:
        states.append(gc.isenabled())
        if len(states) == 5:
            raise RuntimeError("device lost")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="device lost"):
        measure(run)
    assert not any(states)
    assert gc.isenabled()


def test_a_real_sleep_is_timed_as_long_as_it_lasts() -> None:
    measurement = measure(
        lambda: time.sleep(0.005), settings=TimingSettings(time_limit_s=0.5, relative_half_width=0.05)
    )
    assert 5.0 <= measurement.median_ms < 8.0
    assert measurement.low_ms <= measurement.median_ms <= measurement.high_ms


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": 1.0},
        {"relative_half_width": 0.0},
        {"min_samples": 0},
        {"min_samples": 30, "max_samples": 20},
        {"time_limit_s": 0.0},
        {"warmup_runs": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must hold"):
        TimingSettings(**wrong)  # type: ignore[arg-type]


def test_what_is_called_before_each_sample_is_not_timed() -> None:
    now = [0]
    calls: list[str] = []

    def spend(nanoseconds: int, name: str) -> None:
        now[0] += nanoseconds
        calls.append(name)

    found = measure(
        lambda: spend(1_000, "run"),
        timer=WallTimer(lambda: now[0]),
        settings=TimingSettings(warmup_s=0.0),
        before_each=lambda: spend(1_000_000, "flush"),
    )
    assert (found.median_ms, found.inner_runs) == (0.001, 1)
    assert calls == ["flush", "run"] * (len(calls) // 2)
