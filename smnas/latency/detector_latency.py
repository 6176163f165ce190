"""What a latency table holds of detectors on one device; what it lacks is measured.

A detector's blocks are its own workloads (:mod:`smnas.latency.workloads`). Every method that measures says so in its
name; predictions are functions of the table's rows (:mod:`smnas.latency.prediction`).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from profiler.backends.base import Backend, check_precision
from profiler.errors import UserError
from profiler.measuring.measured_row import Visits
from profiler.measuring.profile import (
    Caches,
    ProfileReport,
    ProfileSettings,
    Progress,
    keep,
    measurement_target,
    profile_workloads,
)
from profiler.prediction.predict import Latency, LatencyModel, MissingPartsError, prior_of
from profiler.table.latency_table import LatencyTable, Row, Target, Trouble
from profiler.timing import DEFAULT_ROUNDS
from profiler.timing.cold import cold_key
from profiler.timing.measurement import TimingSettings
from profiler.workload import Workload
from smnas.latency.prediction import (
    Calibration,
    LatencyPredictor,
    calibrate,
    end_to_end_key,
    no_end_to_end,
)
from smnas.latency.workloads import end_to_end_workload, fresh_detector, inference_workloads
from smnas.models.layers import NormKind
from smnas.space.architecture import Architecture

__all__ = ["DetectorLatency", "in_groups"]

_DETECTORS_AT_ONCE = 8
_CALIBRATED_AT_ONCE = 4


class DetectorLatency:
    """Latencies of detectors on one device, backend and precision.

    Missing rows are added to ``table``; ``precision`` applies to weights and floating-point inputs, ``batch`` is in
    images per run, ``seed`` draws the order of measurements, ``level`` is the nominal coverage of the intervals, and
    ``norm`` is that of the detectors. ``rounds`` is the number of a measurement, see
    :class:`profiler.measuring.profile.ProfileSettings`.

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
        rounds: int = DEFAULT_ROUNDS,
        norm: NormKind = "gn-ws",
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
        self.rounds = rounds
        self.norm: NormKind = norm
        self._level = level
        self._on_progress = on_progress
        self._rng = np.random.default_rng(seed)
        self._predictor: LatencyPredictor | None = None
        self._waiting: list[Visits] = []

    @property
    def target(self) -> Target:
        """Target of the rows that are read and written."""
        return measurement_target(self.backend, precision=self.precision, batch=self.batch)

    @property
    def predictor(self) -> LatencyPredictor:
        """Predicts from the rows that are known here.

        Its model is fitted on all end-to-end latencies in the table, and again once more are measured here; without
        any, it is the plain sum of blocks.
        """
        if self._predictor is None:
            plain = self.plain()
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
        more: bool = False,
        budget_s: float | None = None,
        caches: Caches = "hot",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> ProfileReport:
        """Measure the blocks of these detectors that the table lacks; within a time limit, the most valuable first.

        Failures are stored in the table and listed in the report.

        Args:
            architectures: Detectors whose blocks are measured.
            more: Further calls follow, over which the rounds are spread; then blocks may have to wait for theirs.
            budget_s: Start no measurement after this time; the report lists the rest.
            caches: ``cold`` flushes the caches before each run and writes separate rows, which no prediction reads.
            on_progress: Replaces that of this object while measuring.
        """
        workloads, value = self._missing_blocks(architectures, budget_s is not None, caches)
        return self._profile(
            workloads, more=more, value=value, budget_s=budget_s, caches=caches, on_progress=on_progress
        )

    def keep_agreeing(self) -> None:
        """Store the blocks that wait for further rounds, if those that they have agree; the others are forgotten."""
        keep(self.table, self._waiting, agreeing=True)

    def measure_detectors(
        self,
        architectures: Sequence[Architecture],
        *,
        budget_s: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> ProfileReport:
        """Measure these detectors end to end, between the rounds of those of their blocks that the table lacks.

        All are in memory together, see :func:`in_groups`. Detectors with a block that has failed before are left out.
        Arguments are those of :meth:`measure_blocks`.
        """
        plain = self.plain()
        workloads, value = self._missing_blocks(architectures, budget_s is not None)
        networks = [self._detector(one) for one in dict.fromkeys(architectures) if not plain.ended(one)]
        return self._profile(workloads, networks, value=value, budget_s=budget_s, on_progress=on_progress)

    def unsteady(self) -> dict[str, Row]:
        """Current rows by key whose rounds disagree, those with flushed caches left out."""
        rows = self.table.current(self.target).items()
        return {key: row for key, row in rows if row.trouble == "unsteady" and row.conditions.get("caches") == "hot"}

    def refresh(
        self,
        architectures: Sequence[Architecture],
        *,
        budget_s: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> ProfileReport:
        """Measure those blocks of these detectors again whose rounds disagree, and whole detectors of such rows."""
        unsteady = self.unsteady()
        blocks: dict[str, Workload] = {}
        for one in architectures:
            real = inference_workloads(fresh_detector(one, self.num_classes, self.norm), self.batch)
            blocks |= {part.key: part for part in real if part.key in unsteady}
        networks = [self._detector(one) for one in replace(self.plain(), rows=unsteady).measured_detectors()]
        return self._profile(
            [*blocks.values()], networks, refresh=("unsteady",), budget_s=budget_s, on_progress=on_progress
        )

    def _missing_blocks(
        self, architectures: Sequence[Architecture], valued: bool, caches: Caches = "hot"
    ) -> tuple[list[Workload], dict[str, float] | None]:
        """The blocks of these detectors, missing ones with weights, and where ``valued`` what knowing each is worth."""
        cold = caches == "cold"
        plain = self.plain()
        known = plain.rows.keys() | {visits.workload.key for visits in self._waiting}
        unmeasured: dict[str, Workload] = {}
        wanted: dict[str, Workload] = {}
        for architecture in architectures:
            parts = plain.parts(architecture)
            wanted.update((part.key, part) for part in parts)
            seen = {part.key for part in parts if (cold_key(part.key) if cold else part.key) in known}
            if lacking := {part.key for part in parts} - seen - unmeasured.keys():
                real = inference_workloads(fresh_detector(architecture, self.num_classes, self.norm), self.batch)
                unmeasured.update((part.key, part) for part in real if part.key in lacking)
        value = plain.value(architectures) if unmeasured and valued and not cold else None
        return [unmeasured.get(key, part) for key, part in wanted.items()], value

    def measure_end_to_end(self, architecture: Architecture) -> Row:
        """The end-to-end row of a detector with fresh weights, from the table or measured now.

        Raises:
            LatencyFailedError: it does not run.
        """
        key = self._end_to_end_key(architecture)
        row = self.table.lookup(key, self.target)
        if row is None:
            self._profile([], [self._detector(architecture)])
            row = self.table.lookup(key, self.target)
        if row is None or row.status == "failed":
            raise no_end_to_end(row)
        return row

    def measure_calibration(
        self,
        architectures: Sequence[Architecture],
        *,
        budget_s: float = math.inf,
        on_progress: Callable[[float, float, str], None] = lambda done, total, text: None,
    ) -> Calibration:
        """Measure the blocks and end-to-end latency of these detectors if missing, for :attr:`predictor` to fit.

        Args:
            architectures: The most telling first: four are measured together, further ones where time is left.
            budget_s: Begin no four that would probably end after this time, the first ones excepted.
            on_progress: Called with detectors done, their number, and the workload measured last.

        Returns:
            The fit on all detectors that the table holds; of these here those that failed.
        """
        wanted, reached = tuple(dict.fromkeys(architectures)), 0
        started = time.monotonic()
        for some in in_groups(wanted, _CALIBRATED_AT_ONCE):
            if reached and (time.monotonic() - started) * (reached + len(some)) / reached > budget_s:
                break

            def inside(state: Progress, start: int = reached, size: int = len(some)) -> None:
                on_progress(start + state.fraction * size, len(wanted), state.name)

            self.measure_detectors(some, on_progress=inside)
            reached += len(some)
        on_progress(reached, reached, "")
        plain = self.plain()
        failed = calibrate(plain, wanted[:reached]).failed
        found = calibrate(plain, plain.measured_detectors())
        self._predictor = replace(plain, model=found.model)
        return replace(found, failed=failed)

    def plain(self) -> LatencyPredictor:
        """A predictor from the table as it is now, without a calibration."""
        model = LatencyModel(level=self._level, prior=prior_of(self.backend.name))
        return LatencyPredictor(self.table.current(self.target), self.num_classes, self.batch, model, norm=self.norm)

    def _end_to_end_key(self, architecture: Architecture) -> str:
        return end_to_end_key(architecture, self.num_classes, self.batch, self.norm)

    def _detector(self, architecture: Architecture) -> Workload:
        return end_to_end_workload(fresh_detector(architecture, self.num_classes, self.norm), self.batch)

    def _profile(
        self,
        workloads: Sequence[Workload],
        networks: Sequence[Workload] = (),
        *,
        more: bool = False,
        refresh: tuple[Trouble, ...] = (),
        value: Mapping[str, float] | None = None,
        budget_s: float | None = None,
        caches: Caches = "hot",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> ProfileReport:
        report = profile_workloads(
            workloads,
            self.table,
            self.backend,
            networks=networks,
            waiting=self._waiting,
            more=more,
            rng=self._rng,
            settings=ProfileSettings(
                precision=self.precision,
                batch=self.batch,
                caches=caches,
                timing=self.timing or TimingSettings(),
                rounds=self.rounds,
                refresh=refresh,
                time_limit_s=budget_s,
            ),
            value=value,
            on_progress=on_progress or self._on_progress,
        )
        if networks:
            self._predictor = None
        elif self._predictor is not None:
            self._predictor = replace(self._predictor, rows=self.table.current(self.target))
        return report


def in_groups(
    architectures: Sequence[Architecture], size: int = _DETECTORS_AT_ONCE
) -> Iterator[Sequence[Architecture]]:
    """Groups of whole detectors that are in memory together, their rounds interleaved."""
    for start in range(0, len(architectures), size):
        yield architectures[start : start + size]
