"""Entropy, multiply-adds, parameters and layers of thousands of super-block backbones at once.

The same numbers as :mod:`smnas.scoring.entropy` and :mod:`smnas.models.convolutions` give for one backbone, as arrays.
A shortcut has a projection where the resolution or the channels change.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smnas.scoring.entropy import PUBLISHED, EntropyForm
from smnas.space.super_blocks import SuperBlockPopulation, block_halvings, block_levels

__all__ = ["PopulationCost", "entropy_of", "population_cost"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_COLOURS = 3


@dataclass(frozen=True)
class PopulationCost:
    """What N backbones cost, an ``(N,)`` array each.

    Attributes:
        multiply_adds: Of one picture, shortcuts included.
        parameters: Weights, and two numbers a channel for each norm.
        layers: Convolutions, shortcuts not counted.
    """

    multiply_adds: Ints
    parameters: Ints
    layers: Ints


def entropy_of(
    population: SuperBlockPopulation,
    form: EntropyForm = PUBLISHED,
    *,
    stem_kernel: int = 3,
    size: tuple[int, int] = (480, 480),
) -> Floats:
    """``(N,)`` scores in closed form.

    Args:
        population: N backbones.
        form: Weights and terms.
        stem_kernel: Side of the stem's convolution, 3 or ImageNet's 7.
        size: Input (width, height) in pixels, which only a form ``by_resolution`` reads.
    """
    p = population
    read = np.column_stack((p.stem, p.out[:, :-1]))
    # ln(deviation) of a super-block: its first unit reads what comes in, the others what it writes itself
    blocks = 0.5 * (
        np.log(read) + (p.repeats - 1) * np.log(p.out) + 2.0 * p.repeats * (np.log(p.width) + np.log(p.kernel))
    )
    sums = np.cumsum(blocks, axis=1) + 0.5 * np.log(_COLOURS * stem_kernel**2)
    ends = np.cumsum(p.layout) - 1
    totals = np.column_stack((np.full(len(p), 0.5 * np.log(_COLOURS * stem_kernel**2)), sums[:, ends]))
    entropies = np.log(np.column_stack((p.stem, p.out[:, ends])))
    levels = np.arange(1, 2 + len(ends))
    weights = np.array(form.weights[: len(levels)])
    if form.by_resolution:
        cells = [np.prod([-(-side // 2 ** int(level)) for side in size]) for level in levels]
        return np.asarray((entropies + np.log(cells)) * totals @ weights, dtype=np.float64)
    return np.asarray((entropies + totals) @ weights, dtype=np.float64)


def population_cost(population: SuperBlockPopulation, size: tuple[int, int], *, stem_kernel: int = 3) -> PopulationCost:
    """What N backbones cost at an input of ``size`` = (width, height) pixels."""
    p = population
    read, first, repeated, projection = unit_weights(p)
    level = block_levels(p.layout)
    cells_out = np.array([_cells(size, at) for at in level])
    cells_in = np.where(block_halvings(p.layout), [_cells(size, at - 1) for at in level], cells_out)
    units = first + (p.repeats - 1) * repeated + projection
    # only the first 1x1 convolution of a block that halves the resolution works on the larger map
    blocks = units * cells_out + read * p.width * (cells_in - cells_out)
    stem = _COLOURS * stem_kernel**2 * p.stem
    norms = 2 * (p.repeats * (2 * p.width + p.out) + np.where(projection > 0, p.out, 0))
    return PopulationCost(
        multiply_adds=stem * _cells(size, 1) + blocks.sum(axis=1),
        parameters=stem + 2 * p.stem + (units + norms).sum(axis=1),
        layers=1 + 3 * p.repeats.sum(axis=1),
    )


def unit_weights(population: SuperBlockPopulation) -> tuple[Ints, Ints, Ints, Ints]:
    """``(N, B)`` each: channels read, weights of the first unit, of a repeated one, and of the projection."""
    p = population
    read = np.column_stack((p.stem, p.out[:, :-1]))
    middle = p.width * p.width * p.kernel * p.kernel
    first = (read + p.out) * p.width + middle
    repeated = 2 * p.out * p.width + middle
    projected = block_halvings(p.layout) | (read != p.out)
    return read, first, repeated, np.where(projected, read * p.out, 0)


def _cells(size: tuple[int, int], level: int) -> int:
    return int(np.prod([-(-side // 2 ** int(level)) for side in size]))
