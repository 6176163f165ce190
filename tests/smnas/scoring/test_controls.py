"""What a score without training is held against: tau as scipy has it, bands as they are defined, and no flattery."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

from smnas.scoring.controls import BAND, TrainedDetector, control_table
from smnas.scoring.entropy import ENTROPY_FORMS, detector_entropy
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space

STRUCTURES = load_space("nano").structures[::97][:40]


def detectors(ap: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[TrainedDetector]:
    rng = np.random.default_rng(1)
    flops = rng.uniform(1e8, 1e9, len(ap))
    return [
        TrainedDetector(a, float(value), float(f), float(rng.uniform(1e5, 1e6)), float(f / 1e8 + rng.normal()))
        for a, value, f in zip(STRUCTURES, ap, flops, strict=False)
    ]


def entropies(found: list[TrainedDetector]) -> list[float]:
    return [detector_entropy(detector.architecture) for detector in found]


@pytest.mark.parametrize("name", ENTROPY_FORMS)
def test_the_score_is_first_and_perfect_where_ap_follows_it(name: str) -> None:
    form = ENTROPY_FORMS[name]
    ap = np.array([detector_entropy(a, form) for a in STRUCTURES])
    groups = control_table(detectors(ap), ap.tolist(), name)
    assert [group.name for group in groups] == ["all", "FLOPs band", "latency band"]
    for group in groups:
        assert [row.name for row in group.rows] == [name, "layers", "FLOPs", "parameters", "negative latency"]
        assert group.rows[0].tau == pytest.approx(1.0)
    assert groups[0].detectors == 40
    # random costs are worth nothing, and the interval says so; a count of layers comes close to the score
    assert groups[0].rows[2].low < 0 < groups[0].rows[2].high
    assert 0.5 < groups[0].rows[1].tau < 1.0


def test_a_band_is_the_fullest_one_of_its_width() -> None:
    rng = np.random.default_rng(0)
    found = detectors(rng.uniform(size=40))
    for group, cost in zip(
        control_table(found, entropies(found), "entropy")[1:],
        ([d.flops for d in found], [d.latency_ms for d in found]),
        strict=True,
    ):
        assert group.low is not None
        assert group.high is not None
        assert group.high <= BAND * group.low
        assert group.detectors == max(sum(low <= value <= BAND * low for value in cost) for low in cost)
        assert group.detectors == sum(group.low <= value <= group.high for value in cost)


def test_a_band_holds_both_of_its_limits() -> None:
    found = [
        replace(d, flops=f) for d, f in zip(detectors(np.linspace(0, 1, 5)), (1.0, 2.0, 3.0, 5.0, 8.0), strict=True)
    ]
    band = control_table(found, entropies(found), "entropy")[1]
    assert (band.low, band.high, band.detectors) == (2.0, 3.0, 2), "3 is 1.5 times 2, 8 more than 1.5 times 5"


@pytest.mark.slow
def test_intervals_come_from_resampling_detectors() -> None:
    found = detectors(np.random.default_rng(3).uniform(size=30))
    row = control_table(found, entropies(found), "entropy")[0].rows[2]
    flops, ap = np.array([d.flops for d in found]), np.array([d.ap for d in found])
    rng = np.random.default_rng(7)
    drawn = [kendalltau(flops[rows], ap[rows]).statistic for rows in rng.integers(0, 30, (1000, 30))]
    assert row.tau == pytest.approx(kendalltau(flops, ap).statistic)
    assert (row.low, row.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.04)


def test_few_detectors_and_unknown_latencies_have_no_tau() -> None:
    four = detectors(np.array([0.1, 0.2, 0.3, 0.4]))
    few = control_table(four, entropies(four), "entropy")
    assert few[0].detectors == 4
    assert all(math.isnan(row.tau) for group in few for row in group.rows)
    unknown = [
        TrainedDetector(Architecture.parse(str(d.architecture)), d.ap, d.flops, d.parameters)
        for d in detectors(np.linspace(0, 1, 20))
    ]
    groups = control_table(unknown, entropies(unknown), "entropy")
    assert groups[2].detectors == 0
    assert math.isnan(groups[0].rows[4].tau)
    assert math.isfinite(groups[0].rows[0].tau)
