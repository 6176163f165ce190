"""The partial order of Partial Order Pruning (Li et al., 2019) over architectures.

If A is nowhere deeper or wider than B and equal in everything else, then AP(A) <= AP(B) and latency(A) <= latency(B) is
assumed. So the AP of an evaluated larger architecture bounds that of a smaller one which is not evaluated yet.
"""

from smnas.space.architecture import (
    Architecture,
    Backbone,
    CascadeSpec,
    FCOSSpec,
    FPNSpec,
    Head,
    MobileNetV2Spec,
    Neck,
    ResNetSpec,
    RetinaSpec,
    SuperBlock,
    SuperBlockSpec,
)

__all__ = ["not_larger"]


def not_larger(a: Architecture, b: Architecture) -> bool:
    """Whether ``a`` is nowhere deeper or wider than ``b``, and equal to it in everything that is neither.

    Reflexive, antisymmetric and transitive. Kind of block (with its cardinality and path width), number of stages,
    pyramid levels and how the extra ones come about, proposals, kind of head, number of cascade stages and input size
    must be equal. Within a backbone stage, every block of ``a`` must have a block of ``b``, in the same order, that is
    at least as wide; as widths only grow along a backbone, comparing both stages from their ends decides that.
    Super-blocks are compared one by one, their kernels too: a larger one holds a smaller one.
    """
    return (
        a.rpn is b.rpn
        and a.input_width == b.input_width
        and a.input_height == b.input_height
        and _neck(a.neck, b.neck)
        and _head(a.head, b.head)
        and _backbone(a.backbone, b.backbone)
    )


def _backbone(a: Backbone, b: Backbone) -> bool:
    if isinstance(a, ResNetSpec) and isinstance(b, ResNetSpec):
        # The base is compared by itself because the stem's width follows from it.
        return (
            (a.block, a.paths) == (b.block, b.paths)
            and a.base <= b.base
            and len(a.stages) == len(b.stages)
            and all(_stage(x, y) for x, y in zip(a.stage_widths(), b.stage_widths(), strict=True))
        )
    if isinstance(a, SuperBlockSpec) and isinstance(b, SuperBlockSpec):
        return (
            a.stem <= b.stem
            and [len(stage) for stage in a.stages] == [len(stage) for stage in b.stages]
            and all(_super_block(x, y) for x, y in zip(a.super_blocks, b.super_blocks, strict=True))
        )
    return isinstance(a, MobileNetV2Spec) and isinstance(b, MobileNetV2Spec) and a.width_percent <= b.width_percent


def _super_block(a: SuperBlock, b: SuperBlock) -> bool:
    return a.out <= b.out and a.width <= b.width and a.kernel <= b.kernel and a.repeats <= b.repeats


def _stage(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) <= len(b) and all(x <= y for x, y in zip(reversed(a), reversed(b), strict=False))


def _neck(a: Neck, b: Neck) -> bool:
    if isinstance(a, FPNSpec) and isinstance(b, FPNSpec):
        return (a.low, a.high, a.extra) == (b.low, b.high, b.extra) and a.width <= b.width
    return type(a) is type(b)


def _head(a: Head, b: Head) -> bool:
    if type(a) is not type(b) or a.width > b.width:
        return False
    if isinstance(a, RetinaSpec) and isinstance(b, RetinaSpec):
        return a.depth <= b.depth
    if isinstance(a, FCOSSpec) and isinstance(b, FCOSSpec):
        return a.depth <= b.depth
    if isinstance(a, CascadeSpec) and isinstance(b, CascadeSpec):
        return a.stages == b.stages
    return True
