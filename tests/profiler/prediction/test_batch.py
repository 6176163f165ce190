"""Many at once: equal to one by one, for random tables and networks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.prediction.batch import LatencyArrays
from profiler.prediction.interpolate import Guess
from profiler.prediction.predict import FailedPartError, LatencyModel, MissingPartsError, sum_parts
from profiler.table.latency_table import Row, Target

TARGET = Target("device", "backend", "1")
MODEL = LatencyModel(0.9, 0.01, 0.05, calibrated=True)


def row(key: str, median_ms: float | None, half_ms: float = 0.0) -> Row:
    if median_ms is None:
        return Row(key, key, TARGET, status="failed", reason="it did not run")
    return Row(key, key, TARGET, median_ms=median_ms, low_ms=median_ms - half_ms, high_ms=median_ms + 2 * half_ms)


_ROWS = st.lists(st.tuples(st.floats(0.001, 100.0), st.floats(0.0, 1.0, allow_subnormal=False)), min_size=1, max_size=8)


@settings(max_examples=60)
@given(_ROWS, st.data())
def test_a_population_is_its_networks_one_by_one(values: list[tuple[float, float]], data: st.DataObject) -> None:
    rows = {f"k{index}": row(f"k{index}", ms, half * ms) for index, (ms, half) in enumerate(values)}
    networks = data.draw(st.lists(st.lists(st.sampled_from(sorted(rows)), min_size=1, max_size=9), max_size=6))
    arrays = LatencyArrays.of(rows)
    sums = arrays.sum(arrays.find(networks))
    many = MODEL.predict_many(sums.ms, sums.count, sums.half_ms)
    single = [MODEL.predict(sum_parts(keys, rows)) for keys in networks]
    for field in ("ms", "low_ms", "high_ms"):
        np.testing.assert_allclose(getattr(many, field), [getattr(one, field) for one in single], rtol=1e-12)


def test_missing_parts_are_all_named_once() -> None:
    arrays = LatencyArrays.of({"a": row("a", 1.0)})
    with pytest.raises(MissingPartsError) as caught:
        arrays.find([["a", "b"], ["c", "b"]])
    assert caught.value.keys == ("b", "c")


def test_a_failed_part_is_a_network_without_a_latency() -> None:
    rows = {"a": row("a", 1.0), "broken": row("broken", None)}
    arrays = LatencyArrays.of(rows)
    sums = arrays.sum(arrays.find([["a"], ["a", "broken"], []]))
    assert sums.ms[0] == 1.0
    assert math.isnan(sums.ms[1])
    assert (sums.ms[2], sums.count[2]) == (0.0, 0.0)
    with pytest.raises(FailedPartError):
        sum_parts(["a", "broken"], rows)


def test_guesses_stand_in_for_missing_rows_only_and_err_together() -> None:
    rows = {"a": row("a", 1.0, 0.2)}  # half-width 0.3
    guesses = {key: Guess(2.0, 1.6, 2.4, "all", 9) for key in ("a", "b", "c")}
    arrays = LatencyArrays.of(rows, guesses)
    sums = arrays.sum(arrays.find([["a"], ["a", "b"], ["a", "b", "c"]]))
    np.testing.assert_allclose(sums.ms, [1.0, 3.0, 5.0])
    np.testing.assert_allclose(sums.half_ms, [0.3, math.hypot(0.3, 0.4), math.hypot(0.3, 0.8)])
