"""What a latency table holds of detectors on one device; what it lacks is measured.

A detector's blocks are its own workloads (:mod:`smnas.latency.workloads`). Every method that measures says so in its
name; predictions are functions of the table's rows (:mod:`smnas.latency.prediction`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from profiler.backends.base import Backend, check_precision
from profiler.errors import UserError
from profiler.measuring.profile import (
    Caches,
    ProfileReport,
    ProfileSettings,
    Progress,
    measurement_target,
    profile_workloads,
)
from profiler.prediction.predict import Latency, LatencyModel, MissingPartsError
from profiler.table.latency_table import LatencyTable, Row, Target
from profiler.timing.cold import cold_key
from profiler.timing.measurement import TimingSettings
from profiler.workload import Workload
from smnas.latency.prediction import (
    Calibration,
    LatencyFailedError,
    LatencyPredictor,
    calibrate,
    end_to_end_key,
    no_end_to_end,
)
from smnas.latency.workloads import end_to_end_workload, fresh_detector, inference_workloads
from smnas.space.architecture import Architecture

__all__ = ["DetectorLatency"]


class DetectorLatency:
    """Latencies of detectors on one device, backend and precision.

    Missing rows are added to ``table``; ``precision`` applies to weights and floating-point inputs, ``batch`` is in
    images per run, ``seed`` draws the order of measurements, and ``level`` is the nominal coverage of the intervals.

    Raises:
        UserError: the backend does not support this precision.
    """

    def __init__(
        self,
        num_classes: int,
        backend: Backend,
        table: LatencyTable,
        *,
        precision: str = "fp32",
        batch: int = 1,
        seed: int = 0,
        level: float = 0.9,
        timing: TimingSettings | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        check_precision(backend, precision)
        if batch < 1:
            raise UserError(f"batch >= 1 must hold, but got {batch}")
        self.num_classes = num_classes
        self.batch = batch
        self.precision = precision
        self.backend = backend
        self.table = table
        self.timing = timing
        self._level = level
        self._on_progress = on_progress
        self._rng = np.random.default_rng(seed)
        self._predictor: LatencyPredictor | None = None

    @property
    def target(self) -> Target:
        """Target of the rows that are read and written."""
        return measurement_target(self.backend, precision=self.precision, batch=self.batch)

    @property
    def predictor(self) -> LatencyPredictor:
        """Predicts from the rows that are known here.

        Until :meth:`measure_calibration` its model is fitted once, on the end-to-end latencies in the table; without
        any, it is the plain sum of blocks.
        """
        if self._predictor is None:
            plain = self._plain()
            self._predictor = replace(plain, model=calibrate(plain, plain.measured_detectors()).model)
        return self._predictor

    def measure_and_predict(self, architecture: Architecture) -> Latency:
        """End-to-end latency in milliseconds, with its interval; missing blocks are measured first.

        Raises:
            LatencyFailedError: a block failed on this target.
        """
        try:
            return self.predictor.predict(architecture)
        except MissingPartsError:
            self.measure_blocks([architecture])
            return self.predictor.predict(architecture)

    def measure_blocks(
        self,
        architectures: Sequence[Architecture],
        *,
        budget_s: float | None = None,
        caches: Caches = "hot",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> ProfileReport:
        """Measure the blocks of these detectors that the table lacks; within a time limit, the most valuable first.

        Failures are stored in the table and listed in the report.

        Args:
            architectures: Detectors whose blocks are measured.
            budget_s: Start no measurement after this time; the report lists the rest.
            caches: ``cold`` flushes the caches before each run and writes separate rows, which no prediction reads.
            on_progress: Replaces that of this object while measuring.
        """
        cold = caches == "cold"
        plain = self._plain()
        unmeasured: dict[str, Workload] = {}
        wanted: dict[str, Workload] = {}
        for architecture in architectures:
            parts = plain.parts(architecture)
            wanted.update((part.key, part) for part in parts)
            seen = {part.key for part in parts if (cold_key(part.key) if cold else part.key) in plain.rows}
            if lacking := {part.key for part in parts} - seen - unmeasured.keys():
                real = inference_workloads(fresh_detector(architecture, self.num_classes), self.batch)
                unmeasured.update((part.key, part) for part in real if part.key in lacking)
        return self._profile(
            [unmeasured.get(key, part) for key, part in wanted.items()],
            value=plain.value(architectures) if unmeasured and budget_s is not None and not cold else None,
            budget_s=budget_s,
            caches=caches,
            on_progress=on_progress,
        )

    def measure_end_to_end(self, architecture: Architecture) -> Row:
        """The end-to-end row of a detector with fresh weights, from the table or measured now.

        Raises:
            LatencyFailedError: it does not run.
        """
        key = end_to_end_key(architecture, self.num_classes, self.batch)
        row = self.table.lookup(key, self.target)
        if row is None:
            self._profile([end_to_end_workload(fresh_detector(architecture, self.num_classes), self.batch)], whole=True)
            row = self.table.lookup(key, self.target)
        if row is None or row.status == "failed":
            raise no_end_to_end(row)
        return row

    def measure_calibration(self, architectures: Sequence[Architecture]) -> Calibration:
        """Measure the blocks and end-to-end latency of these detectors if missing, and fit the model on them alone.

        So predictions are the same for one table and choice of architectures, whatever else is measured later.
        """
        self.measure_blocks(architectures)
        plain = self._plain()
        for architecture in dict.fromkeys(architectures):
            with suppress(LatencyFailedError):  # listed by the calibration
                plain.parts_sum(architecture)
                self.measure_end_to_end(architecture)
        plain = self._plain()
        found = calibrate(plain, architectures)
        self._predictor = replace(plain, model=found.model)
        return found

    def _plain(self) -> LatencyPredictor:
        """A predictor from the table as it is now, without a calibration."""
        model = LatencyModel(level=self._level)
        return LatencyPredictor(self.table.current(self.target), self.num_classes, self.batch, model)

    def _profile(
        self,
        workloads: Sequence[Workload],
        *,
        whole: bool = False,
        value: Mapping[str, float] | None = None,
        budget_s: float | None = None,
        caches: Caches = "hot",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> ProfileReport:
        report = profile_workloads(
            workloads,
            self.table,
            self.backend,
            rng=self._rng,
            settings=ProfileSettings(
                precision=self.precision,
                batch=self.batch,
                kind="whole" if whole else "part",
                caches=caches,
                timing=self.timing or TimingSettings(),
                time_limit_s=budget_s,
            ),
            value=value,
            on_progress=on_progress or self._on_progress,
        )
        if self._predictor is not None:
            self._predictor = replace(self._predictor, rows=self.table.current(self.target))
        return report
