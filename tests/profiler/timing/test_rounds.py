"""Rounds apart in time against a neighbour that comes and goes, on a stub clock that knows the truth."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from profiler.timing import DEFAULT_ROUNDS
from profiler.timing.measurement import Measurement, StopReason, TimingSettings, WallTimer, measure
from profiler.timing.rounds import agreeing, combine, round_settings, settled

ROUNDS = DEFAULT_ROUNDS
APART_S = 60.0
"""From one round of a workload to its next at least, which other workloads fill."""


class Machine:
    """A clock and a neighbour: bursts of exponential lengths slow every run that overlaps them.

    Args:
        rng: of bursts and noise.
        burst_s: mean length of a burst.
        busy: fraction of the time inside bursts.
        factor: draws the slow-down of a burst.
        noise: relative standard deviation of a run.
    """

    def __init__(
        self, rng: np.random.Generator, burst_s: float, busy: float, factor: Callable[[], float], noise: float = 0.01
    ) -> None:
        self._rng, self._factor, self._noise, self._busy = rng, factor, noise, busy
        self._mean_s = {True: burst_s, False: burst_s * (1 - busy) / busy if busy else math.inf}
        self.now_s = 0.0
        self.runs = 0
        self._enter(rng.random() < busy)

    def _enter(self, inside: bool) -> None:
        self._inside = inside
        self._slow = self._factor() if inside else 1.0
        self._until_s = self.now_s + self._rng.exponential(self._mean_s[inside]) if self._busy else math.inf

    def pass_time(self, seconds: float) -> None:
        """Time in which others run: the neighbour's state afterwards is drawn from the two-state process."""
        self.now_s += seconds
        if not self._busy or self.now_s < self._until_s:
            return
        forgotten = math.exp(-seconds * (1 / self._mean_s[True] + 1 / self._mean_s[False]))
        self._enter(self._rng.random() < self._busy + (self._inside - self._busy) * forgotten)

    def run(self, seconds: float) -> None:
        self.runs += 1
        left = seconds * self._rng.lognormal(0.0, self._noise)
        while self.now_s + left * self._slow > self._until_s:
            left -= (self._until_s - self.now_s) / self._slow
            self.now_s = self._until_s
            self._enter(not self._inside)
        self.now_s += left * self._slow

    def measure(self, seconds: float, settings: TimingSettings | None = None) -> Measurement:
        timer = WallTimer(lambda: round(self.now_s * 1e9))
        return measure(lambda: self.run(seconds), timer=timer, settings=settings)

    def measure_in_rounds(
        self, seconds: float, timing: TimingSettings | None = None, apart_s: float = APART_S
    ) -> Measurement:
        timing = timing or TimingSettings()
        rounds: list[Measurement] = []
        while not settled(rounds, ROUNDS):
            rounds.append(self.measure(seconds, round_settings(timing, ROUNDS)))
            self.pass_time(apart_s)
        return combine(rounds, timing)


def close(measurement: Measurement, seconds: float) -> bool:
    return abs(measurement.median_ms / (seconds * 1e3) - 1) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("steady", [True, False], ids=["one-factor", "factors"])
@pytest.mark.parametrize("burst_s", [0.1, 1.0, 10.0, 60.0])
def test_rounds_find_the_latency_among_bursts_where_one_burst_of_samples_does_not(burst_s: float, steady: bool) -> None:
    rng = np.random.default_rng(round(burst_s * 10) + steady)
    right = one_burst = 0
    runs = 1000
    for number in range(runs):
        seconds, busy, fixed = rng.uniform(0.001, 0.01), rng.uniform(0.0, 0.5), rng.uniform(1.2, 3.0)

        def factor(fixed: float = fixed) -> float:
            return fixed if steady else float(rng.uniform(1.2, 3.0))

        right += close(Machine(rng, burst_s, busy, factor).measure_in_rounds(seconds), seconds)
        if number % 5 == 0:
            one_burst += 5 * close(Machine(rng, burst_s, busy, factor).measure(seconds), seconds)
    assert right >= 0.95 * runs
    assert one_burst < 0.9 * runs, "the interference would be harmless"


