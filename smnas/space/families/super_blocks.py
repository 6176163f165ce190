"""Backbones of K1KXK1 super-blocks (MAE-DET, Sun et al., arXiv 2111.13336): one, or thousands of them as arrays.

The moves and bounds are MAE-DET's: channels times 1.5, 1.25, 0.8, 0.6 or 0.5, rounded to multiples of 8; one or two
bottlenecks more or fewer; the other kernel. This project's choices: each move draws one of a super-block's four numbers
uniformly; a super-block whose neighbour moved is repaired to the bounds instead of rejecting the child; and no kernel
shrinks below 3.

Moves are pure array functions of a population and a generator. Imports no torch.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from smnas.space.convolutions import Convolution, StemKind, bottleneck
from smnas.space.families.base import STAGE_RANGES, Backbone, StageBounds, matched, require, require_even

__all__ = [
    "MoveBounds",
    "SuperBlock",
    "SuperBlockBounds",
    "SuperBlockPopulation",
    "SuperBlockSpec",
    "block_halvings",
    "block_levels",
    "mutate_super_blocks",
    "seed_like",
    "seed_of",
    "super_block_layers",
]

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_FACTORS = np.array([1.5, 1.25, 0.8, 0.6, 0.5])
_STEPS = np.array([-2, -1, 1, 2])
_KERNELS = (3, 5)
_MOST_FIRST_REPEATS = 3
_WIDEST_STEM = 512  # as in the grammar
_STEM = 0  # index of the stem in a move
_ANY_IMAGE = (4096, 4096)
_SAMPLE_MOVES = 20  # pairs of moves, after which little of the parent is left
_ARRAYS = ("stem", "out", "width", "kernel", "repeats")  # of a population


class SuperBlockBounds(StageBounds):
    """Bounds of stage 2 for super-block backbones."""

    super_block_layers: int = Field(
        default=0, ge=0, description="convolutions of a backbone of K1KXK1 super-blocks at most; 0 evolves none"
    )

    @property
    def super_block_bounds(self) -> "MoveBounds":
        """The bounds of the moves, with every kernel allowed at every input size."""
        return MoveBounds(layers=self.super_block_layers, image=_ANY_IMAGE)


@dataclass(frozen=True, order=True)
class SuperBlock:
    """A K1KXK1 super-block of MAE-DET (Sun et al., arXiv 2111.13336), ``256b64k3r3``: ``repeats`` bottlenecks.

    Each is a 1x1 convolution to ``width`` channels, a ``kernel`` x ``kernel`` one (3 or 5) and a 1x1 one to ``out``
    channels, with a shortcut.
    """

    out: int
    width: int
    kernel: int
    repeats: int

    def __post_init__(self) -> None:
        require_even("a super-block's output", self.out, 4096)
        require_even("a super-block's width", self.width, 4096)
        require(self.kernel in (3, 5), "a super-block's kernel is 3 or 5", self.kernel)
        require(1 <= self.repeats <= 99, "a super-block repeats its bottleneck 1 to 99 times", self.repeats)

    def __str__(self) -> str:
        return f"{self.out}b{self.width}k{self.kernel}r{self.repeats}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the canonical string; raises :class:`ArchitectureError`."""
        rule = "a super-block is {OUT}b{WIDTH}k{KERNEL}r{REPEATS}, as in 256b64k3r3"
        match = matched(r"(\d{1,4})b(\d{1,4})k(\d{1,2})r(\d{1,2})", text, rule)
        return cls(*map(int, match.groups()))

    def not_larger(self, other: "SuperBlock") -> bool:
        """Whether none of its numbers exceeds ``other``'s: a larger kernel contains a smaller one."""
        return (
            self.out <= other.out
            and self.width <= other.width
            and self.kernel <= other.kernel
            and self.repeats <= other.repeats
        )


