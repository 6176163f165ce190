"""Small moves in a space. Pure functions of the space, the architecture and the generator.

The modular move is SM-NAS's (Yao et al., AAAI 2020): the base width to a neighbour with probability 1/2, then a few of
{insert a ``1``, remove a ``1``, swap a ``2`` or ``-`` with a near neighbour}; there is no crossover. How many "a few"
are, how near a neighbour is, and the moves of the pyramid's and the head's width are choices of this project.
"""

from dataclasses import replace

import numpy as np

from smnas.space.architecture import Architecture, FPNSpec, MobileNetV2Spec, ResNetSpec, SuperBlockSpec
from smnas.space.families.super_blocks import SuperBlockPopulation, mutate_super_blocks
from smnas.space.preset import ModularBounds, Space, SpaceError, parts

__all__ = ["NoMoveError", "move_super_blocks", "mutate_code", "mutate_modular", "mutate_structural"]

_TRIES = 200
_BASE_PROBABILITY = 0.5
_WIDTH_PROBABILITY = 0.25
_MOST_EDITS = 3
_REACH = 2  # how far a 2 or a '-' travels in one swap
_TWO_CHOICES_PROBABILITY = 0.5


class NoMoveError(SpaceError):
    """No move from this architecture leads to another one of the space."""


def mutate_structural(space: Space, architecture: Architecture, rng: np.random.Generator) -> Architecture:
    """Change one or two of the five structural choices, then repair to compatibility with the fewest further changes.

    Raises:
        NoMoveError: the space offers nothing else.
    """
    # Structures as rows of choice numbers: which of them keep a change, and how many other choices they give up for it,
    # are two array operations.
    table = space.structure_table
    sizes = [len(row) for row in space.structural_choices]
    present = np.array(
        [_index(row, part) for row, part in zip(space.structural_choices, parts(architecture), strict=True)]
    )
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


def _index(choices: tuple[object, ...], part: object) -> int:
    """Where ``part`` is in ``choices``; -1, which no structure has, where it is not."""
    return choices.index(part) if part in choices else -1


def mutate_modular(space: Space, architecture: Architecture, rng: np.random.Generator) -> Architecture:
    """One SM-NAS move inside the modules; the structure (block, stages, levels, head kind, input) stays.

    MobileNetV2 moves to a neighbouring width in percent, where the bounds list any; super-blocks move as in MAE-DET. A
    backbone that the bounds do not evolve stays; then only the pyramid's and the head's width move.

    A code with an empty stage or out of bounds, and a child equal to its parent, are drawn again.

    Raises:
        NoMoveError: 200 tries gave no other architecture inside the bounds that the space permits.
    """
    for _ in range(_TRIES):
        child = _move(space.modular, architecture, rng)
        if child not in (None, architecture) and space.permits(child):
            return child
    raise NoMoveError(
        f"a modular move must reach another architecture inside the bounds of {space.name}, "
        f"but {_TRIES} tries from {architecture} found none"
    )


def _move(bounds: ModularBounds, parent: Architecture, rng: np.random.Generator) -> Architecture | None:
    """One draw of the move; None where the code breaks the bounds or leaves a stage empty."""
    backbone, neck, head = parent.backbone, parent.neck, parent.head
    if isinstance(backbone, ResNetSpec) and backbone.block in bounds.blocks and len(backbone.stages) in bounds.stages:
        base = backbone.base
        if base not in bounds.bases or rng.random() < _BASE_PROBABILITY:
            base = _neighbour(base, bounds.bases, rng)
        code = mutate_code(backbone.code, rng)
        if not bounds.contains_code(code):
            return None
        backbone = replace(backbone, base=base, code=code)
    elif isinstance(backbone, MobileNetV2Spec) and rng.random() < _BASE_PROBABILITY:
        backbone = MobileNetV2Spec(_neighbour(backbone.width_percent, bounds.mobilenetv2_percents, rng))
    elif isinstance(backbone, SuperBlockSpec) and bounds.super_block_layers and len(backbone.stages) in bounds.stages:
        backbone = move_super_blocks(bounds, backbone, rng)
        if not bounds.contains_backbone(backbone):
            return None
    if isinstance(neck, FPNSpec) and rng.random() < _WIDTH_PROBABILITY:
        neck = replace(neck, width=_neighbour(neck.width, bounds.fpn_widths, rng))
    if rng.random() < _WIDTH_PROBABILITY:
        head = replace(head, width=_neighbour(head.width, bounds.head_widths.for_head(head), rng))
    return replace(parent, backbone=backbone, neck=neck, head=head)


def move_super_blocks(bounds: ModularBounds, spec: SuperBlockSpec, rng: np.random.Generator) -> SuperBlockSpec:
    """Two of MAE-DET's moves in a row. The result may have more layers than the bounds allow, or be the same."""
    child, _ = mutate_super_blocks(SuperBlockPopulation.copies(spec, 1), bounds.super_block_bounds, rng)
    return child.spec(0)


def mutate_code(code: str, rng: np.random.Generator) -> str:
    """Apply one to three edits to a backbone code. The result may have an empty stage or be the same: check it."""
    for _ in range(1 + int(rng.integers(_MOST_EDITS))):
        code = _EDITS[int(rng.integers(len(_EDITS)))](code, rng)
    return code


def _insert_one(code: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(len(code) + 1))
    return f"{code[:at]}1{code[at:]}"


def _remove_one(code: str, rng: np.random.Generator) -> str:
    ones = [i for i, digit in enumerate(code) if digit == "1"]
    if not ones:
        return code
    at = ones[int(rng.integers(len(ones)))]
    return code[:at] + code[at + 1 :]


def _swap(code: str, rng: np.random.Generator) -> str:
    marks = [i for i, digit in enumerate(code) if digit != "1"]
    if not marks:
        return code
    here = marks[int(rng.integers(len(marks)))]
    near = [i for i in range(max(0, here - _REACH), min(len(code), here + _REACH + 1)) if code[i] != code[here]]
    if not near:
        return code
    there = near[int(rng.integers(len(near)))]
    digits = list(code)
    digits[here], digits[there] = digits[there], digits[here]
    return "".join(digits)


_EDITS = (_insert_one, _remove_one, _swap)


def _neighbour(value: int, values: tuple[int, ...], rng: np.random.Generator) -> int:
    """The next smaller or the next larger of ``values``; ``value`` itself when there is neither."""
    near = [v for v in values if v < value][-1:] + [v for v in values if v > value][:1]
    return near[int(rng.integers(len(near)))] if near else value
