"""Compares predicted with measured end-to-end latency on held-out detectors.

Baselines with the same calibration: the plain sum of the blocks, a linear fit on FLOPs, and one on the roofline. A
prediction that does not beat them does not justify its table.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from profiler.backends.onnxruntime import OnnxRuntimeBackend
from profiler.devices import Device
from profiler.measuring.onnx_profile import Residual, operator_times, residual
from profiler.measuring.profile import Progress
from profiler.prediction.audit import Accuracy, Coverage, accuracy, coverage_over_splits, fitted_line
from profiler.prediction.estimate import Roof, float_bytes
from profiler.prediction.predict import Latency, LatencyModel, PartsSum, prior_of
from profiler.table.latency_table import Row
from profiler.work import Work
from profiler.workload import random_inputs
from smnas.latency.detector_latency import DetectorLatency, in_groups
from smnas.latency.prediction import LatencyFailedError, LatencyPredictor, no_end_to_end
from smnas.latency.workloads import end_to_end_workload, fresh_detector, inference_workloads
from smnas.space.architecture import Architecture

__all__ = ["PREDICTORS", "Audit", "AuditedDetector", "audit_latency", "explain"]

LeftS = Callable[[], float | None]
"""Seconds that are left for measuring, None without a limit."""
PREDICTORS = ("prediction", "naive sum", "FLOPs", "roofline")
_MIN_TO_SPLIT = 2


@dataclass(frozen=True)
class AuditedDetector:
    """One held-out detector.

    Attributes:
        architecture: Its architecture.
        measured: Its end-to-end row.
        prediction: With interval.
        others_ms: Predictions by the other :data:`PREDICTORS`; without FLOPs if no detector was reached to fit on.
    """

    architecture: Architecture
    measured: Row
    prediction: Latency
    others_ms: dict[str, float]

    @property
    def measured_ms(self) -> float:
        """Measured median."""
        return self.measured.median_ms or 0.0

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.prediction.ms / self.measured_ms - 1

    @property
    def inside(self) -> bool:
        """Whether the interval contains the measured latency."""
        return self.prediction.low_ms <= self.measured_ms <= self.prediction.high_ms

    def predicted_ms(self, predictor: str) -> float:
        """Prediction by one of :data:`PREDICTORS`."""
        return self.prediction.ms if predictor == "prediction" else self.others_ms[predictor]


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        calibrated_on: Number of detectors that the predictions are fitted on, none of them among ``detectors``.
        level: Nominal coverage of the intervals.
        detectors: The compared detectors, worst prediction first.
        failed: Reason by detector without a latency.
        roof: Source of the roofline.
        left: Detectors, calibration included, not reached within the time limit.
        splits: Coverage of the intervals over other splits of these detectors; ``None`` for too few.
        residuals: Differences inside the worst predictions, by ONNX Runtime's profiler.
    """

    calibrated_on: int
    level: float
    detectors: tuple[AuditedDetector, ...]
    failed: dict[str, str]
    roof: str
    left: int = 0
    splits: Coverage | None = None
    residuals: tuple[tuple[Architecture, Residual], ...] = ()

    def accuracies(self) -> dict[str, Accuracy]:
        """Accuracy by predictor; empty if nothing was compared."""
        if not self.detectors:
            return {}
        measured = [one.measured_ms for one in self.detectors]
        names = [name for name in PREDICTORS if name == "prediction" or name in self.detectors[0].others_ms]
        return {name: accuracy([one.predicted_ms(name) for one in self.detectors], measured) for name in names}

    @property
    def coverage(self) -> float | None:
        """Fraction of intervals that contain the measured latency."""
        return sum(one.inside for one in self.detectors) / len(self.detectors) if self.detectors else None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "calibrated_on": self.calibrated_on,
            "level": self.level,
            "roof": self.roof,
            "inside_interval": self.coverage,
            "inside_interval_over_splits": None if self.splits is None else vars(self.splits),
            "accuracy": {name: vars(found) for name, found in self.accuracies().items()},
            "detectors": [
                {
                    "architecture": str(one.architecture),
                    "measured_ms": one.measured_ms,
                    "measured_low_ms": one.measured.low_ms,
                    "measured_high_ms": one.measured.high_ms,
                    "predicted_ms": one.prediction.ms,
                    "low_ms": one.prediction.low_ms,
                    "high_ms": one.prediction.high_ms,
                    "error": one.error,
                    "inside": one.inside,
                    "disturbances": one.measured.conditions.get("disturbances", []),
                    **{f"{name}_ms".replace(" ", "_").lower(): ms for name, ms in one.others_ms.items()},
                }
                for one in self.detectors
            ],
            "failed": self.failed,
            "left": self.left,
            "residuals": [{"architecture": str(one), **asdict(inside)} for one, inside in self.residuals],
        }


