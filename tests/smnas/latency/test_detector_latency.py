"""Detector latencies: sums by hand from a filled table, what is measured and what is not, failures as reasons."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from profiler.backends import get_backend
from profiler.backends.eager import EagerBackend
from profiler.devices import cpu_device
from profiler.errors import UserError
from profiler.graphs.quantized_onnx import float_layers
from profiler.measuring.profile import Progress, measurement_target
from profiler.prediction.interpolate import FewRowsError
from profiler.prediction.predict import LatencyModel, PartsSum
from profiler.table.latency_table import LatencyTable, Row
from profiler.timing.measurement import TimingSettings
from profiler.work import Work
from profiler.workload import Workload, random_inputs
from smnas.latency.audit import audit_latency, explain
from smnas.latency.detector_latency import DetectorLatency
from smnas.latency.prediction import LatencyFailedError, LatencyPredictor
from smnas.latency.workloads import detector_workloads, end_to_end_workload, inference_workloads
from smnas.models.build import build_detector, deployable
from smnas.space.architecture import Architecture

SMALL = Architecture.parse("basicblock_8_1-2-2+fpn_3-4_16+norpn+retina_16_1+64x64")
DEEPER = Architecture.parse("basicblock_8_11-2-2+fpn_3-4_16+norpn+retina_16_1+64x64")
WIDER = Architecture.parse("basicblock_16_1-2-2+fpn_3-4_16+norpn+retina_16_1+64x64")
TWO_STAGE = Architecture.parse("basicblock_8_1-2-2+fpn_2-4_16+rpn+rcnn_64+64x64")
CLASSES = 3
QUICK = TimingSettings(relative_half_width=0.5, min_samples=3, time_limit_s=0.1, warmup_s=0.0, warmup_runs=1)


class IdleBackend(EagerBackend):
    """Refuses to run anything: what is predicted with it comes from the table."""

    def prepare(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("measured, though the table holds it")


@pytest.fixture
def table(tmp_path: Path) -> Iterator[LatencyTable]:
    with LatencyTable(tmp_path / "latency.db") as table:
        yield table


@pytest.fixture
def idle() -> IdleBackend:
    return IdleBackend(cpu_device(), 1)


@pytest.fixture
def eager() -> EagerBackend:
    return EagerBackend(cpu_device(), 1)


def keys_of(architecture: Architecture) -> list[str]:
    return [part.key for part in detector_workloads(architecture, CLASSES)]


def fill(
    table: LatencyTable, backend: EagerBackend, architecture: Architecture, wholes_ms: float | None = None
) -> float:
    """Give every part a made-up latency that depends on its key alone, and its real work; the exact sum."""
    target = measurement_target(backend)
    total = 0.0
    for part in detector_workloads(architecture, CLASSES):
        ms = 0.5 + sum(part.key.encode()) % 97 / 10
        total += ms
        if table.lookup(part.key, target) is None:
            work = {"work": Work.of(part).as_dict()}
            table.add(Row(part.key, "part", target, median_ms=ms, low_ms=ms - 0.01, high_ms=ms + 0.01, conditions=work))
    if wholes_ms is not None:
        key = end_to_end_workload(deployable(build_detector(architecture, CLASSES, device="meta"))).key
        table.add(Row(key, "whole", target, "whole", median_ms=wholes_ms, low_ms=wholes_ms, high_ms=wholes_ms))
    return total


def test_without_wholes_a_prediction_is_the_plain_sum_and_says_so(table: LatencyTable, idle: IdleBackend) -> None:
    total = fill(table, idle, TWO_STAGE)
    latency = DetectorLatency(CLASSES, idle, table).measure_and_predict(TWO_STAGE)
    assert latency.ms == pytest.approx(total)
    assert not latency.calibrated
    assert latency.low_ms < total < latency.high_ms


@pytest.mark.slow
def test_wholes_in_the_table_calibrate(table: LatencyTable, idle: IdleBackend) -> None:
    for architecture in (SMALL, DEEPER):
        fill(table, idle, architecture, 0.8 * fill(table, idle, architecture))
    total = fill(table, idle, WIDER)
    latency = DetectorLatency(CLASSES, idle, table).measure_and_predict(WIDER)
    assert latency.ms == pytest.approx(0.8 * total, rel=0.01)
    assert latency.calibrated


def test_wholes_of_another_number_of_classes_do_not_calibrate(table: LatencyTable, idle: IdleBackend) -> None:
    fill(table, idle, SMALL, 0.8 * fill(table, idle, SMALL))
    model = DetectorLatency(CLASSES + 1, idle, table).predictor.model
    assert model == LatencyModel.fit([], [])


@pytest.mark.slow
def test_all_detectors_in_the_table_calibrate(table: LatencyTable, idle: IdleBackend) -> None:
    sums = {a: fill(table, idle, a) for a in (SMALL, DEEPER, WIDER, TWO_STAGE)}
    for architecture, factor in ((SMALL, 0.7), (DEEPER, 0.9), (WIDER, 5.0)):
        fill(table, idle, architecture, factor * sums[architecture])
    latency = DetectorLatency(CLASSES, idle, table)
    steps: list[tuple[float, float]] = []
    calibration = latency.measure_calibration(
        [SMALL, DEEPER, SMALL], on_progress=lambda done, total, text: steps.append((done, total))
    )
    assert (calibration.detectors, calibration.failed) == (3, ())
    assert steps[-1] == (2, 2)
    parts = [PartsSum(sums[a], 0.0, len(keys_of(a))) for a in (SMALL, DEEPER, WIDER)]
    by_hand = LatencyModel.fit(parts, [0.7 * sums[SMALL], 0.9 * sums[DEEPER], 5.0 * sums[WIDER]])
    assert calibration.model.scale == pytest.approx(by_hand.scale)
    expected = by_hand.predict(PartsSum(sums[TWO_STAGE], 0.0, len(keys_of(TWO_STAGE))))
    assert latency.measure_and_predict(TWO_STAGE).ms == pytest.approx(expected.ms)


@pytest.mark.slow
def test_a_prediction_is_a_function_of_table_and_calibration(table: LatencyTable, idle: IdleBackend) -> None:
    for architecture in (SMALL, DEEPER):
        fill(table, idle, architecture, 0.8 * fill(table, idle, architecture) + 1)
    fill(table, idle, TWO_STAGE)
    one = DetectorLatency(CLASSES, idle, table, seed=1)
    one.measure_calibration([SMALL, DEEPER])
    first = one.measure_and_predict(TWO_STAGE)
    two = DetectorLatency(CLASSES, idle, table, seed=2)
    two.measure_calibration([DEEPER, SMALL])
    assert one.measure_and_predict(TWO_STAGE) == two.measure_and_predict(TWO_STAGE) == first


@pytest.mark.slow
def test_a_detector_measured_later_sharpens_the_predictions(table: LatencyTable, eager: EagerBackend) -> None:
    latency = DetectorLatency(CLASSES, eager, table, timing=QUICK, rounds=1)
    latency.measure_blocks([SMALL, DEEPER])
    assert latency.predictor.model == LatencyModel()
    latency.measure_end_to_end(SMALL)
    one = latency.predictor.model
    latency.measure_end_to_end(DEEPER)
    two = latency.predictor.model
    assert (len(one.residuals), len(two.residuals)) == (1, 2)
    assert (one.calibrated, two.calibrated) == (True, True)


@pytest.mark.slow
def test_calibration_begins_no_further_detectors_after_its_time(table: LatencyTable, idle: IdleBackend) -> None:
    five = [
        SMALL,
        DEEPER,
        WIDER,
        TWO_STAGE,
        Architecture.parse("basicblock_8_1-1-2+fpn_3-4_16+norpn+retina_16_1+64x64"),
    ]
    for architecture in five[:4]:
        fill(table, idle, architecture, fill(table, idle, architecture))
    assert DetectorLatency(CLASSES, idle, table).measure_calibration(five, budget_s=0.0).detectors == 4


def test_a_failed_part_is_a_reason(table: LatencyTable, idle: IdleBackend) -> None:
    key = keys_of(SMALL)[-1]
    table.add(Row(key, "postprocess", measurement_target(idle), status="failed", reason="RuntimeError: no kernel"))
    fill(table, idle, SMALL)
    latency = DetectorLatency(CLASSES, idle, table)
    with pytest.raises(LatencyFailedError, match="postprocess has no latency: RuntimeError: no kernel") as error:
        latency.measure_and_predict(SMALL)
    assert "\n" not in str(error.value)
    calibration = latency.measure_calibration([SMALL])
    assert calibration.detectors == 0
    assert "no latency" in calibration.failed[0][1]


@pytest.mark.slow
def test_missing_parts_are_measured_once(table: LatencyTable, eager: EagerBackend, idle: IdleBackend) -> None:
    events: list[Progress] = []
    latency = DetectorLatency(CLASSES, eager, table, timing=QUICK, on_progress=events.append)
    first = latency.measure_and_predict(SMALL)
    assert first.ms > 0
    rows = {row.key: row for row in table.rows()}
    assert set(keys_of(SMALL)) == set(rows)
    assert first.ms == pytest.approx(sum(rows[key].median_ms for key in keys_of(SMALL)))
    assert events[-1].done == events[-1].total == len(rows)
    assert DetectorLatency(CLASSES, idle, table).measure_and_predict(SMALL) == first

    report = latency.measure_blocks([SMALL, DEEPER])
    new = set(keys_of(DEEPER)) - set(keys_of(SMALL))
    assert report.measured == len(new)
    assert report.cached == len(set(keys_of(SMALL)))


@pytest.mark.slow
def test_complete_measures_no_key_twice(table: LatencyTable, eager: EagerBackend) -> None:
    report = DetectorLatency(CLASSES, eager, table, timing=QUICK).measure_blocks([SMALL, DEEPER, SMALL])
    assert report.measured == table.count() == len({*keys_of(SMALL), *keys_of(DEEPER)})
    assert report.cached == 0
    assert DetectorLatency(CLASSES, eager, table, timing=QUICK).measure_blocks([SMALL, DEEPER]).measured == 0


def test_a_whole_is_measured_once_and_kept(table: LatencyTable, eager: EagerBackend, idle: IdleBackend) -> None:
    row = DetectorLatency(CLASSES, eager, table, timing=QUICK).measure_end_to_end(SMALL)
    assert row.kind == "whole"
    assert row.low_ms <= row.median_ms <= row.high_ms
    assert row.parameters == sum(p.numel() for p in build_detector(SMALL, CLASSES, device="meta").parameters())
    assert DetectorLatency(CLASSES, idle, table).measure_end_to_end(SMALL) == row


@pytest.mark.slow
def test_a_whole_that_does_not_run_is_a_reason(table: LatencyTable, eager: EagerBackend) -> None:
    class Broken(EagerBackend):
        def prepare(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            if type(module).__name__.endswith("Detector"):
                raise RuntimeError("no such operator")
            return super().prepare(module, *args, **kwargs)

    latency = DetectorLatency(CLASSES, Broken(cpu_device(), 1), table, timing=QUICK)
    with pytest.raises(LatencyFailedError, match="no such operator"):
        latency.measure_end_to_end(SMALL)
    assert latency.measure_calibration([SMALL]).failed == (
        (SMALL, "the whole detector has no latency: RuntimeError: no such operator"),
    )
    assert not latency.measure_and_predict(SMALL).calibrated


@pytest.mark.slow
def test_batch_and_precision_are_part_of_the_target(table: LatencyTable, eager: EagerBackend) -> None:
    two = DetectorLatency(CLASSES, eager, table, batch=2, timing=QUICK)
    assert (two.target.batch, two.target.precision, two.target.threads) == (2, "fp32", 1)
    two.measure_and_predict(SMALL)
    assert {row.target for row in table.rows()} == {two.target}
    assert not {row.key for row in table.rows()} & set(keys_of(SMALL))
    with pytest.raises(UserError, match="batch >= 1"):
        DetectorLatency(CLASSES, eager, table, batch=0)
    with pytest.raises(UserError, match="fp8"):
        DetectorLatency(CLASSES, eager, table, precision="fp8")


@pytest.mark.slow
def test_the_generator_of_torch_is_left_alone(table: LatencyTable, eager: EagerBackend) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    DetectorLatency(CLASSES, eager, table, timing=QUICK).measure_calibration([SMALL])
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.slow
def test_measured_wholes_calibrate_as_the_rows_say(table: LatencyTable, eager: EagerBackend) -> None:
    """Real measurements, then the whole chain again from the table's rows alone."""
    latency = DetectorLatency(CLASSES, eager, table, timing=QUICK)
    assert latency.measure_calibration([SMALL, WIDER]).detectors == 2
    predicted = latency.measure_and_predict(DEEPER)
    rows = table.current(latency.target)
    wholes = [latency.predictor.end_to_end_row(a).median_ms for a in (SMALL, WIDER)]
    sums = {a: sum(rows[key].median_ms for key in keys_of(a)) for a in (SMALL, WIDER, DEEPER)}
    parts = [PartsSum(sums[a], 0.0, len(keys_of(a))) for a in (SMALL, WIDER)]
    expected = LatencyModel.fit(parts, wholes).predict(PartsSum(sums[DEEPER], 0.0, len(keys_of(DEEPER))))
    assert predicted.ms == pytest.approx(expected.ms)
    assert predicted.calibrated


