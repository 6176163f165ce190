"""Predict a network's end-to-end latency from its blocks' rows, with an interval.

The blocks' sum alone is biased: operators fuse across the cuts, and every block pays for its own launch. So whole
networks are measured too, and ``whole = a * sum + b * blocks`` is fitted with ``a, b >= 0``; its leave-one-out errors
give the interval.

Pure array functions without torch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit  # Student's quantile; scipy.stats takes a second to import

from profiler.table.latency_table import Row

__all__ = [
    "FailedPartError",
    "Latencies",
    "Latency",
    "LatencyModel",
    "MissingPartsError",
    "PartsSum",
    "error_quantile",
    "fit_relative",
    "sum_parts",
]

UNCALIBRATED_RELATIVE = 0.5
"""Relative half-width of an uncalibrated interval: an assumption, and labelled as one."""

_MIN_FOR_TWO = 8
"""Calibration networks needed to fit the cost per block beside the scale; with fewer it would overfit the noise."""
_MIN_FOR_QUANTILE = 20
"""Calibration networks from which the interval is a quantile of the residuals instead of Student's distribution."""

Array = NDArray[np.float64]


class MissingPartsError(LookupError):
    """Some workloads, with their distinct ``keys``, have no row in the table."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)
        super().__init__(f"{len(self.keys)} workloads have not been measured, the first is {self.keys[0]}")


class FailedPartError(RuntimeError):
    """A workload, ``name``, has no latency because measuring it failed with ``reason``."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{name} has no latency: {reason}")


@dataclass(frozen=True)
class PartsSum:
    """Sum over the blocks of one network.

    Attributes:
        ms: sum of the medians.
        half_ms: half-width of the sum's own interval: the blocks' half-widths added as independent errors.
        count: number of blocks, repeated ones included.
        measured: fraction of ``ms`` that was measured; the rest is interpolated.
    """

    ms: float
    half_ms: float
    count: int
    measured: float = 1.0


@dataclass(frozen=True)
class Latency:
    """A predicted latency with its interval; uncalibrated, without measured networks, the interval is an assumption.

    ``measured`` is the fraction of the blocks' time that was measured; the rest is interpolated.
    """

    ms: float
    low_ms: float
    high_ms: float
    calibrated: bool
    measured: float = 1.0

    def __str__(self) -> str:
        note = "" if self.calibrated else ", not calibrated"
        return f"{self.ms:.4g} ms [{self.low_ms:.4g}, {self.high_ms:.4g}]{note}"


@dataclass(frozen=True)
class Latencies:
    """Predicted latencies of many networks: three arrays of shape ``(N,)`` in milliseconds."""

    ms: Array
    low_ms: Array
    high_ms: Array
    calibrated: bool


def sum_parts(keys: Iterable[str], rows: Mapping[str, Row]) -> PartsSum:
    """Add up the blocks of one network, repeated ones included.

    Raises:
        MissingPartsError: some keys have no row; names them all.
        FailedPartError: some block's row is a failure.
    """
    keys = list(keys)
    absent = [key for key in dict.fromkeys(keys) if key not in rows]
    if absent:
        raise MissingPartsError(absent)
    total = 0.0
    halves: dict[str, float] = {}
    for key in keys:
        row = rows[key]
        if row.interval is None:
            raise FailedPartError(row.name, row.reason)
        low, median, high = row.interval
        total += median
        # A repeated row repeats the same error; its uses are not independent.
        halves[key] = halves.get(key, 0.0) + (high - low) / 2
    return PartsSum(total, math.hypot(*halves.values()), len(keys))


