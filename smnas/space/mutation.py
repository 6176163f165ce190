"""Mutations as pure functions of the space, the architecture and the generator.

The modular mutation is SM-NAS's (Yao et al., AAAI 2020), without crossover; the backbone is mutated by its family.
Mutating the widths of pyramid and head is this project's choice.
"""

from dataclasses import replace

import numpy as np

from smnas.space.architecture import Architecture, FPNSpec
from smnas.space.families.base import neighbour
from smnas.space.preset import ModularBounds, Space, SpaceError, parts

__all__ = ["NoMoveError", "mutate_modular", "mutate_structural"]

_TRIES = 200
_WIDTH_PROBABILITY = 0.25
_TWO_CHOICES_PROBABILITY = 0.5


class NoMoveError(SpaceError):
    """No mutation of this architecture leads to another one of the space."""


def mutate_structural(space: Space, architecture: Architecture, rng: np.random.Generator) -> Architecture:
    """Change one or two of the five structural choices, then repair compatibility with the fewest further changes.

    Raises:
        NoMoveError: the space offers nothing else.
    """
    # Structures are rows of choice indices: finding those that keep a change, and counting their other differences,
    # takes two array operations.
    table = space.structure_table
    sizes = [len(row) for row in space.structural_choices]
    # a part that is not listed has the index -1, which matches no structure
    listed = zip(space.structural_choices, parts(architecture), strict=True)
    present = np.array([row.index(part) if part in row else -1 for row, part in listed])
    others = [[choice for choice in range(size) if choice != now] for size, now in zip(sizes, present, strict=True)]
    movable = [slot for slot, row in enumerate(others) if row]
    differences = (table != present).sum(axis=1)
    for _ in range(_TRIES if differences.any() else 0):
        count = min(len(movable), 1 + int(rng.random() < _TWO_CHOICES_PROBABILITY))
        slots = np.sort(rng.choice(movable, size=count, replace=False))
        wanted = [others[slot][int(rng.integers(len(others[slot])))] for slot in slots.tolist()]
        fitting = np.flatnonzero((table[:, slots] == wanted).all(axis=1))
        if len(fitting):
            closest = fitting[differences[fitting] == differences[fitting].min()]
            return space.structures[int(closest[int(rng.integers(len(closest)))])]
    raise NoMoveError(
        f"a structural move must reach another architecture of {space.name}, but none does from {architecture}"
    )


def mutate_modular(space: Space, architecture: Architecture, rng: np.random.Generator) -> Architecture:
    """Apply one SM-NAS mutation inside the modules; the structure (block, stages, levels, head kind, input) stays.

    With a backbone outside the evolved kinds, only the widths of pyramid and head change. Draws that break the bounds
    or equal the parent are repeated.

    Raises:
        NoMoveError: 200 draws gave no other permitted architecture inside the bounds.
    """
    for _ in range(_TRIES):
        child = _move(space.modular, architecture, rng)
        if child not in (None, architecture):
            return child
    raise NoMoveError(
        f"a modular move must reach another architecture inside the bounds of {space.name}, "
        f"but {_TRIES} tries from {architecture} found none"
    )


def _move(bounds: ModularBounds, parent: Architecture, rng: np.random.Generator) -> Architecture | None:
    """One draw; None if the backbone breaks the bounds."""
    neck, head = parent.neck, parent.head
    backbone = parent.backbone.mutated(bounds, rng)
    if backbone is None:
        return None
    if isinstance(neck, FPNSpec) and rng.random() < _WIDTH_PROBABILITY:
        neck = replace(neck, width=neighbour(neck.width, bounds.fpn_widths, rng))
    if rng.random() < _WIDTH_PROBABILITY:
        head = replace(head, width=neighbour(head.width, bounds.head_widths.for_head(head), rng))
    return replace(parent, backbone=backbone, neck=neck, head=head)