@pytest.mark.slow
def test_onnx_runtime_runs_a_whole(table: LatencyTable) -> None:
    """The backend that a CPU deploys with."""
    pytest.importorskip("onnxruntime")
    row = DetectorLatency(CLASSES, get_backend("onnxruntime"), table, timing=QUICK).measure_end_to_end(SMALL)
    assert 0 < row.median_ms < 1000
    assert row.target.backend == "onnxruntime"


@pytest.mark.slow
@pytest.mark.parametrize("neck_and_head", ["garpn+cascade_2_16", "norpn+fcos_16_1"])
def test_blocks_compute_in_integers_what_their_whole_does(neck_and_head: str) -> None:
    """And all but the first layer, and the last ones of a head, which are there by the names that are left out."""
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (extra cpu or gpu)")
    backend = get_backend("onnxruntime")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        architecture = Architecture.parse(f"basicblock_8_1-2-2+fpn_3-4_16+{neck_and_head}+64x64")
        detector = deployable(build_detector(architecture, CLASSES))
    kept = float_layers(detector)
    assert kept[0] == "backbone.stem.conv"
    assert all(sum(1 for _ in detector.get_submodule(name).parameters()) for name in kept)

    def integers(workloads: Sequence[Workload]) -> list[int]:
        items = [(workload.module, random_inputs(workload.inputs, 0)) for workload in workloads]
        return [int(session().describe()["integer_layers"]) for session in backend.prepare_many(items, "int8")]

    blocks = integers(inference_workloads(detector))
    assert [sum(blocks)] == integers([end_to_end_workload(detector)])
    assert sum(blocks) > 7
    assert blocks[0] == 0


