"""Interpolate latencies of unmeasured workloads from measured ones of their family, with calibrated intervals.

Within a family (blocks of one class) log latency is nearly linear in log work (operations, bytes, channels, cells,
depth), with smooth deviations where caches and kernels change. So each family has a Gaussian process on these
logarithms: a linear part, a smooth part and noise (Rasmussen and Williams, Gaussian Processes for Machine Learning,
2006, sections 2.7 and 5.4.2). Their scales are chosen by leave-one-out prediction, and the interval is widened until it
holds left-out rows at its nominal rate.

Pure array functions without torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # a quantile; scipy.stats takes a second to import

from profiler.prediction.predict import Array, error_quantile

if TYPE_CHECKING:
    from profiler.work import Work

__all__ = ["FewRowsError", "Guess", "Interpolation", "value_of_measuring"]

_MIN_ROWS = 6
"""Rows from which a family gets a law of its own; smaller families share one over all rows."""
_MAX_ROWS = 200
"""Rows that a family's law is fitted to, evenly spread over its latencies: the cost grows with their cube."""
_REACH = 1.0
"""Standard deviations outside its rows up to which a family's law is used: a steep slope leads anywhere from there."""
_LINEAR = 3.0
_LENGTHS = (0.5, 1.0, 2.0, 4.0)
_SMOOTH = (0.02, 0.1, 0.3, 1.0)
_NOISE = (0.005, 0.02, 0.08)
_LEAST_SPREAD = 1e-9


class FewRowsError(LookupError):
    """Too few measured rows to fit any law."""


@dataclass(frozen=True)
class Guess:
    """An interpolated latency.

    Attributes:
        ms: the most likely value, with the interval ``low_ms`` to ``high_ms``.
        family: whose law it comes from; ``all`` where its own family has too few rows, or none near.
        rows: number of rows behind that law.
    """

    ms: float
    low_ms: float
    high_ms: float
    family: str
    rows: int


@dataclass(frozen=True)
class _Law:
    """The law of one family, conditioned on its rows.

    Attributes:
        centre: ``(F,)`` mean of the features.
        scale: ``(F,)`` their standard deviation, 1 where they are all equal.
        features: ``(n, F)`` of the rows, standardized.
        mean: of the rows' log latencies.
        weights: ``(n,)`` of the rows in a prediction.
        precision: ``(n, n)`` inverse of the rows' covariance.
        smooth: standard deviation of the smooth part.
        length: length scale of the smooth part.
        noise: standard deviation of a single row.
        widen: half-width of the interval in standard deviations, from left-out rows.
    """

    centre: Array
    scale: Array
    features: Array
    mean: float
    weights: Array
    precision: Array
    smooth: float
    length: float
    noise: float
    widen: float

    @classmethod
    def fit(cls, features: Array, log_ms: Array, level: float) -> Self:
        centre, spread = features.mean(0), features.std(0)
        scale = np.where(spread > _LEAST_SPREAD, spread, 1.0)
        x = (features - centre) / scale
        mean = float(log_ms.mean())
        y = log_ms - mean
        best: tuple[float, tuple[float, float, float], Array] | None = None
        for smooth, length, noise in product(_SMOOTH, _LENGTHS, _NOISE):
            covariance = _kernel(x, x, smooth, length) + noise**2 * np.eye(len(x))
            inverse = np.linalg.inv(covariance).astype(np.float64, copy=False)
            variance = 1 / np.diag(inverse)
            errors = (inverse @ y) * variance
            score = float(-0.5 * np.sum(errors**2 / variance + np.log(variance)))
            if best is None or score > best[0]:
                best = (score, (smooth, length, noise), inverse)
        if best is None:
            raise AssertionError("the grid is not empty")
        _, (smooth, length, noise), inverse = best
        left_out = (inverse @ y) / np.sqrt(np.diag(inverse))
        widen = error_quantile(left_out, len(left_out) - 1, level, least_spread=1.0)
        return cls(centre, scale, x, mean, inverse @ y, inverse, smooth, length, noise, widen)

    def reaches(self, features: Array) -> bool:
        """Whether ``(n, F)`` features are within the rows' range, or at most one standard deviation outside."""
        x = (features - self.centre) / self.scale
        return bool(((x >= self.features.min(0) - _REACH) & (x <= self.features.max(0) + _REACH)).all())

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean ``(M,)`` and covariance ``(M, M)`` of log latencies, without measurement noise."""
        x = (features - self.centre) / self.scale
        across = _kernel(x, self.features, self.smooth, self.length)
        covariance = _kernel(x, x, self.smooth, self.length) - across @ self.precision @ across.T
        return self.mean + across @ self.weights, covariance


@dataclass(frozen=True)
class Interpolation:
    """Laws by family, fitted to measured rows; ``level`` is the nominal coverage of measured latencies."""

    level: float
    _laws: dict[str, _Law]
    _common: _Law

    @classmethod
    def fit(cls, works: Sequence["Work"], medians_ms: Sequence[float], *, level: float = 0.9) -> Self:
        """Fit the laws to the work and positive latency of measured rows; ``level`` is in (0, 1).

        Raises:
            FewRowsError: there are fewer than six rows.
        """
        if len(works) != len(medians_ms):
            raise ValueError(f"one latency per row is needed, but got {len(works)} and {len(medians_ms)}")
        if not 0 < level < 1:
            raise ValueError(f"0 < level < 1 must hold, but got {level}")
        if len(works) < _MIN_ROWS:
            raise FewRowsError(f"a law needs {_MIN_ROWS} measured rows, but got {len(works)}")
        features, log_ms = _features(works), np.log(np.asarray(medians_ms, dtype=np.float64))
        families = np.array([work.family for work in works])
        laws = {}
        for family in sorted(set(families.tolist())):
            rows = _spread_out(np.flatnonzero(families == family), log_ms)
            if len(rows) >= _MIN_ROWS:
                laws[family] = _Law.fit(features[rows], log_ms[rows], level)
        rows = _spread_out(np.arange(len(works)), log_ms)
        return cls(level, laws, _Law.fit(features[rows], log_ms[rows], level))

    def guess(self, works: Sequence["Work"]) -> list[Guess]:
        """Guess each workload's latency, with an interval for its measurement."""
        guesses = []
        for work in works:
            family, law = self._law_of(work)
            mean, covariance = law.predict(_features([work]))
            half = law.widen * math.sqrt(max(float(covariance[0, 0]), 0.0) + law.noise**2)
            middle = float(mean[0])
            low, ms, high = (math.exp(middle + sign * half) for sign in (-1, 0, 1))
            guesses.append(Guess(ms, low, high, family, len(law.features)))
        return guesses

    def _law_of(self, work: "Work") -> tuple[str, _Law]:
        """The family's law and name, or those over all rows where the family has none or its rows are far away."""
        law = self._laws.get(work.family)
        return (work.family, law) if law is not None and law.reaches(_features([work])) else ("all", self._common)

    def covariance(self, works: Sequence["Work"]) -> tuple[Array, Array]:
        """Joint covariance of the errors of guesses.

        Returns:
            ``(M, M)`` covariance in ms^2, zero between families, and the ``(M,)`` variance of measuring each.
        """
        features = _features(works)
        names = np.array([self._law_of(work)[0] for work in works])
        joint, noise = np.zeros((len(works), len(works))), np.zeros(len(works))
        for name in sorted(set(names.tolist())):
            rows = np.flatnonzero(names == name)
            law = self._laws.get(name, self._common)
            mean, covariance = law.predict(features[rows])
            ms = np.exp(mean)
            # Left-out rows correct the law's own standard deviation.
            factor = (law.widen / float(ndtri((1 + self.level) / 2))) ** 2
            joint[np.ix_(rows, rows)] = factor * covariance * np.outer(ms, ms)
            noise[rows] = factor * (law.noise * ms) ** 2
        return joint, noise


