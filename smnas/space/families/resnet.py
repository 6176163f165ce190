"""Residual backbones in SM-NAS's notation ``{block}_{base}_{code}`` (Yao et al., AAAI 2020), and its mutation.

The base width moves to a neighbour with probability 1/2, then a few edits follow of {insert a ``1``, remove a ``1``,
swap a ``2`` or ``-`` with a near neighbour}. The number of edits and the reach of a swap are this project's choices.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from math import comb
from typing import ClassVar, Literal, Self, get_args

import numpy as np
from pydantic import Field, field_validator, model_validator

from smnas.space.convolutions import Convolution, StemKind, bottleneck, inverted_residual
from smnas.space.families.base import (
    STAGE_RANGES,
    Backbone,
    Gene,
    SpaceError,
    StageBounds,
    ascending,
    neighbour,
    require,
    require_even,
)

__all__ = ["BlockKind", "ResNetBounds", "ResNetSpec", "bottleneck_inner", "mutate_code", "sample_code"]

BlockKind = Literal["basicblock", "bottleneck", "resnext", "inverted"]

_BASE_PROBABILITY = 0.5
_MOST_EDITS = 3
_REACH = 2  # reach of a swap
_EXPANSION: dict[str, int] = {"basicblock": 1, "bottleneck": 4, "resnext": 4, "inverted": 1}
_KNOWN_BLOCKS = f"the block must be one of {', '.join(_EXPANSION)}"
_RESNEXT_PATHS = (32, 4)  # 32x4d, the meaning of plain `resnext`
_REMEMBERED = 1 << 14


class ResNetBounds(StageBounds):
    """Bounds of stage 2 for residual backbones, which keep their kind of block and number of stages."""

    blocks: tuple[BlockKind, ...] = Field(default=(), description="kinds of blocks whose backbones are evolved")
    bases: tuple[int, ...] = Field(default=(), description="base widths, ascending")
    min_blocks: int = Field(default=1, ge=1)
    max_blocks: int = Field(default=16, ge=1)
    min_doublings: int = Field(default=0, ge=0)
    max_doublings: int = Field(default=3, ge=0)

    _ascending_bases = field_validator("bases")(ascending)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.blocks and not self.bases:
            raise ValueError("blocks that are evolved need bases")
        if self.min_blocks > self.max_blocks or self.min_doublings > self.max_doublings:
            raise ValueError("a lower bound must not exceed its upper bound")
        if self.blocks and self.max_blocks < max(self.stages):
            raise ValueError("max_blocks must give every stage a block")
        if self.min_doublings > self.max_blocks:
            raise ValueError("min_doublings must not exceed max_blocks")
        return self

    def contains_code(self, code: str) -> bool:
        """Whether ``code`` satisfies the bounds on stages, blocks and doublings, with no empty stage."""
        stages = code.split("-")
        return (
            all(stages)
            and len(stages) in self.stages
            and self.min_blocks <= sum(map(len, stages)) <= self.max_blocks
            and self.min_doublings <= code.count("2") <= self.max_doublings
        )

    def code_count(self, stages: int) -> int:
        """Number of codes of ``stages`` stages inside the bounds.

        ``n`` blocks split into ``s`` non-empty stages in C(n - 1, s - 1) ways, and ``d`` doublings fall on them in C(n,
        d) ways.
        """
        if stages not in self.stages:
            return 0
        return sum(
            comb(blocks - 1, stages - 1) * comb(blocks, doublings)
            for blocks in range(max(self.min_blocks, stages), self.max_blocks + 1)
            for doublings in range(self.min_doublings, self.max_doublings + 1)
        )


@dataclass(frozen=True, order=True)
class ResNetSpec(Backbone):
    """A residual backbone ``{block}_{base}_{code}``.

    Attributes:
        block: ``basicblock``, ``bottleneck``, ``resnext`` or ``inverted``.
        base: Width of the first block before any doubling (64 for the published ResNets).
        code: Blocks per stage, e.g. ``11-21-21-21`` for ResNet-18.
        paths: ResNeXt's cardinality and channels per path at width 64, written ``resnext64x4_64_...``; plain
            ``resnext_`` is 32x4d, the default, which other blocks keep.
    """

    GRAMMAR: ClassVar = f"{{{'|'.join(get_args(BlockKind))}}}_BASE_CODE, resnext{{PATHS}}x{{WIDTH}}_BASE_CODE"
    PARAMETERS: ClassVar = {
        "base": (8, 512),
        "cardinality": (2, 256),
        "path_width": (1, 256),
        "doublings": (0, 1000),
        **STAGE_RANGES,
    }

    block: BlockKind
    base: int
    code: str
    paths: tuple[int, int] = _RESNEXT_PATHS

    def __post_init__(self) -> None:
        require(self.block in _EXPANSION, _KNOWN_BLOCKS, self.block)
        require_even("a base width", self.base, 512)
        require(
            re.fullmatch(r"[12]+(-[12]+){0,3}", self.code) is not None,
            "a backbone code is one to four stages of the digits 1 and 2 joined by '-', as in 11-21-21-21",
            repr(self.code),
        )
        # more exceed a file name's length and memory
        require(self.depth <= 100, "a backbone code has 100 blocks at most", self.depth)
        width = self.base << self.doublings
        require(width <= 8192, "a backbone's width must stay within 8192 channels", width)
        require(
            self.block == "resnext" or self.paths == _RESNEXT_PATHS,
            "only resnext has a cardinality and a path width",
            f"{self.block} with {self.paths}",
        )
        require(
            2 <= self.paths[0] <= 256 and 1 <= self.paths[1] <= 256,
            "a ResNeXt has 2 to 256 paths of 1 to 256 channels",
            f"{self.paths[0]}x{self.paths[1]}",
        )

    def __str__(self) -> str:
        paths = "" if self.paths == _RESNEXT_PATHS else "{}x{}".format(*self.paths)
        return f"{self.block}{paths}_{self.base}_{self.code}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """See :class:`Backbone`, also for the other undocumented methods."""
        for block in get_args(BlockKind):
            if match := re.fullmatch(rf"{block}_(\d{{1,4}})_([0-9-]+)", text):
                return cls(block, int(match[1]), match[2])
        if match := re.fullmatch(r"resnext(\d{1,3})x(\d{1,3})_(\d{1,4})_([0-9-]+)", text):
            return cls("resnext", int(match[3]), match[4], (int(match[1]), int(match[2])))
        return None

    @property
    def stages(self) -> tuple[str, ...]:
        """The code of each stage."""
        return tuple(self.code.split("-"))

    @property
    def depths(self) -> tuple[int, ...]:
        return tuple(map(len, self.stages))

    @property
    def doublings(self) -> int:
        """Number of doublings of the width."""
        return self.code.count("2")

    @property
    def expansion(self) -> int:
        """Output channels of a block divided by its width."""
        return _EXPANSION[self.block]

    @property
    def narrowing(self) -> int:
        return 4 if self.expansion == 4 else 2

    def stage_widths(self) -> tuple[tuple[int, ...], ...]:
        """Width (channels before expansion) of each block, per stage."""
        width = self.base
        widths = []
        for stage in self.stages:
            row = []
            for digit in stage:
                width *= int(digit)
                row.append(width)
            widths.append(tuple(row))
        return tuple(widths)

    @property
    def stem_channels(self) -> int:
        return self.base

    def stage_channels(self, index: int) -> int:
        return self.stage_widths()[index][-1] * self.expansion

    def _convolutions(self, stem: StemKind) -> Iterator[Convolution]:
        yield Convolution(3, self.base, 7 if stem == "imagenet" else 3, 1, 1, 1)
        if stem == "deep":
            yield Convolution(self.base, self.base, 3, 1, 2, 2)
        read = self.base
        for level, widths in enumerate(self.stage_widths(), start=2):
            for position, width in enumerate(widths):
                stride = 2 if level > 2 and position == 0 else 1
                out = width * self.expansion
                match self.block:
                    case "basicblock":
                        yield Convolution(read, out, 3, 1, level, level)
                        yield Convolution(out, out, 3, 1, level, level)
                        if stride == 2 or read != out:
                            yield Convolution(read, out, 1, 1, level, level, shortcut=True)
                    case "bottleneck" | "resnext":
                        paths, path_width = self.paths if self.block == "resnext" else (1, 64)
                        inner = bottleneck_inner(width, paths, path_width)
                        yield from bottleneck(read, inner, out, 3, paths, level, stride)
                    case "inverted":
                        yield from inverted_residual(read, out, 6, level, stride)
                read = out

    def not_larger(self, other: Self) -> bool:
        """Each block of a stage needs one of ``other``'s stage, in order, that is at least as wide.

        Widths only grow along a backbone, so comparing both stages from their ends decides that. Block, cardinality and
        number of stages must be equal.
        """
        return (
            (self.block, self.paths) == (other.block, other.paths)
            and self.base <= other.base  # the stem's width follows from it
            and len(self.stages) == len(other.stages)
            and all(
                len(a) <= len(b) and all(x <= y for x, y in zip(reversed(a), reversed(b), strict=False))
                for a, b in zip(self.stage_widths(), other.stage_widths(), strict=True)
            )
        )

    def inside(self, bounds: ResNetBounds) -> bool:
        return self.block in bounds.blocks and self.base in bounds.bases and bounds.contains_code(self.code)

    def evolves(self, bounds: ResNetBounds, listed: Sequence[Backbone]) -> bool:
        return (self.block, self.paths) in _kinds(bounds, listed) and self.inside(bounds)

    @classmethod
    def count(cls, bounds: ResNetBounds, listed: Sequence[Backbone]) -> int:
        codes = sum(bounds.code_count(stages) for stages in bounds.stages)
        return len(_kinds(bounds, listed)) * codes * len(bounds.bases)

    @classmethod
    def covering(cls, bounds: ResNetBounds, listed: Sequence[Backbone]) -> Sequence["ResNetSpec"]:
        return [
            cls(block, bounds.bases[-1], code, paths)
            for block, paths in sorted(_kinds(bounds, listed))
            for stages in bounds.stages
            for code in dict.fromkeys(_widest_codes(bounds, stages))
        ]

    def mutated(self, bounds: ResNetBounds, rng: np.random.Generator) -> "ResNetSpec | None":
        if self.block not in bounds.blocks or len(self.stages) not in bounds.stages:
            return self
        base = self.base
        if base not in bounds.bases or rng.random() < _BASE_PROBABILITY:
            base = neighbour(base, bounds.bases, rng)
        code = mutate_code(self.code, rng)
        return replace(self, base=base, code=code) if bounds.contains_code(code) else None

    def sampled(self, bounds: ResNetBounds, rng: np.random.Generator) -> "ResNetSpec":
        if self.block not in bounds.blocks or len(self.stages) not in bounds.stages:
            return self
        base = bounds.bases[int(rng.integers(len(bounds.bases)))]
        return replace(self, base=base, code=sample_code(bounds, len(self.stages), rng))

    @classmethod
    def genes(cls, bounds: ResNetBounds, listed: Sequence[Backbone]) -> "_Genes | None":
        return _Genes(bounds) if bounds.blocks else None

    def rough_cost(self, pixels: int) -> tuple[float, float, int]:
        cost = 0.0
        for level, widths in enumerate(self.stage_widths()):
            per_pixel = 17.0 if self.block in ("bottleneck", "inverted") else 18.0
            cost += per_pixel * sum(width * width for width in widths) * pixels / 16 / 4**level
        return cost, float(self.stage_channels(-1)), self.depth

    def parameters(self) -> dict[str, str | int]:
        paths = {"cardinality": self.paths[0], "path_width": self.paths[1]} if self.block == "resnext" else {}
        own = {"block": self.block, "base": self.base, "doublings": self.doublings}
        return {**own, **paths, **self.stage_parameters()}


def bottleneck_inner(width: int, cardinality: int = 1, path_width: int = 64) -> int:
    """Inner channels of a bottleneck; exactly ``width`` for the plain one: one path of 64 channels at width 64."""
    return max(1, width * path_width // 64) * cardinality


def _kinds(bounds: ResNetBounds, listed: Sequence[Backbone]) -> set[tuple[BlockKind, tuple[int, int]]]:
    """Block and paths of the evolved backbones: each evolved block's default, and every listed cardinality."""
    plain = {(block, ResNetSpec.paths) for block in bounds.blocks}
    return plain | {(b.block, b.paths) for b in listed if isinstance(b, ResNetSpec) and b.block in bounds.blocks}


