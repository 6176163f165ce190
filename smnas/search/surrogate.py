"""A model of a number over designs that knows how sure it is: a Gaussian process.

Small on purpose. The kernel adds up what each feature does alone (linear, and a bend around it) and what they do
together (Matern 5/2 of one length); length, noise and the weight of the first part are chosen from a grid by the
evidence. It looks at 160 observations at most, so that a fit takes the same few milliseconds in a long search; which
ones is the caller's choice.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_OBSERVATIONS", "GaussianProcess"]

MOST_OBSERVATIONS = 160
_LENGTHS = (0.25, 0.5, 1.0, 2.0)  # times the square root of the number of features
_ALONE = (0.5, 5.0)  # weight of what features do alone; what they do together has variance 1
_BEND = 3.0  # weight of the bends, the lines' is 1
_NOISES = (1e-3, 3e-2)  # variance of the noise, relative to the observations'

Array = NDArray[np.float64]


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted model. Features and values are standardized inside.

    Attributes:
        centre, scale: Of the features, ``(d,)``.
        mean, spread: Of the values.
        features: ``(n, d)``, standardized.
        length, weight: The kernel's.
        factor: Lower Cholesky factor of the observations' covariance.
        weights: Covariance solved for the values.
    """

    centre: Array
    scale: Array
    mean: float
    spread: float
    features: Array
    length: float
    weight: float
    factor: Array
    weights: Array

    @classmethod
    def fit(cls, features: Array, values: Array, noise: Array | None = None) -> Self:
        """Fit by the largest evidence on a small grid.

        Args:
            features: ``(n, d)``, n from 1.
            values: ``(n,)`` finite.
            noise: ``(n,)`` variances that are known of the values, in their unit squared; none by default.
        """
        centre, scale = features.mean(axis=0), features.std(axis=0)
        scale = np.where(scale > 1e-12, scale, 1.0)
        x = (features - centre) / scale
        mean, spread = float(values.mean()), float(values.std()) or 1.0
        y = (values - mean) / spread
        known = np.zeros(len(y)) if noise is None else noise / spread**2
        distances = _distances(x, x)
        alone = _alone(x, x)
        best: tuple[float, float, float, Array, Array] | None = None
        for length in (share * math.sqrt(x.shape[1]) for share in _LENGTHS):
            bent = _matern(distances / length)
            for weight in _ALONE:
                for extra in _NOISES:
                    covariance = bent + weight * alone + np.diag(known + extra)
                    factor = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
                    half = np.asarray(np.linalg.solve(factor, y), dtype=np.float64)
                    evidence = -0.5 * float(half @ half) - float(np.log(np.diag(factor)).sum())
                    if best is None or evidence > best[0]:
                        best = (evidence, length, weight, factor, half)
        assert best is not None  # noqa: S101  the grid is not empty
        _, length, weight, factor, half = best
        return cls(centre, scale, mean, spread, x, length, weight, factor, np.asarray(np.linalg.solve(factor.T, half)))

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the value without its noise, ``(m,)`` each, at ``(m, d)`` features."""
        x = (features - self.centre) / self.scale
        across = _matern(_distances(x, self.features) / self.length)
        across += self.weight * _alone(x, self.features)
        own = 1.0 + self.weight * ((x * x).mean(axis=1) + _BEND)
        explained = np.linalg.solve(self.factor, across.T)
        variance = np.maximum(own - (explained * explained).sum(axis=0), 1e-9)
        return self.mean + self.spread * (across @ self.weights), self.spread * np.sqrt(variance)


def _distances(a: Array, b: Array) -> Array:
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)), dtype=np.float64)


def _alone(a: Array, b: Array) -> Array:
    """The mean over features of each one's own kernel: a line, and a rational quadratic bend."""
    bends = np.zeros((len(a), len(b)))
    for left, right in zip(a.T, b.T, strict=True):
        apart = left[:, None] - right[None, :]
        bends += 1.0 / (1.0 + apart * apart)
    return np.asarray((a @ b.T + _BEND * bends) / a.shape[1], dtype=np.float64)


def _matern(scaled: Array) -> Array:
    bent = math.sqrt(5.0) * scaled
    return np.asarray((1.0 + bent + bent * bent / 3.0) * np.exp(-bent), dtype=np.float64)