@pytest.mark.slow
def test_many_predictions_are_the_single_ones(table: LatencyTable, eager: EagerBackend, idle: IdleBackend) -> None:
    """Equal to one by one; what has a part that does not run is NaN."""
    latency = DetectorLatency(CLASSES, eager, table, timing=QUICK)
    latency.measure_blocks([SMALL, TWO_STAGE])
    many = latency.predictor.predict_many([SMALL, TWO_STAGE, SMALL])
    again = DetectorLatency(CLASSES, idle, table)
    for place, architecture in enumerate((SMALL, TWO_STAGE, SMALL)):
        one = again.measure_and_predict(architecture)
        assert (many.ms[place], many.low_ms[place]) == pytest.approx((one.ms, one.low_ms), rel=1e-12)
    assert np.isfinite(many.ms).all()
    own = next(key for key in keys_of(WIDER) if key not in {*keys_of(SMALL), *keys_of(TWO_STAGE)})
    table.add(Row(own, "stem", measurement_target(idle), status="failed", reason="RuntimeError: no kernel"))
    fill(table, idle, WIDER)
    with pytest.raises(LatencyFailedError):
        again.measure_and_predict(WIDER)
    assert np.isnan(again.predictor.predict_many([WIDER, SMALL]).ms).tolist() == [True, False]


