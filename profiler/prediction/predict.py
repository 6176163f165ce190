"""Predict a network's end-to-end latency from its blocks' rows, with an interval.

The blocks' sum alone is biased: operators fuse across the cuts, and every block pays for its own launch. So whole
networks are measured too, and ``whole = a * sum + b * blocks`` is fitted with ``a, b >= 0``: Bayesian linear regression
of the relative error with a conjugate prior (Bishop, Pattern Recognition and Machine Learning, 2006, section 3.3;
exercise 3.13 for the Student predictive distribution). Few networks thus fit both terms, near what is known of the
backend; with many the prior fades, the fit is least squares, and leave-one-out errors give the interval.

Pure array functions without torch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls
from scipy.special import stdtrit  # Student's quantile; scipy.stats takes a second to import

from profiler.table.latency_table import Row

__all__ = [
    "PRIORS",
    "FailedPartError",
    "Latencies",
    "Latency",
    "LatencyModel",
    "MissingPartsError",
    "PartsSum",
    "Prior",
    "error_quantile",
    "prior_of",
    "sum_parts",
]

UNCALIBRATED_RELATIVE = 0.5
"""Relative half-width of an uncalibrated interval: an assumption, and labelled as one."""

_MIN_FOR_QUANTILE = 20
"""Calibration networks from which the interval is a quantile of the residuals instead of the posterior's."""

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
class Prior:
    """What is assumed of a backend before any network is measured.

    Attributes:
        scale: mean of the sum's factor, with standard deviation ``scale_sd`` at the assumed noise.
        per_part_ms: mean of the cost per block, with standard deviation ``per_part_sd_ms``.
        noise: relative error of a single network around the fit.
        noise_weight: networks that the assumed noise counts for: its degrees of freedom.
    """

    scale: float = 1.0
    scale_sd: float = 0.3
    per_part_ms: float = 0.03
    per_part_sd_ms: float = 0.1
    noise: float = 0.06
    noise_weight: float = 1.0


PRIORS = {"onnxruntime": Prior(scale_sd=0.1, per_part_sd_ms=0.05, noise=0.04)}
"""By backend. ONNX Runtime on CPUs: least squares on 24 to 100 detectors of each kept audit and table (nano in fp32 and
int8, small, and a noisy virtual machine) gave scales of 0.95 to 1.05, 0.00 to 0.09 ms per block, and errors of 2.4 to
3.9%, on the noisy machine 17%; hence the single degree of freedom. On a GPU ONNX Runtime takes it too, unmeasured."""


def prior_of(backend: str) -> Prior:
    """What is assumed of a backend by name; a wide prior for one of which nothing is known."""
    return PRIORS.get(backend, Prior())


@dataclass(frozen=True)
class LatencyModel:
    """``whole = scale * sum + per_part_ms * count``.

    Attributes:
        scale: factor of the blocks' sum.
        per_part_ms: extra cost per block.
        relative_half_width: of a prediction's interval, without the uncertainty of the two terms and of the blocks.
        level: nominal coverage of the interval.
        term_squares: squared half-widths of ``scale`` and ``per_part_ms``, and between them their covariance in the
            same unit; 0 where leave-one-out errors contain their uncertainty.
        residuals: ``measured / predicted - 1`` of every calibration network, left out where the interval comes from it.
        calibrated: whether the model is fitted to measured networks.
        prior: what a fit starts from.
    """

    scale: float = 1.0
    per_part_ms: float = 0.0
    relative_half_width: float = UNCALIBRATED_RELATIVE
    level: float = 0.9
    term_squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    residuals: tuple[float, ...] = field(default=(), repr=False)
    calibrated: bool = False
    prior: Prior = field(default_factory=Prior, repr=False)

    @classmethod
    def fit(
        cls,
        parts: Sequence[PartsSum],
        measured_ms: Sequence[float],
        *,
        level: float = 0.9,
        prior: Prior = Prior(),
    ) -> Self:
        """Fit sums over blocks to end-to-end latencies by non-negative least squares of the relative error.

        The prior counts as three more observations: of the two terms and of the noise. Below 20 networks the interval
        is that of the posterior's Student distribution, from 20 on conformal. With no network the model is the plain
        sum, and the interval an assumption. ``level`` is in (0, 1).
        """
        if len(parts) != len(measured_ms):
            raise ValueError(f"one latency per network is needed, but got {len(parts)} and {len(measured_ms)}")
        if not 0 < level < 1:
            raise ValueError(f"0 < level < 1 must hold, but got {level}")
        if not parts:
            return cls(level=level, prior=prior)
        sums = np.array([part.ms for part in parts], dtype=np.float64)
        counts = np.array([part.count for part in parts], dtype=np.float64)
        measured = np.array(measured_ms, dtype=np.float64)
        if not (np.isfinite(measured).all() and (measured > 0).all() and (sums > 0).all()):
            raise ValueError("latencies and the sums of their parts must be positive, but some are not")
        terms, error, covariance = _posterior(sums / measured, counts / measured, prior)
        scale, per_part_ms = terms.tolist()
        if len(measured) >= _MIN_FOR_QUANTILE:
            residuals = _left_out_residuals(sums, counts, measured, prior)
            half = error_quantile(residuals, len(measured) - 2, level)
            return cls(scale, per_part_ms, half, level, (0.0, 0.0, 0.0), tuple(residuals.tolist()), True, prior)
        degrees = prior.noise_weight + len(measured)
        variance = (prior.noise_weight * prior.noise**2 + error**2) / degrees
        half = float(stdtrit(degrees, (1 + level) / 2)) * math.sqrt(variance)
        (of_scale, across), (_, of_part) = (half**2 * covariance).tolist()
        residuals = measured / (np.stack([sums, counts], axis=1) @ terms) - 1
        spread = (of_scale, across, of_part)
        return cls(scale, per_part_ms, half, level, spread, tuple(residuals.tolist()), True, prior)

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
        of_scale, across, of_part = self.term_squares
        of_terms = of_scale * sums**2 + 2 * across * sums * parts + of_part * parts**2
        half = np.sqrt((self.relative_half_width * ms) ** 2 + of_terms + (self.scale * halves) ** 2)
        return Latencies(ms, np.maximum(ms - half, 0.0), ms + half, self.calibrated)


def _posterior(x: Array, y: Array, prior: Prior) -> tuple[Array, float, Array]:
    """Fit ``1 = scale * x + per_part_ms * y`` with ``(N,)`` relative sums and counts, and the prior as two more rows.

    Returns:
        The two terms, not negative; the root of the summed squares of all rows' errors; the terms' ``(2, 2)``
        covariance in units of the noise's variance, as if they were not bounded.
    """
    pull = prior.noise / np.array([prior.scale_sd, prior.per_part_sd_ms])
    rows = np.vstack([np.stack([x, y], axis=1), np.diag(pull)])
    target = np.concatenate([np.ones(len(x)), pull * [prior.scale, prior.per_part_ms]])
    terms, error = nnls(rows, target)
    covariance: Array = np.linalg.inv(rows.T @ rows).astype(np.float64, copy=False)
    return terms, float(error), covariance


def _left_out_residuals(sums: Array, counts: Array, measured: Array, prior: Prior) -> Array:
    residuals = np.empty(len(measured))
    for index in range(len(measured)):
        kept = np.arange(len(measured)) != index
        (scale, per_part_ms), _, _ = _posterior(sums[kept] / measured[kept], counts[kept] / measured[kept], prior)
        residuals[index] = measured[index] / (scale * sums[index] + per_part_ms * counts[index]) - 1
    return residuals


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
