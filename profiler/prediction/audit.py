"""Accuracy of latency predictions: errors and rank correlations, beside simpler predictors.

Pure array functions without torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from profiler.prediction.predict import Array, LatencyModel, PartsSum, Prior

__all__ = ["Accuracy", "Coverage", "accuracy", "coverage_over_splits", "fitted_line", "kendall", "spearman"]


@dataclass(frozen=True)
class Accuracy:
    """Predicted against measured latencies.

    Attributes:
        mape: mean of ``|predicted / measured - 1|``.
        within_5: fraction of errors up to 5%; ``within_10`` up to 10%.
        spearman: rank correlation, ``None`` where undefined, as is Kendall's tau-b in ``kendall``.
    """

    count: int
    mape: float
    within_5: float
    within_10: float
    spearman: float | None
    kendall: float | None


def accuracy(predicted_ms: ArrayLike, measured_ms: ArrayLike) -> Accuracy:
    """Compare predictions, finite ``(N,)`` with N at least 1, with positive measurements ``(N,)``."""
    predicted, measured = (np.asarray(values, dtype=np.float64) for values in (predicted_ms, measured_ms))
    if predicted.shape != measured.shape or predicted.ndim != 1 or not predicted.size:
        raise ValueError(f"one prediction per measurement is needed, but got {predicted.shape} and {measured.shape}")
    errors = np.abs(predicted / measured - 1)
    return Accuracy(
        count=errors.size,
        mape=float(errors.mean()),
        within_5=float((errors <= 0.05).mean()),
        within_10=float((errors <= 0.1).mean()),
        spearman=spearman(predicted, measured),
        kendall=kendall(predicted, measured),
    )


@dataclass(frozen=True)
class Coverage:
    """Coverage of intervals over random choices of the calibration networks.

    Attributes:
        mean: fraction of intervals that hold the measured latency, averaged over splits.
        low: 5% quantile over splits; ``high`` is the 95% quantile.
    """

    splits: int
    mean: float
    low: float
    high: float


def coverage_over_splits(
    parts: Sequence[PartsSum],
    measured_ms: ArrayLike,
    calibrated_on: int,
    *,
    level: float,
    rng: np.random.Generator,
    prior: Prior = Prior(),  # noqa: B008 - frozen
    splits: int = 200,
) -> Coverage:
    """Fit on a random choice of the networks, check the intervals of the others, and repeat.

    One fit on few networks says little about intervals: its worst residuals may be large or small by chance. So
    coverage is averaged over choices.

    Args:
        parts: sums over the blocks of each network; more than ``calibrated_on``.
        measured_ms: ``(N,)`` measured end-to-end latencies.
        calibrated_on: networks per fit, at least 2.
        level: of the intervals.
        rng: draws the choices.
        prior: of each fit.
        splits: number of choices.
    """
    measured = np.asarray(measured_ms, dtype=np.float64)
    sums, counts, halves = (
        np.array(values, dtype=np.float64)
        for values in zip(*((part.ms, part.count, part.half_ms) for part in parts), strict=True)
    )
    fractions = []
    for _ in range(splits):
        order = rng.permutation(len(measured))
        fitted_on, others = order[:calibrated_on], order[calibrated_on:]
        known = [parts[index] for index in fitted_on]
        model = LatencyModel.fit(known, measured[fitted_on].tolist(), level=level, prior=prior)
        found = model.predict_many(sums[others], counts[others], halves[others])
        fractions.append(((found.low_ms <= measured[others]) & (measured[others] <= found.high_ms)).mean())
    return Coverage(splits, float(np.mean(fractions)), *(float(one) for one in np.quantile(fractions, [0.05, 0.95])))


def fitted_line(values: ArrayLike, measured_ms: ArrayLike, others: ArrayLike) -> Array:
    """Predict ``(M,)`` milliseconds by ``a * value + b``, ``a, b >= 0``, fitted by relative errors.

    ``values`` ``(N,)``, such as FLOPs, belong to the fitted networks, ``others`` ``(M,)`` to the predicted ones.
    """
    known, measured, wanted = (np.asarray(one, dtype=np.float64) for one in (values, measured_ms, others))
    # Solved in units of the largest value: FLOPs are 10^9 times the constant.
    unit = known.max(initial=0.0) or 1.0
    (scale, constant), _ = nnls(
        np.stack([known / unit, np.ones_like(known)], axis=1) / measured[:, None], np.ones_like(known)
    )
    line: Array = scale * wanted / unit + constant
    return line


def spearman(first: ArrayLike, second: ArrayLike) -> float | None:
    """Return the rank correlation with mean ranks for ties; ``None`` for fewer than two or all-equal values."""
    a, b = (_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread > 0 else None


def kendall(first: ArrayLike, second: ArrayLike) -> float | None:
    """Return Kendall's tau-b: concordant minus discordant pairs, normalised; ``None`` where all pairs are tied."""
    a, b = (np.asarray(values, dtype=np.float64) for values in (first, second))
    upper = np.triu_indices(a.size, 1)
    signs = [np.sign(values[:, None] - values[None, :])[upper] for values in (a, b)]
    untied = float(np.sqrt(np.abs(signs[0]).sum() * np.abs(signs[1]).sum()))
    return float(signs[0] @ signs[1]) / untied if untied > 0 else None


def _ranks(values: Array) -> Array:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    ranks: Array = mean_ranks[place]
    return ranks