@dataclass(frozen=True)
class LatencyModel:
    """``whole = scale * sum + per_part_ms * count``.

    Attributes:
        scale: factor of the blocks' sum.
        per_part_ms: extra cost per block.
        relative_half_width: of a prediction's interval, without the blocks' own.
        level: nominal coverage of the interval.
        residuals: leave-one-out ``measured / predicted - 1`` of every calibration network.
        calibrated: whether the interval comes from at least two measured networks.
    """

    scale: float = 1.0
    per_part_ms: float = 0.0
    relative_half_width: float = UNCALIBRATED_RELATIVE
    level: float = 0.9
    residuals: tuple[float, ...] = field(default=(), repr=False)
    calibrated: bool = False

    @classmethod
    def fit(cls, parts: Sequence[PartsSum], measured_ms: Sequence[float], *, level: float = 0.9) -> Self:
        """Fit sums over blocks to end-to-end latencies by non-negative least squares of the relative error.

        With fewer than 8 networks only the scale is fitted. With none the model is the plain sum; with one the interval
        stays the assumed one, as a single network says nothing about the spread. ``level`` is in (0, 1).
        """
        if len(parts) != len(measured_ms):
            raise ValueError(f"one latency per network is needed, but got {len(parts)} and {len(measured_ms)}")
        if not 0 < level < 1:
            raise ValueError(f"0 < level < 1 must hold, but got {level}")
        if not parts:
            return cls(level=level)
        sums = np.array([part.ms for part in parts], dtype=np.float64)
        counts = np.array([part.count for part in parts], dtype=np.float64)
        measured = np.array(measured_ms, dtype=np.float64)
        if not (np.isfinite(measured).all() and (measured > 0).all() and (sums > 0).all()):
            raise ValueError("latencies and the sums of their parts must be positive, but some are not")
        per_part = len(measured) >= _MIN_FOR_TWO
        scale, per_part_ms = fit_relative(sums, counts, measured, per_part)
        residuals = _left_out_residuals(sums, counts, measured, per_part)
        half = _half_width(residuals, len(measured) - (2 if per_part else 1), level)
        return cls(scale, per_part_ms, half, level, tuple(residuals.tolist()), len(measured) > 1)

    def predict(self, parts: PartsSum) -> Latency:
        """Predict one network."""
        many = self.predict_many([parts.ms], [parts.count], [parts.half_ms])
        return Latency(
            float(many.ms[0]), float(many.low_ms[0]), float(many.high_ms[0]), self.calibrated, parts.measured
        )

    def predict_many(self, sums_ms: ArrayLike, counts: ArrayLike, halves_ms: ArrayLike = 0.0) -> Latencies:
        """Predict ``(N,)`` networks from their sums, numbers of blocks, and the half-widths of the sums' intervals."""
        sums, parts, halves = (np.asarray(values, dtype=np.float64) for values in (sums_ms, counts, halves_ms))
        ms = self.scale * sums + self.per_part_ms * parts
        half = np.hypot(self.relative_half_width * ms, self.scale * halves)
        return Latencies(ms, np.maximum(ms - half, 0.0), ms + half, self.calibrated)


def fit_relative(sums: Array, counts: Array, measured: Array, per_part: bool) -> tuple[float, float]:
    """Least squares of the relative error over ``scale >= 0`` and ``per_part_ms >= 0`` (or 0), in closed form."""
    x, y = sums / measured, counts / measured  # the target is then 1 everywhere
    xx, yy, xy, x1, y1 = float(x @ x), float(y @ y), float(x @ y), float(x.sum()), float(y.sum())
    scale_only = x1 / xx
    if not per_part or yy == 0:
        return scale_only, 0.0
    determinant = xx * yy - xy * xy
    if determinant > 1e-12 * xx * yy:
        scale, cost = (yy * x1 - xy * y1) / determinant, (xx * y1 - xy * x1) / determinant
        if scale >= 0 and cost >= 0:
            return scale, cost
    # The unconstrained optimum is infeasible: the constrained one is on a border, where one coefficient is 0.
    part_only = y1 / yy
    error_scale = len(measured) - scale_only * x1
    error_part = len(measured) - part_only * y1
    return (scale_only, 0.0) if error_scale <= error_part else (0.0, part_only)


def _left_out_residuals(sums: Array, counts: Array, measured: Array, per_part: bool) -> Array:
    if len(measured) < 2:
        return np.zeros(0)
    residuals = np.empty(len(measured))
    for index in range(len(measured)):
        kept = np.arange(len(measured)) != index
        scale, per_part_ms = fit_relative(sums[kept], counts[kept], measured[kept], per_part)
        residuals[index] = measured[index] / (scale * sums[index] + per_part_ms * counts[index]) - 1
    return residuals


def _half_width(residuals: Array, degrees: int, level: float) -> float:
    if len(residuals) < 2 or degrees < 1:
        return UNCALIBRATED_RELATIVE
    return error_quantile(residuals, degrees, level)


def error_quantile(errors: Array, degrees: int, level: float, *, least_spread: float = 0.0) -> float:
    """Half-width that holds a new error with probability ``level``: conformal, or Student's for few errors.

    ``degrees`` of freedom and ``least_spread``, the least root mean square to assume, are Student's.
    """
    n = len(errors)
    if n >= _MIN_FOR_QUANTILE and (rank := math.ceil((n + 1) * level)) <= n:
        # Conformal rank: of n + 1 exchangeable errors the new one is among the `rank` smallest with that probability
        return float(np.sort(np.abs(errors))[rank - 1])
    spread = math.sqrt(float(errors @ errors) / n)
    return float(stdtrit(degrees, (1 + level) / 2)) * max(spread, least_spread)
