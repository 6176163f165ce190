"""Rank correlation of a training-free score with AP, compared with that of cheaper quantities.

A score close to a count of layers must beat that count, and FLOPs, parameters and speed, to be worth anything.
Kendall's tau-b is computed over all detectors, where size alone orders much, and inside a narrow band of FLOPs and of
latency, which holds size fixed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smnas.space.architecture import Architecture
from smnas.space.convolutions import layers

__all__ = ["ControlGroup", "ControlTau", "TrainedDetector", "control_table"]

Floats = NDArray[np.float64]

BAND = 1.5
"""Largest ratio of the costs of two detectors in a band."""

_LEAST = 5
_RESAMPLES = 1000


@dataclass(frozen=True)
class TrainedDetector:
    """A trained detector with its costs; all of one table share a training budget.

    Attributes:
        ap: COCO AP in 0..1.
        flops, parameters: Of the whole detector.
        latency_ms: End-to-end latency; NaN if unknown.
    """

    architecture: Architecture
    ap: float
    flops: float
    parameters: float
    latency_ms: float = math.nan


@dataclass(frozen=True)
class ControlTau:
    """One row of a group: Kendall's tau-b with AP and its 95% interval, by a bootstrap over detectors.

    NaN where undefined: nothing differs, or fewer than 5 detectors.
    """

    name: str
    tau: float
    low: float
    high: float


@dataclass(frozen=True)
class ControlGroup:
    """All rows of one group of detectors.

    Attributes:
        name: ``all``, ``FLOPs band`` or ``latency band``.
        detectors: Their number.
        low, high: Limits of the band in FLOPs or ms; None for all.
    """

    name: str
    detectors: int
    low: float | None
    high: float | None
    rows: tuple[ControlTau, ...]


def control_table(
    detectors: Sequence[TrainedDetector], scores: Sequence[float], name: str, *, seed: int = 0
) -> tuple[ControlGroup, ...]:
    """Correlate the score and its controls with AP, over all detectors and in the two bands with the most detectors.

    Args:
        detectors: Trained for the same number of epochs.
        scores: One for each, greater is better; NaN if unknown.
        name: Name of the score.
        seed: Of the bootstrap.
    """
    ap = np.array([detector.ap for detector in detectors])
    latency_ms = np.array([detector.latency_ms for detector in detectors])
    flops = np.array([detector.flops for detector in detectors])
    convolutions = [detector.architecture.backbone.convolutions() for detector in detectors]
    predictors = {
        name: np.array(scores, dtype=np.float64),
        "layers": np.array([float(layers(chain)) for chain in convolutions]),
        "FLOPs": flops,
        "parameters": np.array([detector.parameters for detector in detectors]),
        "negative latency": -latency_ms,
    }
    groups = [_group("all", np.arange(len(ap)), None, predictors, ap, seed)]
    for band, cost in (("FLOPs band", flops), ("latency band", latency_ms)):
        rows = _widest_band(cost)
        groups.append(_group(band, rows, cost, predictors, ap, seed))
    return tuple(groups)


def _group(
    name: str, rows: NDArray[np.intp], cost: Floats | None, predictors: Mapping[str, Floats], ap: Floats, seed: int
) -> ControlGroup:
    low, high = (None, None) if cost is None or not len(rows) else (float(cost[rows].min()), float(cost[rows].max()))
    taus = tuple(
        ControlTau(label, *_tau_with_interval(values[rows], ap[rows], seed)) for label, values in predictors.items()
    )
    return ControlGroup(name, len(rows), low, high, taus)


def _widest_band(cost: Floats) -> NDArray[np.intp]:
    """Rows of the band with the most detectors, the cheapest of equal ones. NaN is in no band."""
    known = np.flatnonzero(np.isfinite(cost))
    order = known[np.argsort(cost[known], kind="stable")]
    ends = np.searchsorted(cost[order], cost[order] * BAND, side="right")
    counts = ends - np.arange(len(order))
    if not len(order):
        return order
    start = int(counts.argmax())
    return np.sort(order[start : int(ends[start])])


def _tau_with_interval(values: Floats, ap: Floats, seed: int) -> tuple[float, float, float]:
    known = np.isfinite(values)
    values, ap = values[known], ap[known]
    if len(values) < _LEAST:
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(seed)
    signs = np.sign(values[:, None] - values), np.sign(ap[:, None] - ap)
    tau = _tau_of(*signs)
    drawn = [_tau_of(*(sign[np.ix_(rows, rows)] for sign in signs)) for rows in _resamples(len(values), rng)]
    defined = np.array([value for value in drawn if math.isfinite(value)])
    if math.isnan(tau) or not len(defined):
        return tau, math.nan, math.nan
    low, high = np.percentile(defined, [2.5, 97.5])
    return tau, float(low), float(high)


def _resamples(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(0, count, (_RESAMPLES, count))


def _tau_of(x: Floats, y: Floats) -> float:
    """Kendall's tau-b from the signs of all differences, ``(N, N)`` each; NaN if one side is constant.

    As :func:`profiler.prediction.audit.kendall`, but a resample's signs are taken from those of all detectors.
    """
    scale = math.sqrt(float(np.abs(x).sum()) * float(np.abs(y).sum()))
    return float((x * y).sum()) / scale if scale else math.nan