def sample_code(bounds: ResNetBounds, stages: int, rng: np.random.Generator) -> str:
    """Sample a code inside ``bounds``: first its depth, then its doublings, then the position of both.

    Deep codes are far more numerous: sampled uniformly, almost every code would be as deep as the bounds allow.

    Raises:
        SpaceError: no code of ``stages`` stages is inside the bounds.
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
    # distinct borders leave no stage empty
    borders = set(rng.choice(blocks - 1, size=stages - 1, replace=False).tolist()) if stages > 1 else set()
    return "".join(("2" if i in doubled else "1") + ("-" if i in borders else "") for i in range(blocks))


def _widest_codes(bounds: ResNetBounds, stages: int) -> Iterator[str]:
    """For each block's place, a code as wide as possible before it, with a doubling there and one without."""
    for stage in range(stages):
        for place in range(bounds.max_blocks - stages + 1):
            lengths = [1] * stages
            lengths[stage] += place
            lengths[0] += bounds.max_blocks - sum(lengths) if stage else 0
            before = sum(lengths[:stage]) + place
            for doubled in ("1", "2")[: 1 + (bounds.max_doublings > 0)]:
                early = min(bounds.max_doublings - (doubled == "2"), before)
                digits = f"{'2' * early}{'1' * (before - early)}{doubled}".ljust(sum(lengths), "1")
                ends = list(accumulate(lengths, initial=0))
                yield "-".join(digits[begin:end] for begin, end in pairwise(ends))


