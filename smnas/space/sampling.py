"""Random architectures of a space, as pure functions of the space and the generator."""

from dataclasses import replace

import numpy as np

from smnas.space.architecture import Architecture, C4Spec
from smnas.space.preset import Space, SpaceError

__all__ = ["sample_modular", "sample_structural"]


def sample_structural(space: Space, rng: np.random.Generator) -> Architecture:
    """Sample the structural space uniformly.

    Raises:
        SpaceError: no combination of the choices is compatible.
    """
    if not space.structures:
        raise SpaceError(f"a space must hold at least one architecture, but nothing in {space.name} fits together")
    return space.structures[int(rng.integers(len(space.structures)))]


def sample_modular(space: Space, parent: Architecture, rng: np.random.Generator) -> Architecture:
    """Sample the backbone and the widths of ``parent``; structure and backbones that are not evolved stay."""
    bounds = space.modular
    backbone, neck, head = parent.backbone.sampled(bounds, rng), parent.neck, parent.head
    if not isinstance(neck, C4Spec) and bounds.fpn_widths:
        neck = replace(neck, width=bounds.fpn_widths[int(rng.integers(len(bounds.fpn_widths)))])
    if widths := bounds.head_widths.for_head(head):
        head = replace(head, width=widths[int(rng.integers(len(widths)))])
    return replace(parent, backbone=backbone, neck=neck, head=head)