def value_of_measuring(counts: NDArray[np.integer], covariance: Array, noise: Array) -> Array:
    """Fraction of the uncertainty of many predictions that measuring one missing row removes.

    The uncertainty is the sum of the variances of all networks' predictions. A row removes more if many networks use
    it, if it is slow, or if its guess is correlated with others.

    Args:
        counts: ``(N, M)`` how often each network uses each missing row.
        covariance: ``(M, M)`` of the guesses, in ms^2.
        noise: ``(M,)`` variance of a measurement.

    Returns:
        ``(M,)`` fractions of the total uncertainty, each as if only that row were measured next.
    """
    use = counts.astype(np.float64)
    shared = use @ covariance  # (N, M): covariance of each network's error with each row's
    whole = float(np.sum(shared * use))
    if whole <= 0:
        return np.zeros(use.shape[1])
    gains: Array = (shared**2).sum(0) / np.maximum(np.diag(covariance) + noise, np.finfo(float).tiny) / whole
    return gains


def _features(works: Sequence["Work"]) -> Array:
    figures = [
        (work.flops, work.float_elements, work.parameters, work.channels, work.cells, work.layers) for work in works
    ]
    return np.log1p(np.array(figures, dtype=np.float64).reshape(-1, 6))


def _kernel(first: Array, second: Array, smooth: float, length: float) -> Array:
    distances = ((first[:, None, :] - second[None, :, :]) ** 2).sum(-1)
    kernel: Array = _LINEAR**2 * (1 + first @ second.T) + smooth**2 * np.exp(-distances / (2 * length**2))
    return kernel


def _spread_out(rows: NDArray[np.int64], log_ms: Array) -> NDArray[np.int64]:
    if len(rows) <= _MAX_ROWS:
        return rows
    ordered = rows[np.argsort(log_ms[rows], kind="stable")]
    return ordered[np.linspace(0, len(rows) - 1, _MAX_ROWS).round().astype(np.int64)]