def mutate_code(code: str, rng: np.random.Generator) -> str:
    """Apply one to three edits. The result may equal ``code`` or have an empty stage: the caller checks it."""
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


class _Genes:
    """The base, the blocks of each stage and the positions of the doublings.

    Decoding repairs: with too many blocks the longest stages shrink, with too few the shortest grow. Doublings after
    the last block and duplicates are dropped; missing ones go to the first blocks of the later stages, then to the
    first free blocks.
    """

    def __init__(self, bounds: ResNetBounds) -> None:
        self._bounds = bounds
        self._stages = max(bounds.stages)
        most_in_a_stage = bounds.max_blocks - min(bounds.stages) + 1
        self.neutral = (0, *[0] * self._stages, *[bounds.max_blocks] * bounds.max_doublings)
        self.genes = (
            Gene("base", len(bounds.bases), ordered=True),
            *(Gene(f"stage{i}_blocks", most_in_a_stage, ordered=True) for i in range(1, self._stages + 1)),
            *(Gene(f"doubling{i}", bounds.max_blocks + 1, ordered=True) for i in range(1, bounds.max_doublings + 1)),
        )

    def family(self, backbone: ResNetSpec) -> ResNetSpec | None:
        inside = backbone.inside(self._bounds)
        return _representative(backbone.block, backbone.paths, len(backbone.stages)) if inside else None

    def encode(self, backbone: ResNetSpec) -> tuple[int, ...]:
        values = list(self.neutral)
        values[0] = self._bounds.bases.index(backbone.base)
        values[1 : 1 + len(backbone.stages)] = [len(stage) - 1 for stage in backbone.stages]
        positions = [i for i, digit in enumerate(backbone.code.replace("-", "")) if digit == "2"]
        values[1 + self._stages : 1 + self._stages + len(positions)] = positions
        return tuple(values)

    def decode(self, family: ResNetSpec, values: Sequence[int]) -> ResNetSpec:
        code = self._code(len(family.stages), values[1 : 1 + self._stages], values[1 + self._stages :])
        return replace(family, base=self._bounds.bases[values[0]], code=code)

    def _code(self, stages: int, blocks: Sequence[int], doublings: Sequence[int]) -> str:
        bounds = self._bounds
        lengths = [1 + more for more in blocks[:stages]]
        while sum(lengths) > bounds.max_blocks:
            lengths[lengths.index(max(lengths))] -= 1
        while sum(lengths) < bounds.min_blocks:
            lengths[lengths.index(min(lengths))] += 1
        total = sum(lengths)
        firsts = [sum(lengths[:stage]) for stage in range(1, stages)]
        doubled = {position for position in doublings if position < total}
        for position in (*firsts, *range(total)):
            if len(doubled) >= bounds.min_doublings:
                break
            doubled.add(position)
        digits = "".join("2" if position in doubled else "1" for position in range(total))
        return "-".join(digits[begin : begin + length] for begin, length in zip((0, *firsts), lengths, strict=True))


# Millions of designs share few families, and validating a new spec costs more than the rest of an encoding.
@lru_cache(maxsize=_REMEMBERED)
def _representative(block: BlockKind, paths: tuple[int, int], stages: int) -> ResNetSpec:
    return ResNetSpec(block, 8, "-".join("1" * stages), paths)
