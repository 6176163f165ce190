"""Estimates: the roofline by hand, and never taken for a measurement."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from profiler.devices import gpu_sheets
from profiler.errors import UserError
from profiler.prediction.estimate import (
    ESTIMATE_BACKEND,
    Roof,
    estimate_errors,
    estimate_row,
    estimate_target,
    estimate_workloads,
)
from profiler.table.latency_table import LatencyTable, Row, Target
from profiler.work import Work
from profiler.workload import TensorSpec, Workload

V100 = gpu_sheets()["v100"]


def linear(size: int, rows: int) -> Workload:
    with torch.device("meta"):
        module = nn.Linear(size, size, bias=False)
    return Workload(f"linear {size}", f"linear {size}|{rows}x{size}", module, (TensorSpec((rows, size)),))


def test_a_large_product_is_bound_by_its_operations() -> None:
    row = estimate_row(linear(4096, 4096), V100)
    compute_ms = 2 * 4096**3 / 15.7e12 * 1e3
    assert row.median_ms == pytest.approx(compute_ms + 0.005)
    assert row.low_ms == pytest.approx(compute_ms)
    assert row.high_ms is not None
    assert row.high_ms > 5 * compute_ms


def test_a_thin_product_is_bound_by_its_weights() -> None:
    row = estimate_row(linear(4096, 1), V100)
    moved = 4 * (4096**2 + 2 * 4096)
    assert row.low_ms == pytest.approx(moved / 900e9 * 1e3)
    half = estimate_row(linear(4096, 1), V100, precision="fp16")
    assert half.low_ms == pytest.approx(moved / 2 / 900e9 * 1e3)


def test_bytes_count_every_input_output_and_weight_once() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

        def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            return self.norm(x).gather(1, index), index

    inputs = (TensorSpec((7, 5)), TensorSpec((7, 2), "int64", 0, 5))
    floats = 7 * 5 + 4 * 5 + 7 * 2
    integers = 2 * 7 * 2 + 1  # in and out, and the normalisation's counter
    work = Work.of(Workload("both", "both", Both().eval(), inputs))
    assert work.bytes_moved() == 4 * floats + 8 * integers
    assert work.bytes_moved(2) == 2 * floats + 8 * integers
    assert (work.family, work.channels, work.cells, work.layers) == ("Both", 5, 7, 1)
    assert Work.from_dict(work.as_dict()) == work
    assert Work.from_dict({**work.as_dict(), "more": 1}) is None
    assert Work.from_dict(None) is None


def test_a_roof_read_off_runs_is_exceeded_by_none_of_them() -> None:
    runs = [(Work.of(linear(size, rows)), ms) for size, rows, ms in ((64, 64, 0.1), (512, 1, 0.2), (16, 16, 0.05))]
    roof = Roof.reached(runs)
    bounds = [roof.bound_ms(work) / ms for work, ms in runs]
    assert max(bounds) == pytest.approx(1)  # some run reaches it, by its operations or by its bytes
    assert roof.compute_ms(runs[0][0]) == pytest.approx(0.1)
    assert roof.memory_ms(runs[1][0]) == pytest.approx(0.2)


def test_estimates_are_labelled_and_kept_apart(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "latency.db") as table:
        assert estimate_workloads([linear(8, 1), linear(8, 1), linear(16, 1)], table, V100) == 2
        assert estimate_workloads([linear(8, 1), linear(32, 1)], table, V100) == 1
        rows = list(table.rows())
        assert {row.target for row in rows} == {estimate_target(V100)}
    for row in rows:
        assert row.target.backend == ESTIMATE_BACKEND
        assert row.stop_reason == "estimate"
        assert "not measured" in row.conditions["estimate"]
        assert row.samples_ms.size == 0


def test_a_precision_without_figures_is_refused() -> None:
    with pytest.raises(UserError, match="one of fp32, fp16, but got 'int8'"):
        estimate_row(linear(8, 1), V100, precision="int8")


def test_estimates_are_held_against_what_was_measured(tmp_path: Path) -> None:
    """Three blocks of a V100: one at twice its estimate, one below any bound, one slower than the worst."""
    target = Target("Tesla V100-SXM2-16GB", "onnxruntime", "1.0")
    with LatencyTable(tmp_path / "latency.db") as table:
        assert estimate_errors(table) == []
        for size, factor in ((512, 2.0), (1024, 0.5), (2048, 50.0)):
            one = linear(size, 64)
            ms = factor * (estimate_row(one, V100).median_ms or 0.0)
            conditions = {"work": Work.of(one).as_dict()}
            table.add(Row(one.key, one.name, target, median_ms=ms, low_ms=ms, high_ms=ms, conditions=conditions))
        table.add(Row("old", "old", target, median_ms=1.0, low_ms=1.0, high_ms=1.0))
        estimate_workloads([linear(8, 1)], table, V100)
        other = Target("some processor", "onnxruntime", "1.0")
        table.add(Row("cpu", "cpu", other, median_ms=1.0, low_ms=1.0, high_ms=1.0))
        (found,) = estimate_errors(table)
    assert (found.target, found.rows) == (target, 3)
    assert found.median_ratio == pytest.approx(2.0)
    assert found.inside == pytest.approx(1 / 3)
