"""End-to-end latency of detectors as a function of table rows and a calibration; nothing is measured here."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from profiler.errors import UserError
from profiler.prediction.batch import LatencyArrays, PartsSums
from profiler.prediction.interpolate import FewRowsError, Interpolation, value_of_measuring
from profiler.prediction.predict import (
    FailedPartError,
    Latencies,
    Latency,
    LatencyModel,
    MissingPartsError,
    PartsSum,
    sum_parts,
)
from profiler.table.latency_table import Row
from profiler.work import Work
from profiler.workload import Workload
from smnas.latency.workloads import detector_workloads, end_to_end_workload, work_of
from smnas.models.build import build_detector, deployable
from smnas.models.layers import NormKind
from smnas.space.architecture import Architecture

__all__ = [
    "Calibration",
    "LatencyFailedError",
    "LatencyPredictor",
    "MeasuredPart",
    "calibrate",
    "end_to_end_key",
    "no_end_to_end",
]


class LatencyFailedError(RuntimeError):
    """The detector, or a block of it, does not run on this target; the message is the reason, in one line."""


class MeasuredPart(NamedTuple):
    """A block's step name and measured latency."""

    name: str
    ms: float


@dataclass(frozen=True)
class LatencyPredictor:
    """Predicts the end-to-end latency of detectors.

    Attributes:
        rows: Current rows of one target by key, failures included.
        num_classes: Object classes of the detectors.
        batch: Images per run.
        model: Maps the sum of blocks to end-to-end latency; the default is the plain sum.
        interpolates: Blocks without a row are estimated from similar ones; intervals include the uncertainty.
        norm: Of the detectors.
    """

    rows: Mapping[str, Row] = field(repr=False)
    num_classes: int
    batch: int = 1
    model: LatencyModel = field(default_factory=LatencyModel)
    interpolates: bool = False
    norm: NormKind = "gn-ws"

    def predict(self, architecture: Architecture) -> Latency:
        """End-to-end latency in milliseconds, with its interval; raises as :meth:`parts_sum`."""
        return self.model.predict(self.parts_sum(architecture))

    def predict_many(self, architectures: Sequence[Architecture]) -> Latencies:
        """As :meth:`predict` for many detectors at once; NaN for those with a failed block."""
        sums = self._sums(architectures)
        return self.model.predict_many(sums.ms, sums.count, sums.half_ms)

    def parts_sum(self, architecture: Architecture) -> PartsSum:
        """Sum of a detector's blocks.

        Raises:
            LatencyFailedError: A block failed on this target.
            MissingPartsError: A block has no row, and the predictor does not interpolate.
            FewRowsError: It does, and the rows are too few for that.
        """
        keys = self.keys(architecture)
        try:
            return sum_parts(keys, self.rows)
        except FailedPartError as error:
            raise LatencyFailedError(str(error)) from error
        except MissingPartsError:
            if not self.interpolates:
                raise
        known = [self.rows[key] for key in keys if key in self.rows]
        if failed := next((row for row in known if row.status == "failed"), None):
            raise LatencyFailedError(str(FailedPartError(failed.name, failed.reason)))
        sums = self._sums([architecture])
        total = float(sums.ms[0])
        measured = sum(row.median_ms or 0.0 for row in known) / total
        return PartsSum(total, float(sums.half_ms[0]), len(keys), measured)

    def measured_parts(self, architecture: Architecture) -> tuple[MeasuredPart, ...]:
        """Names and measured latencies of a detector's blocks in execution order; raises as :meth:`part_rows`."""
        return tuple(MeasuredPart(part.name, row.median_ms or 0.0) for part, row in self.part_rows(architecture))

    def part_rows(self, architecture: Architecture) -> list[tuple[Workload, Row]]:
        """Blocks in execution order, each as its workload (without weights) and its measured row.

        Raises:
            LatencyFailedError: A block failed on this target.
            MissingPartsError: A block has no row.
        """
        replace(self, interpolates=False).parts_sum(architecture)
        return [(part, self.rows[part.key]) for part in self.parts(architecture)]

    def end_to_end_row(self, architecture: Architecture) -> Row | None:
        """The end-to-end row of a detector, measured or failed."""
        return self.rows.get(end_to_end_key(architecture, self.num_classes, self.batch, self.norm))

    def ended(self, architecture: Architecture) -> bool:
        """Whether a detector has its end-to-end row or can have none, as a block of it has failed."""
        known = [self.rows[key] for key in self.keys(architecture) if key in self.rows]
        return self.end_to_end_row(architecture) is not None or any(row.status == "failed" for row in known)

    def measured_detectors(self) -> Iterator[Architecture]:
        """Detectors with a measured end-to-end latency, as their rows come."""
        for key, row in self.rows.items():
            if row.kind == "whole" and row.status == "ok":
                with suppress(UserError):
                    architecture = Architecture.parse(key.partition("|")[0])
                    if end_to_end_key(architecture, self.num_classes, self.batch, self.norm) == key:
                        yield architecture

    def value(self, architectures: Sequence[Architecture]) -> dict[str, float]:
        """Value of measuring each missing block, by key, for predicting these detectors.

        The fraction of their uncertainty that it removes or, with too few rows to interpolate, of detectors that need
        it.
        """
        works = self._missing_works(architectures)
        if not works:
            return {}
        place = {key: index for index, key in enumerate(works)}
        counts = np.zeros((len(architectures), len(works)), dtype=np.int64)
        for number, architecture in enumerate(architectures):
            for key in self.keys(architecture):
                if key in place:
                    counts[number, place[key]] += 1
        try:
            covariance, noise = self.interpolation.covariance(list(works.values()))
        except FewRowsError:
            return dict(zip(works, (counts > 0).mean(0).tolist(), strict=True))
        return dict(zip(works, value_of_measuring(counts, covariance, noise).tolist(), strict=True))

    def keys(self, architecture: Architecture) -> tuple[str, ...]:
        """Keys of a detector's blocks in execution order."""
        return _block_keys(architecture, self.num_classes, self.batch, self.norm)

    def parts(self, architecture: Architecture) -> tuple[Workload, ...]:
        """Blocks of a detector in execution order, without weights."""
        return detector_workloads(architecture, self.num_classes, self.batch, norm=self.norm)

    @cached_property
    def interpolation(self) -> Interpolation:
        """Laws fitted on the measured blocks; raises :class:`FewRowsError` for too few."""
        pairs = [
            (work, row.median_ms)
            for row in self.rows.values()
            if row.kind == "part"
            and row.median_ms is not None
            and row.conditions.get("caches", "hot") == "hot"
            and (work := Work.from_dict(row.conditions.get("work"))) is not None
        ]
        return Interpolation.fit([work for work, _ in pairs], [ms for _, ms in pairs], level=self.model.level)

    def _sums(self, architectures: Sequence[Architecture]) -> PartsSums:
        keys_of = [self.keys(architecture) for architecture in architectures]
        wanted = {key for keys in keys_of for key in keys}
        works = self._missing_works(architectures) if self.interpolates else {}
        guesses = dict(zip(works, self.interpolation.guess(list(works.values())), strict=True)) if works else {}
        arrays = LatencyArrays.of({key: row for key, row in self.rows.items() if key in wanted}, guesses)
        return arrays.sum(arrays.find(keys_of))

    def _missing_works(self, architectures: Sequence[Architecture]) -> dict[str, Work]:
        """The work of each block without a row, by key."""
        works: dict[str, Work] = {}
        for architecture in architectures:
            if any(key not in self.rows and key not in works for key in self.keys(architecture)):
                for part in self.parts(architecture):
                    if part.key not in self.rows and part.key not in works:
                        works[part.key] = work_of(part)
        return works