@pytest.mark.slow
def test_guessed_parts_widen_the_interval_and_measure_nothing(table: LatencyTable, idle: IdleBackend) -> None:
    for architecture in (SMALL, TWO_STAGE, WIDER):
        fill(table, idle, architecture)
    latency = LatencyPredictor(table.current(measurement_target(idle)), CLASSES, interpolates=True)
    unmeasured = Architecture.parse("basicblock_12_1-2-2+fpn_3-4_16+norpn+retina_16_1+64x64")
    guessed = latency.predict_many([SMALL, unmeasured])
    width = (guessed.high_ms - guessed.low_ms) / guessed.ms
    assert width[1] > width[0]
    value = latency.value([SMALL, unmeasured])
    assert set(value) == set(keys_of(unmeasured)) - {row.key for row in table.rows()}
    assert all(0 <= share <= 1 for share in value.values())
    assert max(value.values()) > 0
    cold = [
        replace(row, key=f"{row.key}|cold", median_ms=50.0, low_ms=50.0, high_ms=50.0, created_at="", id=None)
        for row in table.rows()
    ]
    for row in cold:
        table.add(replace(row, conditions={**row.conditions, "caches": "cold"}))
    again = replace(latency, rows=table.current(measurement_target(idle))).predict_many([SMALL, unmeasured])
    assert again.ms.tolist() == guessed.ms.tolist(), "guesses are of hot runs"
    with pytest.raises(FewRowsError):
        LatencyPredictor({}, CLASSES, interpolates=True).predict_many([SMALL])
    one = latency.predict(unmeasured)
    assert (one.ms, one.low_ms, one.high_ms) == pytest.approx((guessed.ms[1], guessed.low_ms[1], guessed.high_ms[1]))
    rows = {row.key: row.median_ms for row in table.rows()}
    assert one.measured == pytest.approx(sum(rows.get(key, 0.0) for key in keys_of(unmeasured)) / one.ms)
    assert 0 < one.measured < 1 == latency.predict(SMALL).measured


