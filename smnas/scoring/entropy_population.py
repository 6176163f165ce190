"""Entropy of thousands of super-block backbones at once; equal to :mod:`smnas.scoring.entropy` of each."""

import numpy as np
from numpy.typing import NDArray

from smnas.scoring.entropy import PUBLISHED, EntropyForm
from smnas.space.families.super_blocks import SuperBlockPopulation

__all__ = ["entropy_of"]

Floats = NDArray[np.float64]

_COLOURS = 3


def entropy_of(
    population: SuperBlockPopulation,
    form: EntropyForm = PUBLISHED,
    *,
    stem_kernel: int = 3,
    size: tuple[int, int] = (480, 480),
) -> Floats:
    """Scores in closed form, ``(N,)``.

    Args:
        population: N backbones.
        form: Weights and terms.
        stem_kernel: Side of the stem's convolution, 3 or ImageNet's 7.
        size: Input (width, height) in pixels, used only ``by_resolution``.
    """
    p = population
    read = np.column_stack((p.stem, p.out[:, :-1]))
    # ln(deviation) of a super-block: its first unit reads the input, the others the block's own output
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
