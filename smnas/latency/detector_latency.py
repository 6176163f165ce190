"""End-to-end latency of a detector, predicted from the latency table.

A detector's blocks are its own workloads (:mod:`smnas.latency.workloads`). Missing ones are measured first; a
prediction is then a function of the table and the calibration alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from profiler.backends.base import Backend, check_precision
from profiler.devices import Device
from profiler.errors import UserError
from profiler.measuring.plan import missing
from profiler.measuring.profile import (
    Caches,
    ProfileReport,
    ProfileSettings,
    Progress,
    measurement_target,
    profile_workloads,
)
from profiler.prediction.batch import LatencyArrays
from profiler.prediction.interpolate import FewRowsError, Guess, Interpolation, value_of_measuring
from profiler.prediction.predict import (
    FailedPartError,
    Latencies,
    Latency,
    LatencyModel,
    MissingPartsError,
    PartsSum,
    sum_parts,
)
from profiler.table.latency_table import LatencyTable, Row, Target
from profiler.timing.cold import as_cold
from profiler.timing.measurement import TimingSettings
from profiler.work import Work
from profiler.workload import Workload
from smnas.latency.workloads import detector_workloads, inference_workloads, whole_workload
from smnas.models.build import build_detector, deployable
from smnas.space.architecture import Architecture

__all__ = ["Calibration", "DetectorLatency", "LatencyFailedError", "MeasuredPart"]

_WEIGHTS_SEED = 0


class LatencyFailedError(RuntimeError):
    """The detector, or a block of it, does not run on this target; the message is the reason, in one line."""


@dataclass(frozen=True)
class Calibration:
    """The fit of the predictions.

    Attributes:
        model: Maps the sum of blocks to end-to-end latency.
        wholes: Number of measured detectors that it is fitted on.
        failed: Architectures that could not be measured, with the reason.
    """

    model: LatencyModel
    wholes: int
    failed: tuple[tuple[Architecture, str], ...] = ()


class MeasuredPart(NamedTuple):
    """A block's step name and measured latency."""

    name: str
    ms: float


