"""Gaussian-process surrogate over encoded designs.

The kernel adds up what each feature does alone (a line, and a bend around it) and what features do together (Matern 5/2
with a length per feature). Lengths, weights and noise have the largest posterior density (Rasmussen & Williams, 2006,
section 5.4), found by L-BFGS; the prior holds the lengths together where few observations tell them apart. The caller
picks at most 160 observations, so that a fit takes the same fraction of a second in a long search.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

__all__ = ["MOST_OBSERVATIONS", "Compared", "GaussianProcess", "Observed", "negative_log_posterior", "prior"]

MOST_OBSERVATIONS = 160
_BEND = 3.0  # weight of the bends, the lines' is 1
_SPREAD_OF_SCALES = 2.0  # standard deviation of the logarithm of a squared length
_ALONE = (0.0, 1.5)  # mean and standard deviation of the logarithm of the weight of what features do alone
_TOGETHER = (0.0, 1.0)  # of what they do together
_NOISE = (math.log(3e-3), 1.5)  # of the noise's variance; all relative to the observations' variance
_BOUNDS = ((-12.0, 6.0), (-6.0, 4.0), (-4.0, 4.0), (math.log(1e-4), math.log(0.5)))
_SHORTER = 2.0  # the better one of two starts: the prior's centre, and lengths shorter by a factor of e
_STEPS = 40
_DIGITS = 3

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """``m`` designs as a model over the ``n`` observed ones sees them.

    Attributes:
        features: ``(m, d)``, standardized like the observed ones.
        alone: ``(m, n)``, the mean over features of each one's own kernel.
        own: ``(m,)``, the same of each design with itself.
    """

    features: Array
    alone: Array
    own: Array


class Observed:
    """Designs that models are fitted on.

    Args:
        features: ``(n, d)``, n from 1; standardized inside.
    """

    def __init__(self, features: Array) -> None:
        scale = features.std(axis=0)
        self._centre, self._scale = features.mean(axis=0), np.where(scale > 1e-12, scale, 1.0)
        self.features = (features - self._centre) / self._scale
        self.size, self.dimensions = features.shape
        self.among = self.compared(features)
        """Observed designs compared with each other."""

    def compared(self, features: Array) -> Compared:
        """Compare other designs, ``(m, d)``, with the observed ones."""
        x = (features - self._centre) / self._scale
        return Compared(x, _alone(x, self.features), (x * x).mean(axis=1) + _BEND)


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted model; values are standardized inside.

    Attributes:
        observed: Designs that it is fitted on.
        mean, spread: Of the values.
        scales: ``(d,)`` reciprocals of the squared lengths.
        alone, together: Weights of the two parts of the kernel.
        noise: Variance of the noise, relative to the values'.
        whitening: Inverse of the lower Cholesky factor of the observations' covariance.
        weights: Covariance solved for the values.
    """

    observed: Observed
    mean: float
    spread: float
    scales: Array
    alone: float
    together: float
    noise: float
    whitening: Array
    weights: Array

    @classmethod
    def fit(cls, observed: Observed, values: Array, noise: Array | None = None) -> Self:
        """Fit by the largest posterior density.

        Args:
            observed: n designs.
            values: ``(n,)`` finite.
            noise: ``(n,)`` known variances of the values, in their unit squared; none by default.
        """
        mean, spread = float(values.mean()), float(values.std()) or 1.0
        y = (values - mean) / spread
        known = np.zeros(observed.size) if noise is None else noise / spread**2
        centre, _ = prior(observed.dimensions)
        bounds = [_BOUNDS[0]] * observed.dimensions + list(_BOUNDS[1:])
        shorter = centre + np.where(np.arange(len(centre)) < observed.dimensions, _SHORTER, 0.0)
        data = observed, y, known
        start = min((centre, shorter), key=lambda one: negative_log_posterior(one, *data)[0])
        found = minimize(
            negative_log_posterior, start, data, "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": _STEPS}
        )
        # Rounded, so that the last bits of a processor's arithmetic do not decide what a search proposes.
        point = np.round(found.x, _DIGITS)
        covariance, _ = _covariance(point, observed, known)
        factor = np.linalg.cholesky(covariance)
        whitening = solve_triangular(factor, np.eye(observed.size), lower=True)
        scales, (alone, together, extra) = np.exp(point[:-3]), np.exp(point[-3:]).tolist()
        weights = np.asarray(whitening.T @ (whitening @ y), dtype=np.float64)
        return cls(observed, mean, spread, scales, alone, together, extra, whitening, weights)

    def expect(self, compared: Compared) -> Array:
        """Mean of the value at m designs, ``(m,)``."""
        return np.asarray(self.mean + self.spread * (self._across(compared) @ self.weights), dtype=np.float64)

    def predict(self, compared: Compared) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free value at m designs, ``(m,)`` each."""
        across = self._across(compared)
        explained = self.whitening @ across.T
        variance = self.together + self.alone * compared.own - (explained * explained).sum(axis=0)
        return self.mean + self.spread * (across @ self.weights), self.spread * np.sqrt(np.maximum(variance, 1e-9))

    def _across(self, compared: Compared) -> Array:
        near, _ = _matern(_distances(compared.features, self.observed.features, self.scales))
        return np.asarray(self.together * near + self.alone * compared.alone, dtype=np.float64)


def prior(dimensions: int) -> tuple[Array, Array]:
    """Mean and standard deviation of the normal prior, ``(d + 3,)`` each.

    Of the logarithms of the features' scales, of the weights alone and together, and of the noise's variance. Lengths
    grow with the square root of the number of features, as distances do (Hvarfner et al., arXiv 2402.02229).
    """
    others = np.array([_ALONE, _TOGETHER, _NOISE])
    means = np.concatenate([np.full(dimensions, -math.log(dimensions)), others[:, 0]])
    return means, np.concatenate([np.full(dimensions, _SPREAD_OF_SCALES), others[:, 1]])


def negative_log_posterior(point: Array, observed: Observed, y: Array, known: Array) -> tuple[float, Array]:
    """Return minus the logarithm of the posterior density, up to a constant, and its gradient ``(d + 3,)``.

    Args:
        point: ``(d + 3,)``, see :func:`prior`.
        observed: n designs.
        y: ``(n,)`` standardized values.
        known: ``(n,)`` variances of their known noise.
    """
    covariance, (near, slope) = _covariance(point, observed, known)
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # as good as singular
        return 1e10, np.zeros_like(point)
    inverse = cho_solve((factor, True), np.eye(observed.size))
    weights = inverse @ y
    centre, deviation = prior(observed.dimensions)
    apart = (point - centre) / deviation
    density = 0.5 * float(y @ weights) + float(np.log(np.diag(factor)).sum()) + 0.5 * float(apart @ apart)
    # Of the covariance's elements; half of the trace with a derivative of the covariance is that of the density.
    outer = 0.5 * (inverse - np.outer(weights, weights))
    scales, (alone, together, noise) = np.exp(point[:-3]), np.exp(point[-3:])
    x, pull = observed.features, together * outer * slope
    # The sum over pairs of pull times their squared difference in each feature.
    squares = 2.0 * ((x * x).T @ pull.sum(axis=1) - ((pull @ x) * x).sum(axis=0))
    rest = [alone * (outer * observed.among.alone).sum(), together * (outer * near).sum(), noise * np.trace(outer)]
    gradient = np.concatenate([scales * squares, rest]) + apart / deviation
    return density, np.asarray(gradient, dtype=np.float64)


def _covariance(point: Array, observed: Observed, known: Array) -> tuple[Array, tuple[Array, Array]]:
    """Covariance of the observations; and the part together without its weight, with its slope by squared distance."""
    alone, together, noise = np.exp(point[-3:])
    near, slope = _matern(_distances(observed.features, observed.features, np.exp(point[:-3])))
    covariance = together * near + alone * observed.among.alone
    covariance[np.arange(observed.size), np.arange(observed.size)] += known + noise
    return covariance, (near, slope)


def _distances(a: Array, b: Array, scales: Array) -> Array:
    a, b = a * np.sqrt(scales), b * np.sqrt(scales)
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)), dtype=np.float64)


def _alone(a: Array, b: Array) -> Array:
    """Mean over features of each one's own kernel: a line, and a rational quadratic bend."""
    bends = np.zeros((len(a), len(b)))
    for left, right in zip(a.T, b.T, strict=True):
        bend = left[:, None] - right[None, :]
        bend *= bend  # in place: a new matrix per step would dominate a fit
        bend += 1.0
        bends += np.reciprocal(bend, out=bend)
    return np.asarray((a @ b.T + _BEND * bends) / a.shape[1], dtype=np.float64)


def _matern(distances: Array) -> tuple[Array, Array]:
    """Matern 5/2, and its derivative by the squared distance."""
    bent = math.sqrt(5.0) * distances
    fall = np.exp(-bent)
    return (1.0 + bent + bent * bent / 3.0) * fall, -5.0 / 6.0 * (1.0 + bent) * fall
