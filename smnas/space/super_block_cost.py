"""Multiply-adds, parameters and layers of thousands of super-block backbones at once.

Array version of :mod:`smnas.space.convolutions`. A shortcut has a projection where resolution or channels change.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smnas.space.families.super_blocks import SuperBlockPopulation, block_halvings, block_levels

__all__ = ["PopulationCost", "population_cost", "unit_weights"]

Ints = NDArray[np.int64]

_COLOURS = 3


class PopulationCost(NamedTuple):
    """Costs of N backbones, each an ``(N,)`` array.

    Attributes:
        multiply_adds: For one image, shortcuts included.
        parameters: Weights, and two numbers per channel of each norm.
        layers: Convolutions, shortcuts excluded.
    """

    multiply_adds: Ints
    parameters: Ints
    layers: Ints


def population_cost(population: SuperBlockPopulation, size: tuple[int, int], *, stem_kernel: int = 3) -> PopulationCost:
    """Costs of N backbones at an input of ``size`` = (width, height) pixels."""
    p = population
    read, first, repeated, projection = unit_weights(p)
    level = block_levels(p.layout)
    cells_out = np.array([_cells(size, at) for at in level])
    cells_in = np.where(block_halvings(p.layout), [_cells(size, at - 1) for at in level], cells_out)
    units = first + (p.repeats - 1) * repeated + projection
    # only the first 1x1 convolution of a block that halves the resolution runs on the larger feature map
    blocks = units * cells_out + read * p.width * (cells_in - cells_out)
    stem = _COLOURS * stem_kernel**2 * p.stem
    norms = 2 * (p.repeats * (2 * p.width + p.out) + np.where(projection > 0, p.out, 0))
    return PopulationCost(
        multiply_adds=stem * _cells(size, 1) + blocks.sum(axis=1),
        parameters=stem + 2 * p.stem + (units + norms).sum(axis=1),
        layers=1 + 3 * p.repeats.sum(axis=1),
    )


def unit_weights(population: SuperBlockPopulation) -> tuple[Ints, Ints, Ints, Ints]:
    """``(N, B)`` each: input channels, weights of the first unit, of a repeated one, and of the projection."""
    p = population
    read = np.column_stack((p.stem, p.out[:, :-1]))
    middle = p.width * p.width * p.kernel * p.kernel
    first = (read + p.out) * p.width + middle
    repeated = 2 * p.out * p.width + middle
    projected = block_halvings(p.layout) | (read != p.out)
    return read, first, repeated, np.where(projected, read * p.out, 0)


def _cells(size: tuple[int, int], level: int) -> int:
    return int(np.prod([-(-side // 2 ** int(level)) for side in size]))
