"""Which few architectures of a space hold every workload of all of them."""

from collections.abc import Hashable, Iterable

from smnas.space.architecture import Architecture, C4Spec, RPNKind

__all__ = ["covering"]


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


def _parts(architecture: Architecture) -> set[Hashable]:
    size = (architecture.input_width, architecture.input_height)
    if isinstance(architecture.neck, C4Spec):
        return {architecture}
    return {
        (architecture.backbone, architecture.neck, architecture.rpn is RPNKind.NONE, size),
        (architecture.backbone.top_level, architecture.neck, architecture.rpn, architecture.head, size),
    }