def test_rounds_of_a_lone_workload_escape_short_bursts_only() -> None:
    found = {}
    for burst_s in (0.1, 60.0):
        rng = np.random.default_rng(3)
        measured = [Machine(rng, burst_s, 0.5, lambda: 1.5).measure_in_rounds(0.005, apart_s=1.0) for _ in range(300)]
        found[burst_s] = sum(close(one, 0.005) for one in measured) / 300
    assert found[0.1] >= 0.95
    assert found[60.0] == pytest.approx(0.5, abs=0.1), "inside a burst or outside, as one burst of samples"


@pytest.mark.parametrize("noise", [0.002, 0.01, 0.03])
def test_on_a_quiet_machine_rounds_cost_no_more_and_their_intervals_hold(noise: float) -> None:
    rng = np.random.default_rng(7)
    samples = {"rounds": 0, "one burst": 0}
    held = near = 0
    for _ in range(300):
        seconds = rng.uniform(0.001, 0.05)
        in_rounds = Machine(rng, 1.0, 0.0, lambda: 1.0, noise).measure_in_rounds(seconds)
        samples["rounds"] += len(in_rounds.samples_ns)
        samples["one burst"] += len(Machine(rng, 1.0, 0.0, lambda: 1.0, noise).measure(seconds).samples_ns)
        held += in_rounds.low_ms <= seconds * 1e3 <= in_rounds.high_ms
        near += abs(in_rounds.median_ms / (seconds * 1e3) - 1) <= max(0.02, noise)
    assert samples["rounds"] <= 1.2 * samples["one burst"]
    assert near >= 0.95 * 300
    assert 0.85 <= held / 300 <= 1.0


def of(*medians_ms: float) -> list[Measurement]:
    return [Measurement((ms * 1e6, ms * 1e6), 1, ms, ms * 0.999, ms * 1.001, StopReason.CONVERGED) for ms in medians_ms]


def test_the_lowest_rounds_that_agree_are_kept() -> None:
    assert [one.median_ms for one in agreeing(of(1.5, 1.0, 1.02, 1.01, 2.0))] == [1.0, 1.02, 1.01]
    assert combine(of(1.5, 1.0, 1.02, 1.01, 2.0), TimingSettings()).median_ms == 1.01


def test_further_rounds_are_taken_until_three_agree_or_the_limit() -> None:
    assert not settled([], 6)
    assert not settled(of(1, 1, 1, 1, 1), 6)
    assert settled(of(1, 1, 1, 1, 1, 1), 6)
    assert not settled(of(1.5, 1, 1, 1.4, 1.3, 1.2), 6)
    assert settled(of(1.5, 1, 1, 1.4, 1.3, 1.2, 1), 6)
    assert settled(of(*np.linspace(1, 3, 12)), 6)


def test_rounds_that_disagree_to_the_end_say_so() -> None:
    found = combine(of(*np.linspace(1, 3, 12)), TimingSettings())
    assert found.stop_reason is StopReason.ROUNDS_DISAGREE
    assert (found.low_ms, found.median_ms, found.high_ms) == pytest.approx((1 / (1 + 4 / 11), 1.0, 1 + 4 / 11))


@pytest.mark.parametrize("burst_s", [1.0, 60.0])
def test_intervals_of_rounds_that_disagree_hold_the_latency(burst_s: float) -> None:
    """On a machine that a neighbour slows for most of the time; to the slowest round would be twice as wide."""
    rng = np.random.default_rng(1)
    held, widths = [], []
    for _ in range(250):
        seconds = rng.uniform(0.001, 0.01)
        found = Machine(rng, burst_s, 0.7, lambda: float(rng.uniform(1.2, 1.8))).measure_in_rounds(seconds)
        if found.stop_reason is StopReason.ROUNDS_DISAGREE:
            held.append(found.low_ms <= seconds * 1e3 <= found.high_ms)
            widths.append(found.relative_half_width)
    assert len(held) > 40
    assert np.mean(held) >= 0.85
    assert np.median(widths) < 0.3


def test_noise_within_rounds_does_not_make_any_two_agree() -> None:
    noisy = [replace(one, low_ms=one.median_ms / 2, high_ms=one.median_ms * 2) for one in of(1.0, 1.1, 1.7, 1.2, 2.0)]
    assert [one.median_ms for one in agreeing(noisy)] == [1.0, 1.1]


def test_a_single_round_is_the_measurement() -> None:
    (one,) = of(2.0)
    assert combine([one], TimingSettings()) is one
    assert settled([one], 1)
    assert round_settings(TimingSettings(), 1) == TimingSettings()
