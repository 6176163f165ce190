"""Which few architectures of a space hold every workload of all of them."""

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from smnas.space.architecture import Architecture, C4Spec, RPNKind

__all__ = ["by_demand", "covering"]


def covering(architectures: Iterable[Architecture]) -> list[Architecture]:
    """The architectures, in order, that bring a workload which none before them has.

    A workload depends on some parts of an architecture only. With a pyramid, backbone and neck depend on (backbone,
    neck, one stage or two, input) and what is behind the pyramid on (backbone's coarsest level, neck, proposals, head,
    input). Without one, the backbone decides the head's channels too. So a few cover a space of thousands.
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
    """The same architectures, in the order in which they bring what most of a space needs.

    A random detector of the space asks for a part as often as others share it. So an interrupted measurement in this
    order has what a search will ask for first. Greedy: each next one brings the most that none before it has.

    Args:
        chosen: To be ordered, as :func:`covering` gives them.
        space: Everything that may be asked for.
    """
    demand = Counter(part for architecture in space for part in _parts(architecture))
    seen: set[Hashable] = set()
    waiting = [(-sum(demand[part] for part in _parts(one)), place) for place, one in enumerate(chosen)]
    heapq.heapify(waiting)
    ordered = []
    while waiting:
        _, place = heapq.heappop(waiting)
        # What one brings only ever shrinks, so a value that is out of date is too high: look again, then go on.
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