@dataclass(frozen=True, order=True)
class SuperBlockSpec(Backbone):
    """A backbone of K1KXK1 super-blocks, ``k1kxk1_{stem}_{stages}``, with ``stem`` channels at C1.

    One to four stages are joined by ``-``, the super-blocks of a stage by ``.``; stage k ends at C_(k+1). The first
    bottleneck of each stage halves the resolution, so there is no second stem convolution and no pooling.
    """

    GRAMMAR: ClassVar = "k1kxk1_STEM_STAGES"
    PARAMETERS: ClassVar = {"super_blocks": (1, 8), "stem": (8, 512), **STAGE_RANGES}

    stem: int
    stages: tuple[tuple[SuperBlock, ...], ...]

    def __post_init__(self) -> None:
        require_even("the stem of super-blocks", self.stem, 512)
        require(1 <= len(self.stages) <= 4, "a backbone of super-blocks has one to four stages", len(self.stages))
        sizes = list(map(len, self.stages))
        require(
            min(sizes) >= 1 and sum(sizes) <= 8,
            "a stage has one super-block or more and a backbone has 8 at most",
            "-".join(map(str, sizes)),
        )

    def __str__(self) -> str:
        return f"k1kxk1_{self.stem}_" + "-".join(".".join(map(str, stage)) for stage in self.stages)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """See :class:`Backbone`, also for the other undocumented methods."""
        if not text.startswith("k1kxk1_"):
            return None
        rule = "super-blocks are k1kxk1_STEM_STAGES, stages joined by '-' and super-blocks within one by '.'"
        match = matched(r"k1kxk1_(\d{1,4})_([0-9bkr.-]+)", text, rule)
        stages = tuple(tuple(map(SuperBlock.parse, stage.split("."))) for stage in match[2].split("-"))
        return cls(int(match[1]), stages)

    @property
    def super_blocks(self) -> tuple[SuperBlock, ...]:
        """All super-blocks in order."""
        return tuple(block for stage in self.stages for block in stage)

    @property
    def layout(self) -> tuple[int, ...]:
        """Number of super-blocks per stage."""
        return tuple(map(len, self.stages))

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of bottlenecks of each stage."""
        return tuple(sum(block.repeats for block in stage) for stage in self.stages)

    @property
    def stem_channels(self) -> int:
        return self.stem

    def stage_channels(self, index: int) -> int:
        return self.stages[index][-1].out

    def _convolutions(self, stem: StemKind) -> Iterator[Convolution]:
        yield Convolution(3, self.stem, 7 if stem == "imagenet" else 3, 1, 1, 1)
        read = self.stem
        for level, stage in enumerate(self.stages, start=2):
            stride = 2
            for block in stage:
                for _ in range(block.repeats):
                    yield from bottleneck(read, block.width, block.out, block.kernel, 1, level, stride)
                    read, stride = block.out, 1

    def not_larger(self, other: Self) -> bool:
        """Super-blocks are compared one by one, kernels included."""
        return (
            self.stem <= other.stem
            and self.layout == other.layout
            and all(a.not_larger(b) for a, b in zip(self.super_blocks, other.super_blocks, strict=True))
        )

    def inside(self, bounds: SuperBlockBounds) -> bool:
        return len(self.stages) in bounds.stages and bounds.super_block_bounds.contains(self)

    def evolves(self, bounds: SuperBlockBounds, listed: Sequence[Backbone]) -> bool:
        """Evolved from any initial super-blocks, listed or not."""
        return bounds.super_block_layers > 0 and self.inside(bounds)

    def mutated(self, bounds: SuperBlockBounds, rng: np.random.Generator) -> "SuperBlockSpec | None":
        """Apply two of MAE-DET's moves."""
        if not bounds.super_block_layers or len(self.stages) not in bounds.stages:
            return self
        children, _ = mutate_super_blocks(SuperBlockPopulation.copies(self, 1), bounds.super_block_bounds, rng)
        child = children.spec(0)
        return child if child.inside(bounds) else None

    def sampled(self, bounds: SuperBlockBounds, rng: np.random.Generator) -> "SuperBlockSpec":
        """Apply a sequence of moves, skipping those that break the bounds."""
        drawn = self
        if bounds.super_block_layers and len(self.stages) in bounds.stages:
            for _ in range(_SAMPLE_MOVES):
                drawn = drawn.mutated(bounds, rng) or drawn
        return drawn

    @classmethod
    def genes(cls, bounds: SuperBlockBounds, listed: Sequence[Backbone]) -> "_Genes":
        return _Genes([choice for choice in listed if isinstance(choice, SuperBlockSpec)])

    def rough_cost(self, pixels: int) -> tuple[float, float, int]:
        cost = 0.0
        for level, stage in enumerate(self.stages):
            weights = sum(b.repeats * b.width * (2 * b.out + b.kernel**2 * b.width) for b in stage)
            cost += weights * pixels / 16 / 4**level
        return cost, float(self.stage_channels(-1)), self.depth

    def parameters(self) -> dict[str, str | int]:
        return {"super_blocks": len(self.super_blocks), "stem": self.stem, **self.stage_parameters()}


class _Genes:
    """No genes: an unlisted backbone is encoded as the first listed one of its layout."""

    genes = neutral = ()

    def __init__(self, listed: Sequence[SuperBlockSpec]) -> None:
        self._listed = listed

    def family(self, backbone: SuperBlockSpec) -> SuperBlockSpec | None:
        near = [choice for choice in self._listed if choice.layout == backbone.layout]
        return backbone if backbone in near else next(iter(near), None)

    def encode(self, backbone: SuperBlockSpec) -> tuple[int, ...]:
        return ()

    def decode(self, family: SuperBlockSpec, values: Sequence[int]) -> SuperBlockSpec:
        return family


