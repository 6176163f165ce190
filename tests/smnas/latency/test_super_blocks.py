"""The latency of many super-block backbones at once, against a table whose every row follows a known law."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize

from profiler.backends.eager import EagerBackend
from profiler.devices import cpu_device
from profiler.errors import UserError
from profiler.measuring.profile import measurement_target
from profiler.table.latency_table import LatencyTable, Row
from smnas.latency.detector_latency import DetectorLatency
from smnas.latency.prediction import end_to_end_key
from smnas.latency.super_blocks import fit_super_block_latency, non_negative_least_squares
from smnas.latency.workloads import detector_workloads
from smnas.space.architecture import Architecture
from smnas.space.families.super_blocks import MoveBounds, SuperBlockPopulation, SuperBlockSpec, mutate_super_blocks

FRAME = Architecture.parse("k1kxk1_16_32b16k3r1-64b16k5r2-64b32k3r1+fpn_2-4_16+norpn+fcos_16_1+96x64")
CLASSES = 3


class IdleBackend(EagerBackend):
    """Refuses to run anything: what is predicted with it comes from the table."""

    def prepare(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("measured, though the table holds it")


def detectors(count: int, seed: int) -> list[Architecture]:
    assert isinstance(FRAME.backbone, SuperBlockSpec)
    walked, _ = mutate_super_blocks(
        SuperBlockPopulation.copies(FRAME.backbone, count), MoveBounds(layers=13), np.random.default_rng(seed), 12
    )
    return [Architecture.parse(str(FRAME).replace(str(FRAME.backbone), str(walked.spec(row)))) for row in range(count)]


def fill(table: LatencyTable, backend: EagerBackend, architecture: Architecture, noise: float = 0.0) -> None:
    """A part takes 0.05 ms and 2 ms a gigaFLOP, as PyTorch counts them; with noise, off by a share its key decides."""
    target = measurement_target(backend)
    for part in detector_workloads(architecture, CLASSES):
        if table.lookup(part.key, target) is None:
            ms = (0.05 + 2e-9 * part.flops) * (1 + noise * (sum(part.key.encode()) % 21 - 10) / 10)
            table.add(Row(part.key, "part", target, median_ms=ms, low_ms=ms, high_ms=ms))


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 1e-6), (0.1, 0.08)])
def test_a_population_is_predicted_as_each_of_its_detectors(noise: float, tolerance: float, tmp_path: Path) -> None:
    backend = IdleBackend(cpu_device(), 1)
    with LatencyTable(tmp_path / "latency.db") as table:
        known, new = detectors(5, 0), detectors(4, 1)
        for architecture in [*known, *new]:
            fill(table, backend, architecture, noise)
        latency = DetectorLatency(CLASSES, backend, table)
        fitted = fit_super_block_latency(known, latency)
        population = SuperBlockPopulation.of([a.backbone for a in new])  # type: ignore[misc]
        expected = [latency.measure_and_predict(a).ms for a in new]
        assert fitted(population) == pytest.approx(expected, rel=tolerance)
        assert fitted.relative_error == pytest.approx(0.0, abs=tolerance)
        if noise:
            assert fitted.relative_error > 1e-4, "what is not explained is said"
            without = [
                float(
                    fit_super_block_latency([other for other in known if other is not one], latency).sums_ms(
                        SuperBlockPopulation.of([one.backbone])  # type: ignore[list-item]
                    )[0]
                )
                for one in known
            ]
            errors = [ms / latency.predictor.parts_sum(one).ms - 1 for ms, one in zip(without, known, strict=True)]
            assert fitted.relative_error == pytest.approx(np.sqrt(np.mean(np.square(errors)))), "each left out in turn"


@pytest.mark.slow
def test_the_fit_goes_through_the_calibration_on_wholes(tmp_path: Path) -> None:
    backend = IdleBackend(cpu_device(), 1)
    with LatencyTable(tmp_path / "latency.db") as table:
        known = detectors(3, 0)
        for architecture in known:
            fill(table, backend, architecture)
        latency = DetectorLatency(CLASSES, backend, table)
        parts = latency.predictor.measured_parts(known[0])
        assert [part.name for part in parts][:2] == ["backbone.stem", "backbone.stage1.block1"]
        assert sum(part.ms for part in parts) == pytest.approx(latency.measure_and_predict(known[0]).ms)
        plain = fit_super_block_latency(known, latency)
        target = measurement_target(backend)
        for architecture in known[:2]:
            key = end_to_end_key(architecture, CLASSES, 1)
            ms = 0.7 * sum(part.ms for part in latency.predictor.measured_parts(architecture))
            table.add(Row(key, "whole", target, "whole", median_ms=ms, low_ms=ms, high_ms=ms))
        calibrated = DetectorLatency(CLASSES, backend, table)
        calibrated.measure_calibration(known[:2])
        population = SuperBlockPopulation.of([a.backbone for a in known])  # type: ignore[misc]
        assert fit_super_block_latency(known, calibrated)(population) == pytest.approx(
            0.7 * plain(population), rel=0.02
        )


def test_what_can_not_be_fitted_is_refused(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "latency.db") as table:
        latency = DetectorLatency(CLASSES, IdleBackend(cpu_device(), 1), table)
        no_pyramid = Architecture.parse("k1kxk1_16_32b16k3r1-64b16k5r2-64b32k3r1+c4+rpn+rcnn_16+96x64")
        with pytest.raises(UserError, match="with a pyramid, but got c4"):
            fit_super_block_latency([no_pyramid, no_pyramid], latency)
        wider = Architecture.parse(str(FRAME).replace("fcos_16_1", "fcos_24_1"))
        with pytest.raises(ValueError, match="one neck, proposals, head and input"):
            fit_super_block_latency([FRAME, wider], latency)


def test_non_negative_least_squares_are_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        matrix, target = rng.normal(size=(12, 4)), rng.normal(size=12)
        assert non_negative_least_squares(matrix, target) == pytest.approx(scipy.optimize.nnls(matrix, target)[0])