@pytest.mark.slow
def test_a_budget_stops_and_the_next_call_goes_on(table: LatencyTable, eager: EagerBackend) -> None:
    latency = DetectorLatency(CLASSES, eager, table, timing=QUICK)
    wanted = set(keys_of(TWO_STAGE))
    first = latency.measure_blocks([TWO_STAGE], budget_s=0.0)
    assert (first.measured, len(first.left)) == (0, len(wanted))
    rest = latency.measure_blocks([TWO_STAGE], budget_s=60.0)
    assert (rest.measured, rest.left) == (len(wanted), ())


@pytest.mark.slow
def test_cold_rows_are_their_own_and_no_prediction_reads_them(table: LatencyTable, eager: EagerBackend) -> None:
    latency = DetectorLatency(CLASSES, eager, table, timing=QUICK)
    latency.measure_blocks([SMALL])
    before = latency.measure_and_predict(SMALL)
    hot = {row.key for row in table.rows()}
    assert latency.measure_blocks([SMALL], caches="cold").measured == len(hot)
    assert {row.key for row in table.rows()} == hot | {f"{key}|cold" for key in hot}
    assert latency.measure_and_predict(SMALL) == before
    assert latency.measure_blocks([SMALL], caches="cold").measured == 0


@pytest.mark.slow
def test_an_audit_that_fitted_nothing_takes_no_flops_for_milliseconds(table: LatencyTable, idle: IdleBackend) -> None:
    sums = {one: fill(table, idle, one, 20.0) for one in (SMALL, TWO_STAGE)}
    latency = DetectorLatency(CLASSES, idle, table)
    told: list[str] = []
    found = audit_latency(
        latency, [], [SMALL, TWO_STAGE], lambda _done, _total, text: told.append(text), rng=np.random.default_rng(0)
    )
    assert (found.calibrated_on, len(found.detectors), found.splits) == (0, 2, None)
    assert set(found.accuracies()) == {"prediction", "naive sum", "roofline"}
    for whole in found.detectors:
        assert whole.prediction.ms == pytest.approx(sums[whole.architecture])
        assert whole.others_ms["naive sum"] == pytest.approx(sums[whole.architecture])
        assert 0 < whole.others_ms["roofline"] <= sums[whole.architecture]


@pytest.mark.slow
def test_the_worst_are_looked_into_with_the_runtimes_own_profile() -> None:
    """The parts' nodes are the whole's but for layout and what is at the borders, and the four shares add up."""
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (extra cpu or gpu)")
    from profiler.backends.onnxruntime import OnnxRuntimeBackend

    found = explain(OnnxRuntimeBackend(cpu_device(), 1), SMALL, CLASSES)
    convolutions = [row for row in found.operators if "Conv" in row.operator]
    assert sum(row.whole_nodes for row in convolutions) == sum(row.parts_nodes for row in convolutions) > 5
    shares = found.overhead_ms + found.layout_ms + found.fusion_ms + found.kernels_ms
    assert shares == pytest.approx(found.whole_ms - found.parts_ms)
    assert 0 < found.whole_ms < 1000