@dataclass(frozen=True)
class SuperBlockPopulation:
    """N backbones with the same stages, B super-blocks each.

    Attributes:
        layout: Super-blocks per stage, e.g. ``(1, 1, 2, 1)``; their sum is B.
        stem: ``(N,)`` channels of the stem.
        out, width, kernel, repeats: ``(N, B)`` numbers of each super-block.
    """

    layout: tuple[int, ...]
    stem: Ints
    out: Ints
    width: Ints
    kernel: Ints
    repeats: Ints

    @classmethod
    def copies(cls, spec: SuperBlockSpec, count: int) -> Self:
        """``count`` copies of a backbone."""
        rows = [[getattr(block, name) for block in spec.super_blocks] for name in _ARRAYS[1:]]
        columns = [np.tile(np.array(row, dtype=np.int64), (count, 1)) for row in rows]
        return cls(spec.layout, np.full(count, spec.stem, dtype=np.int64), *columns)

    @classmethod
    def of(cls, specs: Iterable[Backbone]) -> Self:
        """The population of one or more super-block backbones of the same layout."""
        population: Self | None = None
        for spec in specs:
            if not isinstance(spec, SuperBlockSpec):
                raise ValueError(f"a backbone of super-blocks is needed, but got {spec}")
            one = cls.copies(spec, 1)
            population = one if population is None else population.joined(one)
        if population is None:
            raise ValueError("a population has one backbone at least")
        return population

    def __len__(self) -> int:
        return len(self.stem)

    def take(self, rows: NDArray[np.intp] | Mask | slice) -> Self:
        """The backbones of these rows."""
        return type(self)(self.layout, *(array[rows] for array in self._arrays))

    def joined(self, other: "SuperBlockPopulation") -> Self:
        """Both populations, this one first."""
        if other.layout != self.layout:
            raise ValueError(f"populations of one layout can be joined, but got {self.layout} and {other.layout}")
        return type(self)(self.layout, *map(np.concatenate, zip(self._arrays, other._arrays, strict=True)))

    @property
    def genes(self) -> Ints:
        """``(N, 1 + 4 B)``: all numbers of a backbone in a row; equal rows are equal backbones."""
        return np.column_stack(self._arrays)

    @property
    def _arrays(self) -> tuple[Ints, ...]:
        return tuple(getattr(self, name) for name in _ARRAYS)

    def spec(self, row: int) -> SuperBlockSpec:
        """One backbone as a value."""
        numbers = zip(self.out[row], self.width[row], self.kernel[row], self.repeats[row], strict=True)
        blocks = [SuperBlock(*map(int, block)) for block in numbers]
        ends = np.cumsum(self.layout).tolist()
        stages = tuple(tuple(blocks[end - size : end]) for size, end in zip(self.layout, ends, strict=True))
        return SuperBlockSpec(int(self.stem[row]), stages)


def block_levels(layout: tuple[int, ...]) -> Ints:
    """``(B,)``: pyramid level of each super-block; the first stage is C2."""
    return np.repeat(np.arange(2, 2 + len(layout)), layout)


def block_halvings(layout: tuple[int, ...]) -> Mask:
    """``(B,)``: whether a super-block halves the resolution, as the first one of each stage does."""
    starts = np.concatenate(([0], np.cumsum(layout)[:-1]))
    return np.isin(np.arange(sum(layout)), starts)


@dataclass(frozen=True)
class MoveBounds:
    """Bounds of the moves, besides ``in <= out <= 4 in`` and ``out / 10 <= width <= out``.

    Attributes:
        layers: Convolutions of the backbone, shortcuts excluded. Moves keep only the limit per super-block that follows
            from it; the total is enforced by the search.
        image: (width, height) of the input in pixels: a kernel shrinks where 1.5 times its size exceeds the feature
            map.
        max_channels: For the stem and each super-block.
    """

    layers: int = 91
    image: tuple[int, int] = (480, 480)
    max_channels: int = 2048

    def max_repeats(self, blocks: int) -> Ints:
        """``(B,)``: at most 3 in the first super-block, an equal part of the layers (3 per bottleneck) in others."""
        others = max(1, int(self.layers / 3 / max(1, blocks - 1)))
        return np.array([_MOST_FIRST_REPEATS] + [others] * (blocks - 1), dtype=np.int64)

    def contains(self, spec: SuperBlockSpec) -> bool:
        """Whether ``spec`` satisfies all bounds but the kernels'."""
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

    def max_kernels(self, layout: tuple[int, ...]) -> Ints:
        """``(B,)``: largest kernel for the size of the feature map that a super-block writes, at least 3."""
        side = min(self.image)
        sides = np.ceil(side / 2.0 ** block_levels(layout))
        return np.where(sides >= 1.5 * _KERNELS[1], _KERNELS[1], _KERNELS[0]).astype(np.int64)


