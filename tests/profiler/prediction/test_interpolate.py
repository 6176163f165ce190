"""Guessed latencies: a known law, held-out coverage, and the row worth most by brute force."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from profiler.backends import get_backend
from profiler.measuring.profile import ProfileSettings, profile_workloads
from profiler.prediction.audit import spearman
from profiler.prediction.interpolate import FewRowsError, Interpolation, value_of_measuring
from profiler.prediction.predict import error_quantile
from profiler.table.latency_table import LatencyTable
from profiler.timing.measurement import TimingSettings
from profiler.work import Work
from profiler.workload import TensorSpec, Workload


def convolution(channels: int, cells: int, layers: int = 1, family: str = "Block") -> Work:
    parameters = 9 * channels**2 * layers
    return Work(
        family, 2 * parameters * cells, parameters + 2 * channels * cells, 0, parameters, channels, cells, layers
    )


def law_ms(work: Work, rng: np.random.Generator, noise: float) -> float:
    """A roofline with a start, as devices have one: not the form that is fitted."""
    bound = max(work.flops / 2e10, work.float_elements * 4 / 1e10) * 1e3
    return (0.01 + bound) * float(np.exp(noise * rng.standard_normal()))


def drawn(rng: np.random.Generator, count: int) -> list[Work]:
    return [
        convolution(int(rng.choice([8, 12, 16, 24, 32, 48, 64])), int(rng.choice([25, 100, 400, 1600])), int(layers))
        for layers in rng.integers(1, 4, count)
    ]


def test_intervals_hold_new_rows_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(0)
    inside, errors = [], []
    for _ in range(8):
        works = drawn(rng, 40)
        found = Interpolation.fit(works, [law_ms(work, rng, 0.03) for work in works], level=0.9)
        fresh = drawn(rng, 40)
        truth = [law_ms(work, rng, 0.03) for work in fresh]
        guesses = found.guess(fresh)
        inside += [guess.low_ms <= ms <= guess.high_ms for guess, ms in zip(guesses, truth, strict=True)]
        errors += [abs(guess.ms / ms - 1) for guess, ms in zip(guesses, truth, strict=True)]
    assert 0.84 <= np.mean(inside) <= 0.97
    assert np.median(errors) < 0.05


def test_far_from_every_row_the_interval_is_wider() -> None:
    rng = np.random.default_rng(1)
    works = drawn(rng, 30)
    found = Interpolation.fit(works, [law_ms(work, rng, 0.02) for work in works])
    near, far = found.guess([convolution(24, 400), convolution(2048, 400)])
    assert far.high_ms / far.low_ms > 1.5 * near.high_ms / near.low_ms


def test_a_family_of_few_rows_shares_the_common_law() -> None:
    rng = np.random.default_rng(2)
    works = [*drawn(rng, 20), convolution(8, 100, family="Rare")]
    found = Interpolation.fit(works, [law_ms(work, rng, 0.02) for work in works])
    common, own = found.guess([convolution(16, 100, family="Rare"), convolution(16, 100)])
    assert (common.family, common.rows) == ("all", 21)
    assert (own.family, own.rows) == ("Block", 20)
    with pytest.raises(FewRowsError, match="6 measured rows"):
        Interpolation.fit(works[:5], [1.0] * 5)


def test_far_from_its_family_a_block_is_guessed_from_all_rows() -> None:
    """Rows of nearly one size have a slope that is all noise, and a guess far from them would be anything."""
    rng = np.random.default_rng(4)
    near = [convolution(32, cells, family="Neck") for cells in (100, 101, 102, 103, 104, 105)]
    works = [*drawn(rng, 30), *near]
    found = Interpolation.fit(works, [law_ms(work, rng, 0.05) for work in works])
    inside, far = found.guess([convolution(32, 103, family="Neck"), convolution(12, 1600, family="Neck")])
    assert (inside.family, far.family) == ("Neck", "all")
    truth = law_ms(convolution(12, 1600), rng, 0.0)
    assert truth / 1.5 < far.ms < truth * 1.5


def test_the_value_of_a_row_is_the_variance_that_conditioning_on_it_removes() -> None:
    rng = np.random.default_rng(3)
    half = rng.standard_normal((5, 5))
    covariance, noise = half @ half.T, rng.uniform(0.01, 0.1, 5)
    counts = rng.integers(0, 3, (7, 5))
    values = value_of_measuring(counts, covariance, noise)
    before = np.trace(counts @ covariance @ counts.T)
    for index in range(5):
        # The joint distribution of all rows and one measurement of this row, conditioned by the Schur complement.
        column = covariance[:, [index]]
        after = covariance - column @ column.T / (covariance[index, index] + noise[index])
        assert values[index] == pytest.approx(1 - np.trace(counts @ after @ counts.T) / before)


def test_the_row_to_measure_next_is_the_long_unknown_one_that_many_use() -> None:
    rng = np.random.default_rng(4)
    works = drawn(rng, 30)
    found = Interpolation.fit(works, [law_ms(work, rng, 0.02) for work in works])
    wanted = [convolution(8, 25), convolution(64, 1600, 3), convolution(96, 6400, 3)]
    counts = np.array([[1, 1, 1]] * 9 + [[5, 0, 0]])
    assert int(value_of_measuring(counts, *found.covariance(wanted)).argmax()) == 2
    assert int(value_of_measuring(counts[-1:], *found.covariance(wanted)).argmax()) == 0  # nobody else uses the others


def test_variances_and_intervals_say_the_same_of_a_guess() -> None:
    rng = np.random.default_rng(5)
    works = drawn(rng, 30)
    found = Interpolation.fit(works, [law_ms(work, rng, 0.02) for work in works], level=0.9)
    wanted = [convolution(8, 25), convolution(64, 1600, 3), convolution(2048, 400)]
    joint, noise = found.covariance(wanted)
    for place, guess in enumerate(found.guess(wanted)):
        deviation = math.sqrt(joint[place, place] + noise[place]) / guess.ms
        assert math.log(guess.high_ms / guess.ms) == pytest.approx(norm.ppf(0.95) * deviation, rel=1e-3)


@pytest.mark.slow
def test_real_rows_are_guessed_from_each_other(tmp_path: Path) -> None:
    """Convolutions measured here and now, each predicted by a fit without it."""
    sizes = [(channels, side) for channels in (8, 16, 24, 32, 48) for side in (8, 16, 24, 32, 40)]
    torch.manual_seed(0)
    workloads = [
        Workload(f"{c}x{s}", f"{c}x{s}", nn.Conv2d(c, c, 3, padding=1), (TensorSpec((1, c, s, s)),)) for c, s in sizes
    ]
    quick = ProfileSettings(timing=TimingSettings(time_limit_s=0.05, warmup_s=0.005))
    with LatencyTable(tmp_path / "latency.db") as table:
        profile_workloads(workloads, table, get_backend("eager"), rng=np.random.default_rng(0), settings=quick)
        rows = list(table.rows())
    works = [work for row in rows if (work := Work.from_dict(row.conditions["work"])) is not None]
    assert len(works) == len(sizes)
    medians = [row.median_ms or 0.0 for row in rows]
    guesses = []
    for left_out, work in enumerate(works):
        others = [index for index in range(len(works)) if index != left_out]
        found = Interpolation.fit([works[index] for index in others], [medians[index] for index in others], level=0.9)
        guesses += found.guess([work])
    inside = sum(guess.low_ms <= ms <= guess.high_ms for guess, ms in zip(guesses, medians, strict=True))
    assert inside >= 18  # 22.5 of 25 are meant to be, fewer than 18 happens once in a hundred times
    # And not because the intervals say nothing.
    assert (spearman([guess.ms for guess in guesses], medians) or 0.0) > 0.7


@pytest.mark.parametrize(("n", "rank"), [(20, 19), (29, 27), (60, 55)])
def test_many_left_out_rows_give_the_conformal_interval(n: int, rank: int) -> None:
    """Of n + 1 exchangeable errors the new one is among the ``ceil(0.9 (n + 1))`` smallest nine times in ten."""
    errors = np.random.default_rng(n).permutation(np.arange(1.0, n + 1)) * np.where(np.arange(n) % 2, 1, -1)
    assert error_quantile(errors, n - 1, 0.9, least_spread=1.0) == rank
