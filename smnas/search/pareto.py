"""Pareto fronts of (AP, latency): AP is maximised, latency minimised. Pure array functions over moocore.

Equal points do not dominate each other, so all are kept. A point with a NaN or infinite value is on no front, dominates
nothing and adds no hypervolume.
"""

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

__all__ = ["as_points", "front_layers", "hypervolume", "joined", "non_dominated", "reference_point", "spread"]

Points = NDArray[np.float64]


def as_points(points: Sequence[tuple[float, float]]) -> Points:
    """``(N, 2)`` array of (AP, latency in ms), also for N = 0."""
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)


def _costs(points: Points) -> Points:
    """Both columns to be minimised."""
    return np.column_stack((-points[:, 0], points[:, 1]))


def _finite(points: Points) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(points).all(axis=1), dtype=np.bool_)


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """Mask, ``(N,)``, of the points of ``(N, 2)`` (AP, latency) that no other point dominates."""
    on_front = np.zeros(len(points), dtype=np.bool_)
    finite = _finite(points)
    if finite.any():
        on_front[finite] = moocore.is_nondominated(_costs(points[finite]), keep_weakly=True)
    return on_front


def joined(front: Sequence[tuple[float, float]], point: tuple[float, float]) -> list[tuple[float, float]]:
    """Add an (AP, latency) point to a front."""
    points = [*front, point]
    return [points[i] for i in np.flatnonzero(non_dominated(as_points(points)))]


def front_layers(points: Points) -> NDArray[np.int64]:
    """Front index, ``(N,)``, of ``(N, 2)`` points: 0 on the front, 1 on that of the rest, ...; -1 if not finite."""
    layers = np.full(len(points), -1, dtype=np.int64)
    finite = _finite(points)
    if finite.any():
        layers[finite] = moocore.pareto_rank(_costs(points[finite]))
    return layers


def hypervolume(points: Points, reference: tuple[float, float]) -> float:
    """Area that ``points`` dominate, bounded by ``reference`` = (lowest AP, highest latency in ms)."""
    finite = points[_finite(points)]
    inside = finite[(finite[:, 0] > reference[0]) & (finite[:, 1] < reference[1])]
    if len(inside) == 0:
        return 0.0
    return float(moocore.hypervolume(_costs(inside), ref=[-reference[0], reference[1]]))


def reference_point(points: Points) -> tuple[float, float]:
    """Reference a tenth of the range beyond the worst of both values, so that the extremes contribute too."""
    finite = points[_finite(points)]
    if len(finite) == 0:
        raise ValueError("a reference point needs at least one finite point, but got none")
    low, high = finite.min(axis=0), finite.max(axis=0)
    # If all values are equal any positive margin will do: the order of contributions does not depend on it.
    margin = np.where(high > low, 0.1 * (high - low), 0.1 * np.maximum(np.abs(high), 1e-9))
    return float(low[0] - margin[0]), float(high[1] + margin[1])


def spread(points: Points, count: int, given: Sequence[int] = ()) -> list[int]:
    """Pick up to ``count`` front points greedily by hypervolume contribution, which spreads them over latency.

    Args:
        points: ``(N, 2)`` (AP, latency).
        count: How many to pick at most.
        given: Indices of points that are there already; what the others add to them counts.

    Returns:
        Indices into ``points`` in order of choice; ties go to the lower index. A point that adds nothing (the second of
        two equal ones) is left out.
    """
    candidates = [int(i) for i in np.flatnonzero(non_dominated(points))]
    if not candidates:
        return []
    reference = reference_point(points[candidates])
    taken = list(given)
    volume = hypervolume(points[taken], reference)
    for _ in range(min(count, len(candidates))):
        volumes = {i: hypervolume(points[[*taken, i]], reference) for i in candidates if i not in taken}
        best = max(volumes, key=lambda i: (volumes[i], -i), default=None)
        if best is None or volumes[best] <= volume:
            break
        taken.append(best)
        volume = volumes[best]
    return taken[len(given) :]