def audit_latency(
    latency: DetectorLatency,
    calibration: Sequence[Architecture],
    held_out: Sequence[Architecture],
    on_progress: Callable[[float, float, str], None],
    *,
    rng: np.random.Generator,
    left_s: LeftS = lambda: None,
) -> Audit:
    """Calibrate predictions on some detectors and compare them on others; missing end-to-end latencies are measured.

    All are measured in one random order, so that drift of the machine does not separate the two sets. ``rng`` draws it,
    and the splits for the coverage of intervals. ``on_progress`` is called with detectors done, their number, and the
    block measured last. Once the seconds of ``left_s`` are over, those measured so far are compared.
    """
    if both := set(calibration) & set(held_out):
        raise ValueError(f"held-out detectors must not be calibrated on, but got {min(map(str, both))} in both")
    both_kinds = [*calibration, *held_out]
    total = len(both_kinds)
    reached: set[Architecture] = set()
    for some in in_groups([both_kinds[index] for index in rng.permutation(total).tolist()]):

        def inside(state: Progress, start: int = len(reached), size: int = len(some)) -> None:
            on_progress(start + state.fraction * size, total, state.name)

        latency.measure_detectors(some, budget_s=left_s(), on_progress=inside)
        plain = latency.plain()
        reached.update(one for one in some if {*plain.keys(one)} <= plain.rows.keys() and plain.ended(one))
        if left_s() == 0:
            break
    on_progress(total, total, "")
    failed: dict[str, str] = {}
    plain = latency.plain()
    known, found = (
        _records(plain, [one for one in kind if one in reached], failed) for kind in (calibration, held_out)
    )
    prior = prior_of(latency.backend.name)
    model = LatencyModel.fit([record.sum for record in known], [record.measured_ms for record in known], prior=prior)
    roof, roof_text = _roof(latency.backend.device, latency.precision, [*known, *found])
    detectors = _compared(model, found, _simpler_ms(known, found, roof))
    splits = None
    if len(known) >= _MIN_TO_SPLIT and found:
        records = [*known, *found]
        sums, all_ms = [record.sum for record in records], [record.measured_ms for record in records]
        splits = coverage_over_splits(sums, all_ms, len(known), level=model.level, rng=rng, prior=prior)
    return Audit(len(known), model.level, detectors, failed, roof_text, total - len(reached), splits)


@dataclass(frozen=True)
class _Record:
    """One measured detector: everything that predictors are fitted on or compared with."""

    architecture: Architecture
    row: Row
    sum: PartsSum
    blocks: tuple[tuple[Work, float], ...]

    @property
    def measured_ms(self) -> float:
        return self.row.median_ms or 0.0


def _records(
    predictor: LatencyPredictor, architectures: Sequence[Architecture], failed: dict[str, str]
) -> list[_Record]:
    """A record of each measured detector; the reasons of the others go to ``failed``."""
    records = []
    for architecture in architectures:
        try:
            parts, whole = predictor.part_rows(architecture), predictor.end_to_end_row(architecture)
            if whole is None or whole.status == "failed":
                raise no_end_to_end(whole)
        except LatencyFailedError as error:
            failed[str(architecture)] = str(error)
            continue
        # rows of older releases lack the work
        works = [Work.from_dict(row.conditions.get("work")) or Work.of(workload) for workload, row in parts]
        blocks = tuple((work, row.median_ms or 0.0) for work, (_, row) in zip(works, parts, strict=True))
        records.append(_Record(architecture, whole, predictor.parts_sum(architecture), blocks))
    return records


def _compared(
    model: LatencyModel, found: Sequence[_Record], others: dict[str, list[float]]
) -> tuple[AuditedDetector, ...]:
    """Predictions beside what was measured, the worst first."""
    detectors = [
        AuditedDetector(
            record.architecture,
            record.row,
            model.predict(record.sum),
            {name: found_ms[place] for name, found_ms in others.items()},
        )
        for place, record in enumerate(found)
    ]
    return tuple(sorted(detectors, key=lambda one: -abs(one.error)))


def _simpler_ms(known: Sequence[_Record], found: Sequence[_Record], roof: Roof) -> dict[str, list[float]]:
    """Baseline predictions for ``found``; linear fits use ``known``."""
    others = {"naive sum": [sum(ms for _, ms in record.blocks) for record in found]}
    measures: dict[str, Callable[[_Record], float]] = {
        "FLOPs": lambda record: float(sum(work.flops for work, _ in record.blocks)),
        "roofline": lambda record: sum(roof.bound_ms(work) for work, _ in record.blocks),
    }
    for name, measure in measures.items():
        wanted = [measure(record) for record in found]
        if known:
            measured_ms = [record.measured_ms for record in known]
            others[name] = fitted_line([measure(record) for record in known], measured_ms, wanted).tolist()
        elif name == "roofline":  # in milliseconds even without a fit, unlike FLOPs
            others[name] = wanted
    return others


def _roof(device: Device, precision: str, records: Sequence[_Record]) -> tuple[Roof, str]:
    if device.sheet is not None and precision in ("fp32", "fp16"):
        return Roof.of_sheet(device.sheet, precision), f"data sheet of {device.sheet.title}"
    measured = [block for record in records for block in record.blocks]
    size = float_bytes(precision)
    if not measured:
        return Roof(float("inf"), float("inf"), size), "nothing was measured"
    return Roof.reached(measured, size), "the highest rates that any block has reached here"


def explain(
    backend: OnnxRuntimeBackend, architecture: Architecture, num_classes: int, batch: int = 1, precision: str = "fp32"
) -> Residual:
    """Locate the difference between end-to-end latency and the sum of blocks by ONNX Runtime's profiler.

    ``backend`` decides provider and threads; ``batch`` is in images per run.
    """
    detector = fresh_detector(architecture, num_classes)
    parts = inference_workloads(detector, batch)
    distinct = {part.key: part for part in parts}
    blocks = [(part.module, random_inputs(part.inputs, 0)) for part in distinct.values()]
    found = operator_times(backend, blocks, precision)
    times = dict(zip(distinct, found, strict=True))
    whole = end_to_end_workload(detector, batch)
    (of_whole,) = operator_times(backend, [(whole.module, random_inputs(whole.inputs, 0))], precision)
    return residual(of_whole, [times[part.key] for part in parts])
