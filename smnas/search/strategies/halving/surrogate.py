"""Gaussian-process surrogate over encoded designs.

The kernel adds up what each feature does alone (linear, and a bend around it) and what they do together (Matern 5/2 of
one length); length, noise and the weight of the first part are chosen from a grid by the evidence. The caller picks at
most 160 observations, so that a fit takes the same few milliseconds in a long search. Similarity does not depend on the
modelled value, so models of several values over the same designs share it.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_OBSERVATIONS", "Compared", "GaussianProcess", "Observed"]

MOST_OBSERVATIONS = 160
_LENGTHS = (0.25, 0.5, 1.0, 2.0)  # times the square root of the number of features
_ALONE = (0.5, 5.0)  # weight of what features do alone; what they do together has variance 1
_BEND = 3.0  # weight of the bends, the lines' is 1
_NOISES = (1e-3, 3e-2)  # variance of the noise, relative to the observations'

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """Similarity of ``m`` designs to the ``n`` observed ones.

    Attributes:
        distances: ``(m, n)``, over all features together.
        alone: ``(m, n)``, the mean over features of each one's own kernel.
        own: ``(m,)``, the same of each design with itself.
    """

    distances: Array
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
        self._features = (features - self._centre) / self._scale
        self.size, self.dimensions = features.shape
        self.among = self.compared(features)
        """Observed designs compared with each other."""

    def compared(self, features: Array) -> Compared:
        """Compare other designs, ``(m, d)``, with the observed ones."""
        x = (features - self._centre) / self._scale
        return Compared(_distances(x, self._features), _alone(x, self._features), (x * x).mean(axis=1) + _BEND)


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted model; values are standardized inside.

    Attributes:
        mean, spread: Of the values.
        length, weight: Of the kernel.
        whitening: Inverse of the lower Cholesky factor of the observations' covariance.
        weights: Covariance solved for the values.
    """

    mean: float
    spread: float
    length: float
    weight: float
    whitening: Array
    weights: Array

    @classmethod
    def fit(cls, observed: Observed, values: Array, noise: Array | None = None) -> Self:
        """Fit by the largest evidence on a small grid.

        Args:
            observed: n designs.
            values: ``(n,)`` finite.
            noise: ``(n,)`` known variances of the values, in their unit squared; none by default.
        """
        n = observed.size
        mean, spread = float(values.mean()), float(values.std()) or 1.0
        y = (values - mean) / spread
        known = np.zeros(n) if noise is None else noise / spread**2
        # With the values as the covariance's last row, its factor's last row is the whitened values. The corner only
        # has to be large enough for a factor to exist.
        bordered = np.zeros((n + 1, n + 1))
        bordered[n, :n], bordered[n, n] = y, 1.0 + 2.0 * float(y @ y) / min(_NOISES)
        best: tuple[float, float, float, Array] | None = None
        for length in (share * math.sqrt(observed.dimensions) for share in _LENGTHS):
            bent = _matern(observed.among.distances / length)
            for weight in _ALONE:
                covariance = bent + weight * observed.among.alone
                for extra in _NOISES:
                    bordered[:n, :n] = covariance
                    bordered[np.arange(n), np.arange(n)] += known + extra
                    factor = np.asarray(np.linalg.cholesky(bordered), dtype=np.float64)
                    half = factor[n, :n]
                    evidence = -0.5 * float(half @ half) - float(np.log(np.diag(factor)[:n]).sum())
                    if best is None or evidence > best[0]:
                        best = (evidence, length, weight, factor)
        assert best is not None  # noqa: S101  the grid is not empty
        _, length, weight, factor = best
        whitening = np.asarray(np.linalg.inv(factor[:n, :n]), dtype=np.float64)
        return cls(mean, spread, length, weight, whitening, whitening.T @ factor[n, :n])

    def expect(self, compared: Compared) -> Array:
        """Mean of the value at m designs, ``(m,)``."""
        return np.asarray(self.mean + self.spread * (self._across(compared) @ self.weights), dtype=np.float64)

    def predict(self, compared: Compared) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free value at m designs, ``(m,)`` each."""
        across = self._across(compared)
        explained = self.whitening @ across.T
        variance = np.maximum(1.0 + self.weight * compared.own - (explained * explained).sum(axis=0), 1e-9)
        return self.mean + self.spread * (across @ self.weights), self.spread * np.sqrt(variance)

    def _across(self, compared: Compared) -> Array:
        return np.asarray(_matern(compared.distances / self.length) + self.weight * compared.alone, dtype=np.float64)


def _distances(a: Array, b: Array) -> Array:
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


def _matern(scaled: Array) -> Array:
    bent = math.sqrt(5.0) * scaled
    return np.asarray((1.0 + bent + bent * bent / 3.0) * np.exp(-bent), dtype=np.float64)
