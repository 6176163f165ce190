"""Expected hypervolume improvement of a design with known latency and uncertain AP.

It is a sum over the steps of the front's staircase: a step's width times the expected improvement over its AP (derived
here; the one-objective part is Jones et al., 1998).
"""

import math

import numpy as np
from numpy.typing import NDArray

from smnas.search.pareto import Points, non_dominated

__all__ = ["expected_gain"]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def expected_gain(
    front: Points,
    mean: NDArray[np.float64],
    deviation: NDArray[np.float64],
    latency_ms: NDArray[np.float64],
    reference: tuple[float, float],
) -> NDArray[np.float64]:
    """Expected growth of the hypervolume by each design alone, ``(M,)`` in AP times ms; 0 beyond the reference latency.

    Args:
        front: ``(N, 2)`` of (AP, latency), with or without dominated points.
        mean: ``(M,)`` expected AP.
        deviation: ``(M,)`` standard deviation of AP, above 0; AP is taken as normal.
        latency_ms: ``(M,)``.
        reference: Lowest AP and highest latency that count.
    """
    low_ap, high_ms = reference
    inside = front[(front[:, 0] > low_ap) & (front[:, 1] < high_ms)]
    steps = np.unique(inside[non_dominated(inside)], axis=0)
    steps = steps[np.argsort(steps[:, 1])]
    # A step reaches from its point's latency to the next; before the first point the reference's AP is best.
    begins = np.concatenate(([-np.inf], steps[:, 1]))
    ends = np.concatenate((steps[:, 1], [high_ms]))
    heights = np.concatenate(([low_ap], steps[:, 0]))
    widths = np.maximum(ends[None, :] - np.maximum(begins[None, :], latency_ms[:, None]), 0.0)
    ahead = (mean[:, None] - heights[None, :]) / deviation[:, None]
    density = np.exp(-0.5 * ahead * ahead) / math.sqrt(2.0 * math.pi)
    improvement = deviation[:, None] * (ahead * 0.5 * (1.0 + _erf(ahead / math.sqrt(2.0))) + density)
    return np.asarray((widths * np.maximum(improvement, 0.0)).sum(axis=1), dtype=np.float64)
