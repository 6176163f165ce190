"""The partial order of Partial Order Pruning (Li et al., 2019) over architectures.

If A is nowhere deeper or wider than B and otherwise equal, AP(A) <= AP(B) and latency(A) <= latency(B) are assumed, so
the AP of an evaluated architecture bounds that of every smaller one.
"""

from smnas.space.architecture import (
    Architecture,
    CascadeSpec,
    DenseSpec,
    FPNSpec,
    Head,
    Neck,
)

__all__ = ["not_larger"]


def not_larger(a: Architecture, b: Architecture) -> bool:
    """Whether ``a`` is nowhere deeper or wider than ``b`` and otherwise equal.

    Reflexive, antisymmetric and transitive. Must be equal: the kind of block (with cardinality and path width), number
    of stages, pyramid levels and their ``extra``, proposals, kind of head, number of cascade stages and input size.
    Backbones are compared by :meth:`smnas.space.families.base.Backbone.not_larger`.
    """
    return (
        a.rpn is b.rpn
        and a.input_width == b.input_width
        and a.input_height == b.input_height
        and _neck(a.neck, b.neck)
        and _head(a.head, b.head)
        and type(a.backbone) is type(b.backbone)
        and a.backbone.not_larger(b.backbone)
    )


def _neck(a: Neck, b: Neck) -> bool:
    if isinstance(a, FPNSpec) and isinstance(b, FPNSpec):
        return (a.low, a.high, a.extra) == (b.low, b.high, b.extra) and a.width <= b.width
    return type(a) is type(b)


def _head(a: Head, b: Head) -> bool:
    if type(a) is not type(b) or a.width > b.width:
        return False
    if isinstance(a, DenseSpec) and isinstance(b, DenseSpec):
        return a.depth <= b.depth
    if isinstance(a, CascadeSpec) and isinstance(b, CascadeSpec):
        return a.stages == b.stages
    return True
