"""Random architectures from a space. Pure functions of the space and the generator."""

from dataclasses import replace

import numpy as np

from smnas.space.architecture import Architecture, C4Spec, MobileNetV2Spec, ResNetSpec, SuperBlockSpec
from smnas.space.mutation import move_super_blocks
from smnas.space.preset import ModularBounds, Space, SpaceError

__all__ = ["sample_code", "sample_modular", "sample_structural"]

_TRIES = 1000
_MOVES = 20  # pairs of moves after which little of a parent's super-blocks is left


def sample_structural(space: Space, rng: np.random.Generator) -> Architecture:
    """One of the structural space's architectures, each equally likely.

    Raises:
        SpaceError: no combination of the choices is compatible and permitted.
    """
    if not space.structures:
        raise SpaceError(f"a space must hold at least one architecture, but nothing in {space.name} fits together")
    return space.structures[int(rng.integers(len(space.structures)))]


def sample_modular(space: Space, parent: Architecture, rng: np.random.Generator) -> Architecture:
    """An architecture with the structure of ``parent``, its code, base and widths drawn anew.

    Super-blocks are drawn by a row of moves from the parent's. A backbone that the bounds do not evolve (another kind
    or number of stages) stays as it is.

    Raises:
        SpaceError: 1000 draws gave nothing that the space permits.
    """
    for _ in range(_TRIES):
        child = _draw_modular(space.modular, parent, rng)
        if space.permits(child):
            return child
    raise SpaceError(f"a random modular variant must be permitted, but {_TRIES} draws from {parent} were not")


def sample_code(bounds: ModularBounds, stages: int, rng: np.random.Generator) -> str:
    """A backbone code inside ``bounds``: first its depth, then its doublings, then where both fall.

    The depth is drawn first because deep codes are far more numerous: drawn evenly over codes, almost every sample
    would be as deep as the bounds allow.

    Raises:
        SpaceError: the bounds have no code of so many stages.
    """
    depths = [
        (blocks, doublings)
        for blocks in range(max(bounds.min_blocks, stages), bounds.max_blocks + 1)
        if (doublings := range(bounds.min_doublings, min(bounds.max_doublings, blocks) + 1))
    ]
    if stages not in bounds.stages or not depths:
        raise SpaceError(f"the number of stages must be one of {bounds.stages}, but got {stages}")
    blocks, doublings = depths[int(rng.integers(len(depths)))]
    doubled = set(rng.choice(blocks, size=int(rng.choice(doublings)), replace=False).tolist())
    # A stage border after block i, for stages - 1 distinct i, leaves no stage empty.
    borders = set(rng.choice(blocks - 1, size=stages - 1, replace=False).tolist()) if stages > 1 else set()
    return "".join(("2" if i in doubled else "1") + ("-" if i in borders else "") for i in range(blocks))


def _draw_modular(bounds: ModularBounds, parent: Architecture, rng: np.random.Generator) -> Architecture:
    backbone, neck, head = parent.backbone, parent.neck, parent.head
    if isinstance(backbone, ResNetSpec) and backbone.block in bounds.blocks and len(backbone.stages) in bounds.stages:
        base = bounds.bases[int(rng.integers(len(bounds.bases)))]
        backbone = replace(backbone, base=base, code=sample_code(bounds, len(backbone.stages), rng))
    elif isinstance(backbone, MobileNetV2Spec) and (percents := bounds.mobilenetv2_percents):
        backbone = MobileNetV2Spec(percents[int(rng.integers(len(percents)))])
    elif isinstance(backbone, SuperBlockSpec) and bounds.super_block_layers and len(backbone.stages) in bounds.stages:
        for _ in range(_MOVES):
            moved = move_super_blocks(bounds, backbone, rng)
            backbone = moved if bounds.contains_backbone(moved) else backbone
    if not isinstance(neck, C4Spec) and bounds.fpn_widths:
        neck = replace(neck, width=bounds.fpn_widths[int(rng.integers(len(bounds.fpn_widths)))])
    if widths := bounds.head_widths.for_head(head):
        head = replace(head, width=widths[int(rng.integers(len(widths)))])
    return replace(parent, backbone=backbone, neck=neck, head=head)