# inferring a detector's shapes takes far longer than adding up its rows; only the keys are kept
@lru_cache(maxsize=1 << 17)
def _block_keys(architecture: Architecture, num_classes: int, batch: int, norm: NormKind) -> tuple[str, ...]:
    return tuple(part.key for part in detector_workloads(architecture, num_classes, batch, norm=norm))


@lru_cache(maxsize=1 << 12)
def end_to_end_key(architecture: Architecture, num_classes: int, batch: int, norm: NormKind = "gn-ws") -> str:
    """Key of a detector's end-to-end row."""
    detector = build_detector(architecture, num_classes, norm=norm, device="meta")
    return end_to_end_workload(deployable(detector), batch).key


@dataclass(frozen=True)
class Calibration:
    """A fit of predictions to measured detectors.

    Attributes:
        model: Maps the sum of blocks to end-to-end latency.
        detectors: Number of measured detectors that it is fitted on.
        half_width: Median over these of the half-width of a prediction's interval, relative to the prediction.
        failed: Architectures without a measurement, with the reason.
    """

    model: LatencyModel
    detectors: int
    half_width: float
    failed: tuple[tuple[Architecture, str], ...] = ()


def calibrate(predictor: LatencyPredictor, architectures: Iterable[Architecture]) -> Calibration:
    """Fit end-to-end latencies on these detectors alone; level and prior are the predictor's."""
    sums: list[PartsSum] = []
    measured_ms: list[float] = []
    failed: list[tuple[Architecture, str]] = []
    for architecture in dict.fromkeys(architectures):
        try:
            parts, whole = predictor.parts_sum(architecture), predictor.end_to_end_row(architecture)
            if whole is None or whole.median_ms is None:
                raise no_end_to_end(whole)
        except (LatencyFailedError, MissingPartsError) as error:
            failed.append((architecture, str(error)))
            continue
        sums.append(parts)
        measured_ms.append(whole.median_ms)
    start = predictor.model
    model = LatencyModel.fit(sums, measured_ms, level=start.level, prior=start.prior)
    predicted = [model.predict(parts) for parts in sums]
    half_widths = [(one.high_ms - one.low_ms) / (2 * one.ms) for one in predicted]
    half_width = float(np.median(half_widths)) if half_widths else model.relative_half_width
    return Calibration(model, len(sums), half_width, tuple(failed))


def no_end_to_end(row: Row | None) -> LatencyFailedError:
    """Error for an end-to-end row that is missing or failed."""
    return LatencyFailedError("the whole detector has no latency" + (f": {row.reason}" if row else ""))