def mutate_super_blocks(
    parents: SuperBlockPopulation, bounds: MoveBounds, rng: np.random.Generator, moves: int = 2
) -> tuple[SuperBlockPopulation, Mask]:
    """Mutate every parent by ``moves`` successive moves, each of one number of one block or of the stem's width.

    Returns:
        The N children, all inside ``bounds``, and ``(N, 1 + B)``: the blocks of each that changed, the stem first.
    """
    count, blocks = parents.out.shape
    rows = np.arange(count)
    arrays = [getattr(parents, name).copy() for name in _ARRAYS]
    stem, out, width, kernel, repeats = arrays
    most_repeats, most_kernel = bounds.max_repeats(blocks), bounds.max_kernels(parents.layout)
    moved = np.zeros((count, 1 + blocks), dtype=np.bool_)
    for _ in range(moves):
        chosen = rng.integers(0, 1 + blocks, count)
        number = rng.integers(0, 4, count)
        factor = _FACTORS[rng.integers(0, len(_FACTORS), count)]
        step = _STEPS[rng.integers(0, len(_STEPS), count)]
        before = np.column_stack(arrays)
        at_stem = chosen == _STEM
        stem[at_stem] = _scaled(stem[at_stem], factor[at_stem], bounds.max_channels)
        for which, array in enumerate(arrays[1:]):
            hit = ~at_stem & (number == which)
            place = rows[hit], chosen[hit] - 1
            if array is kernel:
                array[place] = sum(_KERNELS) - array[place]
            elif array is repeats:
                array[place] += step[hit]
            else:
                array[place] = _scaled(array[place], factor[hit], bounds.max_channels)
        _repair(stem, out, width, bounds.max_channels)
        np.minimum(kernel, most_kernel, out=kernel)
        np.clip(repeats, 1, most_repeats, out=repeats)
        changed = before != np.column_stack(arrays)
        moved[:, 0] |= changed[:, 0]
        moved[:, 1:] |= changed[:, 1:].reshape(count, 4, blocks).any(axis=1)
    return SuperBlockPopulation(parents.layout, *arrays), moved


def _scaled(channels: Ints, factor: NDArray[np.float64], most: int) -> Ints:
    """Channels times a factor, rounded to the nearest multiple of 8 (half up), from 8 to ``most``."""
    rounded = (np.floor(channels * factor / 8 + 0.5) * 8).astype(np.int64)
    return np.clip(rounded, 8, most)


def _least_width(out: int) -> int:
    """A tenth of the output channels, rounded up to a multiple of 8."""
    return -(-out // 80) * 8


def _repair(stem: Ints, out: Ints, width: Ints, most: int) -> None:
    """Restore ``in <= out <= 4 in`` and ``out / 10 <= width <= out``, top to bottom, in place."""
    np.minimum(stem, min(_WIDEST_STEM, most), out=stem)
    read = stem
    for block in range(out.shape[1]):
        out[:, block] = np.clip(out[:, block], read, np.minimum(4 * read, most))
        width[:, block] = np.clip(width[:, block], -(-out[:, block] // 80) * 8, out[:, block])
        read = out[:, block]


def super_block_layers(spec: SuperBlockSpec) -> int:
    """Convolutions of the backbone, shortcuts excluded: the stem and three per bottleneck."""
    return 1 + 3 * spec.depth


def seed_like(stem: int, out: tuple[int, ...], width: tuple[int, ...], repeats: tuple[int, ...]) -> SuperBlockSpec:
    """A backbone with one 3x3 super-block per stage, its channels rounded to multiples of 8."""

    def rounded(channels: int) -> int:
        return max(8, math.floor(channels / 8 + 0.5) * 8)

    rows = zip(out, width, repeats, strict=True)
    return SuperBlockSpec(rounded(stem), tuple((SuperBlock(rounded(o), rounded(w), 3, r),) for o, w, r in rows))


def seed_of(backbone: Backbone) -> SuperBlockSpec:
    """A super-block backbone with the stem, depths and channels of ``backbone``."""
    if isinstance(backbone, SuperBlockSpec):
        return backbone
    out = tuple(map(backbone.stage_channels, range(len(backbone.depths))))
    width = tuple(channels // backbone.narrowing for channels in out)
    return seed_like(backbone.stem_channels, out, width, backbone.depths)
