"""Backbones of K1KXK1 super-blocks as arrays: thousands of them at once, and MAE-DET's moves between them.

The moves and bounds are MAE-DET's (Sun et al., arXiv 2111.13336): channels times 1.5, 1.25, 0.8, 0.6 or 0.5,
rounded to multiples of 8; one or two bottlenecks more or fewer; the other kernel. Of this project are: that one of a
super-block's four numbers is drawn for each move, each equally likely; that a super-block whose neighbour has moved is
brought back inside the bounds instead of the child being thrown away; and that no kernel shrinks below 3.

Pure array functions of a population and a generator; no torch.
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import numpy as np
from numpy.typing import NDArray

from smnas.space.architecture import SuperBlock, SuperBlockSpec

__all__ = [
    "MoveBounds",
    "SuperBlockPopulation",
    "block_halvings",
    "block_levels",
    "mutate_super_blocks",
    "seed_like",
    "super_block_layers",
]

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_FACTORS = np.array([1.5, 1.25, 0.8, 0.6, 0.5])
_STEPS = np.array([-2, -1, 1, 2])
_KERNELS = (3, 5)
_MOST_FIRST_REPEATS = 3
_WIDEST_STEM = 512  # as the language of architectures allows
_STEM = 0  # the block number of the stem in a move


@dataclass(frozen=True)
class SuperBlockPopulation:
    """N backbones with the same stages, B super-blocks each.

    Attributes:
        layout: Super-blocks by stage, e.g. ``(1, 1, 2, 1)``; they add up to B.
        stem: ``(N,)`` channels of the stem.
        out, width, kernel, repeats: ``(N, B)`` numbers of every super-block.
    """

    layout: tuple[int, ...]
    stem: Ints
    out: Ints
    width: Ints
    kernel: Ints
    repeats: Ints

    @classmethod
    def copies(cls, spec: SuperBlockSpec, count: int) -> Self:
        """``count`` times the same backbone."""
        blocks = spec.super_blocks
        rows = [[getattr(block, name) for block in blocks] for name in ("out", "width", "kernel", "repeats")]
        columns = [np.tile(np.array(row, dtype=np.int64), (count, 1)) for row in rows]
        return cls(tuple(map(len, spec.stages)), np.full(count, spec.stem, dtype=np.int64), *columns)

    @classmethod
    def of(cls, specs: "list[SuperBlockSpec]") -> Self:
        """The population of these backbones, at least one, which have the same stages."""
        first, *others = [cls.copies(spec, 1) for spec in specs]
        for other in others:
            first = first.joined(other)
        return first

    def __len__(self) -> int:
        return len(self.stem)

    def take(self, rows: NDArray[np.intp] | Mask | slice) -> Self:
        """The backbones of these rows."""
        return type(self)(
            self.layout, self.stem[rows], self.out[rows], self.width[rows], self.kernel[rows], self.repeats[rows]
        )

    def joined(self, other: "SuperBlockPopulation") -> Self:
        """Both populations, this one first."""
        if other.layout != self.layout:
            raise ValueError(f"populations of one layout can be joined, but got {self.layout} and {other.layout}")
        return type(self)(
            self.layout,
            np.concatenate((self.stem, other.stem)),
            np.concatenate((self.out, other.out)),
            np.concatenate((self.width, other.width)),
            np.concatenate((self.kernel, other.kernel)),
            np.concatenate((self.repeats, other.repeats)),
        )

    @property
    def genes(self) -> Ints:
        """``(N, 1 + 4 B)``: all numbers of a backbone in a row; two equal rows are one backbone."""
        return np.column_stack((self.stem, self.out, self.width, self.kernel, self.repeats))

    def spec(self, row: int) -> SuperBlockSpec:
        """One backbone as a value."""
        numbers = zip(self.out[row], self.width[row], self.kernel[row], self.repeats[row], strict=True)
        blocks = [SuperBlock(*map(int, block)) for block in numbers]
        ends = np.cumsum(self.layout).tolist()
        stages = tuple(tuple(blocks[end - size : end]) for size, end in zip(self.layout, ends, strict=True))
        return SuperBlockSpec(int(self.stem[row]), stages)


def block_levels(layout: tuple[int, ...]) -> Ints:
    """``(B,)``: the pyramid level that every super-block belongs to; the first stage is C2."""
    return np.repeat(np.arange(2, 2 + len(layout)), layout)


def block_halvings(layout: tuple[int, ...]) -> Mask:
    """``(B,)``: which super-blocks halve the resolution, the first one of every stage."""
    starts = np.concatenate(([0], np.cumsum(layout)[:-1]))
    return np.isin(np.arange(sum(layout)), starts)


@dataclass(frozen=True)
class MoveBounds:
    """What the moves keep, beside ``in <= out <= 4 in`` and ``out / 10 <= width <= out``.

    Attributes:
        layers: Convolutions of the backbone, shortcuts not counted; the share of it that one super-block may have
            follows from it. The whole is a budget of the search, not of a move.
        image: (width, height) of the input in pixels: a kernel shrinks where 1.5 times its side is over a map's.
        max_channels: Of the stem and of every super-block.
    """

    layers: int = 91
    image: tuple[int, int] = (480, 480)
    max_channels: int = 2048

    def max_repeats(self, blocks: int) -> Ints:
        """``(B,)``: repeats at most. The first super-block 3, the others shares of the layers (3 to a bottleneck)."""
        others = max(1, int(self.layers / 3 / max(1, blocks - 1)))
        return np.array([_MOST_FIRST_REPEATS] + [others] * (blocks - 1), dtype=np.int64)

    def contains(self, spec: SuperBlockSpec) -> bool:
        """Whether ``spec`` keeps the layers and every bound of the moves, but for the kernels'."""
        most = self.max_repeats(len(spec.super_blocks)).tolist()
        if super_block_layers(spec) > self.layers or spec.stem > self.max_channels:
            return False
        read = spec.stem
        for block, repeats in zip(spec.super_blocks, most, strict=True):
            inside = read <= block.out <= min(4 * read, self.max_channels) and block.repeats <= repeats
            if not (inside and _least_width(block.out) <= block.width <= block.out):
                return False
            read = block.out
        return True

    def count(self, layout: tuple[int, ...]) -> int:
        """How many backbones of this layout the bounds contain, exactly.

        Block by block: a number of ways for every (channels written, bottlenecks so far).
        """
        depth = (self.layers - 1) // 3
        outs = range(8, self.max_channels + 1, 8)
        ways = {(stem, 0): 1 for stem in range(8, min(_WIDEST_STEM, self.max_channels) + 1, 8)}
        for most in self.max_repeats(sum(layout)).tolist():
            # by depth: ways of everything that writes at most so many channels, so that a range is a difference
            below = {used: list(accumulate(ways.get((out, used), 0) for out in (0, *outs))) for used in range(depth)}
            ways = {}
            for out in outs:
                kinds = len(_KERNELS) * ((out - _least_width(out)) // 8 + 1)
                least = -(-out // 32) * 8  # in >= out / 4
                for used, sums in below.items():
                    reading = sums[out // 8] - sums[least // 8 - 1]
                    for repeats in range(1, min(most, depth - used) + 1):
                        key = (out, used + repeats)
                        ways[key] = ways.get(key, 0) + kinds * reading
        return sum(ways.values())

    def max_kernels(self, layout: tuple[int, ...]) -> Ints:
        """``(B,)``: the largest kernel by the size of the map that a super-block writes, never below 3."""
        side = min(self.image)
        sides = np.ceil(side / 2.0 ** block_levels(layout))
        return np.where(sides >= 1.5 * _KERNELS[1], _KERNELS[1], _KERNELS[0]).astype(np.int64)


def mutate_super_blocks(
    parents: SuperBlockPopulation, bounds: MoveBounds, rng: np.random.Generator, moves: int = 2
) -> tuple[SuperBlockPopulation, Mask]:
    """A child of every parent: ``moves`` moves in a row, each of one number of one block or of the stem's width.

    Args:
        parents: N backbones.
        bounds: What every child keeps.
        rng: Where all random numbers come from.
        moves: Successive moves.

    Returns:
        The N children, and ``(N, 1 + B)``: which blocks of each one (the stem first) moved to another number.
    """
    count, blocks = parents.out.shape
    rows = np.arange(count)
    stem, out, width, kernel, repeats = (
        array.copy() for array in (parents.stem, parents.out, parents.width, parents.kernel, parents.repeats)
    )
    most_repeats, most_kernel = bounds.max_repeats(blocks), bounds.max_kernels(parents.layout)
    moved = np.zeros((count, 1 + blocks), dtype=np.bool_)
    for _ in range(moves):
        chosen = rng.integers(0, 1 + blocks, count)
        number = rng.integers(0, 4, count)
        factor = _FACTORS[rng.integers(0, len(_FACTORS), count)]
        step = _STEPS[rng.integers(0, len(_STEPS), count)]
        before = np.column_stack((stem, out, width, kernel, repeats))
        at_stem = chosen == _STEM
        stem[at_stem] = _scaled(stem[at_stem], factor[at_stem], bounds.max_channels)
        for which, array in enumerate((out, width)):
            hit = ~at_stem & (number == which)
            place = rows[hit], chosen[hit] - 1
            array[place] = _scaled(array[place], factor[hit], bounds.max_channels)
        hit = ~at_stem & (number == 2)
        place = rows[hit], chosen[hit] - 1
        kernel[place] = _KERNELS[0] + _KERNELS[1] - kernel[place]
        hit = ~at_stem & (number == 3)
        place = rows[hit], chosen[hit] - 1
        repeats[place] += step[hit]
        _repair(stem, out, width, bounds.max_channels)
        np.minimum(kernel, most_kernel, out=kernel)
        np.clip(repeats, 1, most_repeats, out=repeats)
        changed = before != np.column_stack((stem, out, width, kernel, repeats))
        moved[:, 0] |= changed[:, 0]
        moved[:, 1:] |= changed[:, 1:].reshape(count, 4, blocks).any(axis=1)
    return SuperBlockPopulation(parents.layout, stem, out, width, kernel, repeats), moved


def _scaled(channels: Ints, factor: NDArray[np.float64], most: int) -> Ints:
    """Channels times a factor, to the nearest multiple of 8 (half upwards), from 8 to ``most``."""
    rounded = (np.floor(channels * factor / 8 + 0.5) * 8).astype(np.int64)
    return np.clip(rounded, 8, most)


def _least_width(out: int) -> int:
    """A tenth of the channels written, rounded up to a multiple of 8."""
    return -(-out // 80) * 8


def _repair(stem: Ints, out: Ints, width: Ints, most: int) -> None:
    """Bring ``in <= out <= 4 in`` and ``out / 10 <= width <= out`` back, top to bottom, in place."""
    np.minimum(stem, min(_WIDEST_STEM, most), out=stem)
    read = stem
    for block in range(out.shape[1]):
        out[:, block] = np.clip(out[:, block], read, np.minimum(4 * read, most))
        width[:, block] = np.clip(width[:, block], -(-out[:, block] // 80) * 8, out[:, block])
        read = out[:, block]


def super_block_layers(spec: SuperBlockSpec) -> int:
    """Convolutions of the backbone, shortcuts not counted: the stem and three to a bottleneck."""
    return 1 + 3 * spec.depth


def seed_like(stem: int, out: tuple[int, ...], width: tuple[int, ...], repeats: tuple[int, ...]) -> SuperBlockSpec:
    """A backbone with one 3x3 super-block a stage, its channels rounded to multiples of 8."""

    def rounded(channels: int) -> int:
        return max(8, math.floor(channels / 8 + 0.5) * 8)

    rows = zip(out, width, repeats, strict=True)
    return SuperBlockSpec(rounded(stem), tuple((SuperBlock(rounded(o), rounded(w), 3, r),) for o, w, r in rows))
