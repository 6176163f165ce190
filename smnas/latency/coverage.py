"""Selects a few architectures whose workloads cover a whole space."""

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from smnas.space.architecture import Architecture, C4Spec, RPNKind

__all__ = ["by_demand", "covering"]


def covering(architectures: Iterable[Architecture]) -> list[Architecture]:
    """The architectures, in order, that add a workload to those before them.

    A workload depends on some parts of an architecture only. With a pyramid, backbone and neck depend on (backbone,
    neck, one or two stages, input), and the rest on (coarsest level of the backbone, neck, proposals, head, input).
    Without one, the backbone also decides the head's channels. So a few architectures cover thousands.
    """
    seen: set[Hashable] = set()
    chosen = []
    for architecture in architectures:
        parts = _parts(architecture)
        if not parts <= seen:
            seen |= parts
            chosen.append(architecture)
    return chosen


def by_demand(chosen: Sequence[Architecture], space: Iterable[Architecture]) -> list[Architecture]:
    """Order ``chosen``, a result of :func:`covering`, by how often ``space`` needs its parts.

    An interrupted measurement then holds what a search needs first. Greedy: the next architecture adds the most demand.
    """
    demand = Counter(part for architecture in space for part in _parts(architecture))
    seen: set[Hashable] = set()
    waiting = [(-sum(demand[part] for part in _parts(one)), place) for place, one in enumerate(chosen)]
    heapq.heapify(waiting)
    ordered = []
    while waiting:
        _, place = heapq.heappop(waiting)
        # lazy greedy: demand only shrinks, so an outdated value is too high; update it and push it back
        now = -sum(demand[part] for part in _parts(chosen[place]) - seen)
        if waiting and now > waiting[0][0]:
            heapq.heappush(waiting, (now, place))
            continue
        seen |= _parts(chosen[place])
        ordered.append(chosen[place])
    return ordered


def _parts(architecture: Architecture) -> set[Hashable]:
    size = (architecture.input_width, architecture.input_height)
    if isinstance(architecture.neck, C4Spec):
        return {architecture}
    return {
        (architecture.backbone, architecture.neck, architecture.rpn is RPNKind.NONE, size),
        (architecture.backbone.top_level, architecture.neck, architecture.rpn, architecture.head, size),
    }