class DetectorLatency:
    """Predicts the end-to-end latency of detectors on one device, backend and precision.

    Until :meth:`calibrate` is called, the model is fitted once on the end-to-end latencies in the table for this
    target; without any, it is the plain sum of blocks. Missing rows are added to ``table``; ``precision`` applies to
    weights and floating-point inputs, ``batch`` is in images per run, and ``seed`` draws the order of measurements.

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
        self._on_progress = on_progress
        self._rng = np.random.default_rng(seed)
        self._model: LatencyModel | None = None
        # inferring a detector's shapes takes far longer than adding up its rows; only the keys are kept
        self._keys = lru_cache(maxsize=None)(self._read_keys)

    @property
    def target(self) -> Target:
        """Target of the rows that are read and written."""
        return measurement_target(self.backend, precision=self.precision, batch=self.batch)

    @property
    def device(self) -> Device:
        """The backend's device."""
        return self.backend.device

    @property
    def model(self) -> LatencyModel:
        """Maps the sum of blocks to end-to-end latency."""
        if self._model is None:
            self._model = self._fit_on_table().model
        return self._model

    def predict(self, architecture: Architecture) -> Latency:
        """End-to-end latency in milliseconds, with its interval; missing blocks are measured first.

        Raises:
            LatencyFailedError: a block failed on this target.
        """
        model = self.model
        return model.predict(self.parts_sum(architecture))

    def parts_sum(self, architecture: Architecture) -> PartsSum:
        """Sum of a detector's blocks; missing ones are measured first.

        Raises:
            LatencyFailedError: a block failed on this target.
        """
        keys = self._keys(architecture)
        try:
            return sum_parts(keys, self._rows(keys))
        except MissingPartsError:
            self.complete([architecture])
        except FailedPartError as error:
            raise LatencyFailedError(str(error)) from error
        try:
            return sum_parts(keys, self._rows(keys))
        except FailedPartError as error:
            raise LatencyFailedError(str(error)) from error

    def predict_many(self, architectures: Sequence[Architecture], *, interpolate: bool = False) -> Latencies:
        """Predict many detectors at once, like :meth:`predict`; NaN for those without a latency.

        Args:
            architectures: Any number.
            interpolate: Estimate missing blocks from similar ones in the table instead of measuring them; the intervals
                include the uncertainty.

        Raises:
            FewRowsError: the table holds too few blocks of this target to interpolate.
        """
        keys_of = [self._keys(architecture) for architecture in architectures]
        known = self.table.current(self.target)
        if not interpolate:
            lacking = [
                architecture
                for architecture, keys in zip(architectures, keys_of, strict=True)
                if any(key not in known for key in keys)
            ]
            if lacking:
                self.complete(lacking)
                known = self.table.current(self.target)
        guesses: dict[str, Guess] = {}
        if interpolate and (works := self._missing_works(architectures, known)):
            guessed = self._interpolation(known).guess(list(works.values()))
            guesses = dict(zip(works, guessed, strict=True))
        arrays = LatencyArrays.of(known, guesses)
        sums = arrays.sum(arrays.find(keys_of))
        return self.model.predict_many(sums.ms, sums.count, sums.half_ms)

    def value(self, architectures: Sequence[Architecture]) -> dict[str, float]:
        """Value of measuring each missing block, by key, for predicting these detectors.

        The fraction of their uncertainty that it removes or, with too few rows to interpolate, of detectors that need
        it.
        """
        known = self.table.current(self.target)
        works = self._missing_works(architectures, known)
        if not works:
            return {}
        place = {key: index for index, key in enumerate(works)}
        counts = np.zeros((len(architectures), len(works)), dtype=np.int64)
        for number, architecture in enumerate(architectures):
            for key in self._keys(architecture):
                if key in place:
                    counts[number, place[key]] += 1
        try:
            covariance, noise = self._interpolation(known).covariance(list(works.values()))
        except FewRowsError:
            return dict(zip(works, (counts > 0).mean(0).tolist(), strict=True))
        return dict(zip(works, value_of_measuring(counts, covariance, noise).tolist(), strict=True))

    def measured_parts(self, architecture: Architecture) -> tuple[MeasuredPart, ...]:
        """Measured blocks of a detector in execution order; missing ones are measured first.

        Raises:
            LatencyFailedError: a block failed on this target.
        """
        return tuple(MeasuredPart(part.name, _measured_ms(row)) for part, row in self.part_rows(architecture))

    def part_rows(self, architecture: Architecture) -> list[tuple[Workload, Row]]:
        """As :meth:`measured_parts`, with each block as its workload (without weights) and its row."""
        self.parts_sum(architecture)
        parts = self._parts(architecture)
        rows = self._rows(part.key for part in parts)
        return [(part, rows[part.key]) for part in parts]

    def complete(
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
            on_progress: Replaces the predictor's own while measuring.
        """
        cold = caches == "cold"
        unmeasured: dict[str, Workload] = {}
        wanted: dict[str, Workload] = {}
        for architecture in architectures:
            parts = self._parts(architecture)
            wanted.update((part.key, part) for part in parts)
            lookup = {as_cold(part).key if cold else part.key: part.key for part in parts}
            seen = [as_cold(part) for part in parts] if cold else parts
            lacking = {lookup[part.key] for part in missing(seen, self.table, self.target)} - unmeasured.keys()
            if lacking:
                real = self._with_weights(architecture)
                unmeasured.update((part.key, part) for part in real if part.key in lacking)
        return self._profile(
            [unmeasured.get(key, part) for key, part in wanted.items()],
            value=self.value(architectures) if unmeasured and budget_s is not None and not cold else None,
            budget_s=budget_s,
            caches=caches,
            on_progress=on_progress,
        )

    def blocks(self, architectures: Sequence[Architecture]) -> list[Workload]:
        """All distinct blocks of these detectors, with fresh weights."""
        found: dict[str, Workload] = {}
        for architecture in architectures:
            found |= {part.key: part for part in self._with_weights(architecture) if part.key not in found}
        return list(found.values())

    def measure_whole(self, architecture: Architecture) -> Row:
        """The end-to-end row of a detector with fresh weights, from the table or measured now.

        Raises:
            LatencyFailedError: it does not run.
        """
        whole = self._whole(architecture, device="meta")
        row = self.table.lookup(whole.key, self.target)
        if row is None:
            self._profile([self._whole(architecture, device="cpu")], whole=True)
            row = self.table.lookup(whole.key, self.target)
        if row is None or row.median_ms is None:
            raise LatencyFailedError("the whole detector has no latency" + (f": {row.reason}" if row else ""))
        return row

    def calibrate(self, architectures: Sequence[Architecture]) -> Calibration:
        """Measure the end-to-end latency of these detectors if missing, and fit the model on them alone.

        So predictions are the same for one table and choice of architectures, whatever else is measured later.
        """
        self.complete(architectures)
        sums: list[PartsSum] = []
        wholes_ms: list[float] = []
        failed: list[tuple[Architecture, str]] = []
        for architecture in dict.fromkeys(architectures):
            try:
                parts = self.parts_sum(architecture)
                row = self.measure_whole(architecture)
            except LatencyFailedError as error:
                failed.append((architecture, str(error)))
                continue
            wholes_ms.append(_measured_ms(row))
            sums.append(parts)
        self._model = LatencyModel.fit(sums, wholes_ms)
        return Calibration(self._model, len(sums), tuple(failed))

    def _fit_on_table(self) -> Calibration:
        rows = self.table.current(self.target)
        sums: list[PartsSum] = []
        wholes_ms: list[float] = []
        for row in rows.values():
            architecture = self._architecture_of(row)
            if architecture is None:
                continue
            try:
                parts = sum_parts(self._keys(architecture), rows)
            except (MissingPartsError, FailedPartError):
                continue
            wholes_ms.append(_measured_ms(row))
            sums.append(parts)
        return Calibration(LatencyModel.fit(sums, wholes_ms), len(sums))

    def _architecture_of(self, row: Row) -> Architecture | None:
        """The detector of an end-to-end row; ``None`` for any other row."""
        if row.kind != "whole" or row.status != "ok":
            return None
        try:
            architecture = Architecture.parse(row.key.partition("|")[0])
            return architecture if self._whole(architecture, device="meta").key == row.key else None
        except UserError:
            return None

    def _rows(self, keys: Iterable[str]) -> dict[str, Row]:
        found = {key: self.table.lookup(key, self.target) for key in dict.fromkeys(keys)}
        return {key: row for key, row in found.items() if row is not None}

    def _missing_works(self, architectures: Sequence[Architecture], known: Mapping[str, Row]) -> dict[str, Work]:
        """The work of each block without a row, by key."""
        works: dict[str, Work] = {}
        for architecture in architectures:
            if any(key not in known and key not in works for key in self._keys(architecture)):
                parts = self._parts(architecture)
                works |= {part.key: Work.of(part) for part in parts if part.key not in known and part.key not in works}
        return works

    def _interpolation(self, known: Mapping[str, Row]) -> Interpolation:
        pairs = [
            (work, row.median_ms)
            for key, row in known.items()
            if row.kind == "part"
            and row.median_ms is not None
            and row.conditions.get("caches", "hot") == "hot"
            and (work := Work.from_dict(row.conditions.get("work"))) is not None
        ]
        return Interpolation.fit([work for work, _ in pairs], [ms for _, ms in pairs])

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
        return profile_workloads(
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

    def _parts(self, architecture: Architecture) -> tuple[Workload, ...]:
        return detector_workloads(architecture, self.num_classes, self.batch)

    def _read_keys(self, architecture: Architecture) -> tuple[str, ...]:
        return tuple(part.key for part in self._parts(architecture))

    def _with_weights(self, architecture: Architecture) -> tuple[Workload, ...]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_WEIGHTS_SEED)
            return inference_workloads(deployable(build_detector(architecture, self.num_classes)), self.batch)

    def _whole(self, architecture: Architecture, *, device: str) -> Workload:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_WEIGHTS_SEED)
            detector = deployable(build_detector(architecture, self.num_classes, device=device))
        return whole_workload(detector, self.batch)


def _measured_ms(row: Row) -> float:
    if row.median_ms is None:
        raise TypeError(f"only a measured row has a latency, but got {row}")
    return row.median_ms
