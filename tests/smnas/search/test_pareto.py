"""Fronts and hypervolume against definitions written out, on random points with ties, duplicates and NaN."""

import math

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smnas.search.pareto import as_points, front_layers, hypervolume, joined, non_dominated, reference_point, spread

# Few distinct values, so that ties and duplicates are common; NaN and infinities as well.
aps = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, math.nan])
latencies = st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0, math.nan, math.inf])
fronts = st.lists(st.tuples(aps, latencies), max_size=12)


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and a != b


def finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


@given(fronts)
def test_non_dominated_is_the_definition(points: list[tuple[float, float]]) -> None:
    expected = [finite(p) and not any(finite(q) and dominates(q, p) for q in points) for p in points]
    assert non_dominated(as_points(points)).tolist() == expected


@given(fronts)
def test_a_front_joined_point_by_point_is_the_front_of_all(points: list[tuple[float, float]]) -> None:
    front: list[tuple[float, float]] = []
    for point in points:
        front = joined(front, point)
    mask = non_dominated(as_points(points)).tolist()
    assert front == [point for point, on_front in zip(points, mask, strict=True) if on_front]


@given(fronts)
def test_layers_are_repeated_fronts(points: list[tuple[float, float]]) -> None:
    expected = [-1] * len(points)
    left = {i for i, p in enumerate(points) if finite(p)}
    layer = 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in front:
            expected[i] = layer
        left -= front
        layer += 1
    assert front_layers(as_points(points)).tolist() == expected


@given(fronts)
def test_hypervolume_is_the_dominated_area(points: list[tuple[float, float]]) -> None:
    reference = (0.05, 4.5)
    # All coordinates are on a grid of 0.05 AP by 0.5 ms: count the cells that a point dominates.
    cells = 0
    for i in range(1, 12):
        for j in range(9):
            ap, latency = 0.05 * (i + 1) - 1e-9, 0.5 * j + 1e-9
            cells += any(finite(p) and p[0] >= ap and p[1] <= latency for p in points)
    assert hypervolume(as_points(points), reference) == pytest.approx(cells * 0.05 * 0.5, abs=1e-9)


@given(fronts, st.integers(0, 6))
def test_spread_takes_distinct_front_points_greedily(points: list[tuple[float, float]], count: int) -> None:
    array = as_points(points)
    taken = spread(array, count)
    mask = non_dominated(array)
    distinct = {points[i] for i in np.flatnonzero(mask)}
    assert len(taken) == min(count, len(distinct))
    assert len({points[i] for i in taken}) == len(taken)
    assert all(mask[i] for i in taken)
    assert spread(array, count + 1)[: len(taken)] == taken


def test_spread_keeps_its_distance() -> None:
    # Three clusters of near equals: one of each is taken before a second one of any.
    points = [(0.10, 1.0), (0.101, 1.01), (0.30, 5.0), (0.301, 5.01), (0.50, 9.0), (0.501, 9.01)]
    assert {i // 2 for i in spread(as_points(points), 3)} == {0, 1, 2}


def test_no_point_and_one_point() -> None:
    nothing, one = as_points([]), as_points([(0.4, 3.0)])
    assert non_dominated(nothing).tolist() == []
    assert front_layers(nothing).tolist() == []
    assert hypervolume(nothing, (0.0, 1.0)) == 0.0
    assert spread(nothing, 3) == []
    assert non_dominated(one).tolist() == [True]
    assert spread(one, 3) == [0]
    with pytest.raises(ValueError, match="at least one finite point"):
        reference_point(as_points([(math.nan, 1.0)]))


def test_the_reference_is_beyond_every_point() -> None:
    points = as_points([(0.2, 2.0), (0.4, 6.0), (math.nan, 100.0)])
    assert reference_point(points) == pytest.approx((0.18, 6.4))
    low_ap, high_ms = reference_point(as_points([(0.0, 3.0)]))
    assert low_ap < 0.0
    assert high_ms > 3.0


@given(fronts)
def test_fronts_and_hypervolume_are_pymoos(points: list[tuple[float, float]]) -> None:
    pytest.importorskip("pymoo")
    from pymoo.indicators.hv import HV
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    array = as_points(points)
    usable = np.array([finite(p) for p in points], dtype=bool)
    costs = np.column_stack((-array[usable, 0], array[usable, 1]))
    layers = np.full(len(points), -1)
    if len(costs):
        _, ranks = NonDominatedSorting().do(costs, return_rank=True)
        layers[usable] = ranks
    assert front_layers(array).tolist() == layers.tolist()
    assert non_dominated(array).tolist() == (layers == 0).tolist()
    expected = float(HV(ref_point=np.array([-0.05, 4.5]))(costs)) if len(costs) else 0.0
    assert hypervolume(array, (0.05, 4.5)) == pytest.approx(expected, abs=1e-12)


@given(fronts)
def test_fronts_and_hypervolume_are_moocores(points: list[tuple[float, float]]) -> None:
    array = as_points(points)
    usable = array[[finite(p) for p in points]] if points else array
    if not len(usable):
        assert hypervolume(array, (0.05, 4.5)) == 0.0
        return
    maximised = moocore.hypervolume(usable * [1.0, -1.0], ref=[0.05, -4.5], maximise=True)
    assert hypervolume(array, (0.05, 4.5)) == pytest.approx(float(maximised), abs=1e-12)
    ranks = moocore.pareto_rank(usable * [1.0, -1.0], maximise=True).tolist()
    assert [layer for layer in front_layers(array).tolist() if layer >= 0] == ranks
