"""Inverted residuals with a kernel and an expansion per layer and a width per stage.

The choices are those of ProxylessNAS and Once-for-All (Cai et al., arXiv 1812.00332 and 1908.09791): kernels of 3, 5
and 7, and depth reduced by replacing a stage's last layers by the identity, which the string omits to stay canonical.
The moves, and widths that never shrink from stage to stage, are this project's.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from math import comb
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, field_validator

from smnas.space.convolutions import Convolution, StemKind, inverted_residual
from smnas.space.families.base import (
    STAGE_RANGES,
    Backbone,
    Gene,
    StageBounds,
    ascending,
    matched,
    neighbour,
    require,
    require_even,
)

__all__ = ["MBConvBounds", "MBConvSpec", "MBConvStage"]

_MOST_LAYERS = 32  # longer strings exceed the length of a file name
_MOST_EDITS = 3


class MBConvBounds(StageBounds):
    """Bounds of stage 2 for mbconv backbones."""

    mbconv_widths: tuple[Annotated[int, Field(ge=8, le=2048, multiple_of=2)], ...] = Field(
        default=(), description="mbconv's stage widths, ascending; empty evolves none"
    )
    mbconv_kernels: tuple[Literal[3, 5, 7], ...] = Field(
        default=(3, 5, 7), min_length=1, description="kernels of the layers, ascending"
    )
    mbconv_expansions: tuple[Annotated[int, Field(ge=1, le=9)], ...] = Field(
        default=(3, 4, 6), min_length=1, description="expansions of the layers, ascending"
    )
    mbconv_layers: int = Field(default=4, ge=1, le=_MOST_LAYERS // 4, description="layers of a stage at most")

    _ascending = field_validator("mbconv_widths", "mbconv_kernels", "mbconv_expansions")(ascending)


@dataclass(frozen=True, order=True)
class MBConvStage:
    """Layers at one resolution, ``24k3e6.k5e4``: their common output width, then kernel and expansion of each."""

    width: int
    layers: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        require_even("an mbconv stage's width", self.width, 2048)
        require(len(self.layers) >= 1, "an mbconv stage has one layer or more", len(self.layers))
        for kernel, expansion in self.layers:
            require(kernel in (3, 5, 7), "an mbconv kernel is 3, 5 or 7", kernel)
            require(1 <= expansion <= 9, "an mbconv expansion is 1 to 9", expansion)

    def __str__(self) -> str:
        return f"{self.width}" + ".".join(f"k{kernel}e{expansion}" for kernel, expansion in self.layers)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the canonical string; raises :class:`ArchitectureError`."""
        rule = "an mbconv stage is {WIDTH}k{KERNEL}e{EXPANSION}, further layers behind a '.', as in 24k3e6.k5e4"
        match = matched(r"(\d{1,4})(k\de\d(?:\.k\de\d)*)", text, rule)
        return cls(int(match[1]), tuple((int(layer[1]), int(layer[3])) for layer in match[2].split(".")))


@dataclass(frozen=True, order=True)
class MBConvSpec(Backbone):
    """A backbone ``mbconv_{stem}_{stages}``, for example ``mbconv_16_24k3e6.k5e4-40k5e6.k3e3-80k7e6``.

    The stem is a 3x3 convolution of stride 2 to ``stem`` channels (C1). Of one to four stages, each halves the
    resolution at its first layer, and stage k ends at C_(k+1).
    """

    GRAMMAR: ClassVar = "mbconv_STEM_STAGES"
    PARAMETERS: ClassVar = {"stem": (8, 512), **STAGE_RANGES, **{f"stage{i}_width": (8, 2048) for i in range(1, 5)}}

    stem: int
    stages: tuple[MBConvStage, ...]

    def __post_init__(self) -> None:
        require_even("an mbconv stem", self.stem, 512)
        require(1 <= len(self.stages) <= 4, "an mbconv backbone has one to four stages", len(self.stages))
        require(self.depth <= _MOST_LAYERS, f"an mbconv backbone has {_MOST_LAYERS} layers at most", self.depth)

    def __str__(self) -> str:
        return f"mbconv_{self.stem}_" + "-".join(map(str, self.stages))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """See :class:`Backbone`, also for the other undocumented methods."""
        match = re.fullmatch(r"mbconv_(\d{1,4})_(.+)", text)
        return None if match is None else cls(int(match[1]), tuple(map(MBConvStage.parse, match[2].split("-"))))

    @property
    def depths(self) -> tuple[int, ...]:
        return tuple(len(stage.layers) for stage in self.stages)

    @property
    def stem_channels(self) -> int:
        return self.stem

    def stage_channels(self, index: int) -> int:
        return self.stages[index].width

    def _convolutions(self, stem: StemKind) -> Iterator[Convolution]:
        yield Convolution(3, self.stem, 3, 1, 1, 1)
        read = self.stem
        for level, stage in enumerate(self.stages, start=2):
            stride = 2
            for kernel, expansion in stage.layers:
                yield from inverted_residual(read, stage.width, expansion, level, stride, kernel)
                read, stride = stage.width, 1

    def not_larger(self, other: Self) -> bool:
        """Layers are compared in order; missing ones count as the identity."""
        return (
            self.stem <= other.stem
            and len(self.stages) == len(other.stages)
            and all(
                a.width <= b.width
                and len(a.layers) <= len(b.layers)
                and all(x[0] <= y[0] and x[1] <= y[1] for x, y in zip(a.layers, b.layers, strict=False))
                for a, b in zip(self.stages, other.stages, strict=True)
            )
        )

    def inside(self, bounds: MBConvBounds) -> bool:
        return (
            len(self.stages) in bounds.stages
            and all(stage.width in bounds.mbconv_widths for stage in self.stages)
            and all(a.width <= b.width for a, b in pairwise(self.stages))
            and all(len(stage.layers) <= bounds.mbconv_layers for stage in self.stages)
            and all(
                kernel in bounds.mbconv_kernels and expansion in bounds.mbconv_expansions
                for stage in self.stages
                for kernel, expansion in stage.layers
            )
        )

    def evolves(self, bounds: MBConvBounds, listed: Sequence[Backbone]) -> bool:
        return self.inside(bounds) and (self.stem, len(self.stages)) in _kinds(bounds, listed)

    @classmethod
    def count(cls, bounds: MBConvBounds, listed: Sequence[Backbone]) -> int:
        return sum(_count(bounds, stages) for _, stages in _kinds(bounds, listed))

    @classmethod
    def covering(cls, bounds: MBConvBounds, listed: Sequence[Backbone]) -> Sequence["MBConvSpec"]:
        if not bounds.mbconv_widths:
            return ()
        layer = bounds.mbconv_kernels[-1], bounds.mbconv_expansions[-1]
        stage = MBConvStage(bounds.mbconv_widths[-1], (layer,) * bounds.mbconv_layers)
        return [cls(stem, (stage,) * stages) for stem, stages in sorted(_kinds(bounds, listed))]

    def mutated(self, bounds: MBConvBounds, rng: np.random.Generator) -> "MBConvSpec | None":
        """Apply one to three of: next stage width, next kernel or expansion of a layer, one layer more or fewer."""
        if not bounds.mbconv_widths or len(self.stages) not in bounds.stages:
            return self
        stages = list(self.stages)
        for _ in range(1 + int(rng.integers(_MOST_EDITS))):
            at, edit = int(rng.integers(len(stages))), int(rng.integers(5))
            width, layers = stages[at].width, list(stages[at].layers)
            layer = int(rng.integers(len(layers)))
            kernel, expansion = layers[layer]
            if edit == 0:
                width = neighbour(width, bounds.mbconv_widths, rng)
            elif edit == 1:
                layers[layer] = (neighbour(kernel, bounds.mbconv_kernels, rng), expansion)
            elif edit == 2:
                layers[layer] = (kernel, neighbour(expansion, bounds.mbconv_expansions, rng))
            elif edit == 3:
                layers.insert(layer, (kernel, expansion))
            elif len(layers) > 1:
                del layers[layer]
            stages[at] = MBConvStage(width, tuple(layers))
        if sum(len(stage.layers) for stage in stages) > _MOST_LAYERS:
            return None
        child = replace(self, stages=tuple(stages))
        return child if child.inside(bounds) else None

    def sampled(self, bounds: MBConvBounds, rng: np.random.Generator) -> "MBConvSpec":
        if not bounds.mbconv_widths or len(self.stages) not in bounds.stages:
            return self
        widths = np.sort(rng.choice(bounds.mbconv_widths, size=len(self.stages))).tolist()
        stages = []
        for width in widths:
            depth = 1 + int(rng.integers(bounds.mbconv_layers))
            kernels = rng.choice(bounds.mbconv_kernels, size=depth).tolist()
            expansions = rng.choice(bounds.mbconv_expansions, size=depth).tolist()
            stages.append(MBConvStage(width, tuple(zip(kernels, expansions, strict=True))))
        return replace(self, stages=tuple(stages))

    @classmethod
    def genes(cls, bounds: MBConvBounds, listed: Sequence[Backbone]) -> "_Genes | None":
        return _Genes(bounds) if bounds.mbconv_widths else None

    def parameters(self) -> dict[str, str | int]:
        widths = {f"stage{i}_width": stage.width for i, stage in enumerate(self.stages, start=1)}
        return {"stem": self.stem, **self.stage_parameters(), **widths}


def _kinds(bounds: MBConvBounds, listed: Sequence[Backbone]) -> set[tuple[int, int]]:
    """Stem and number of stages of the evolved backbones."""
    own = {(choice.stem, len(choice.stages)) for choice in listed if isinstance(choice, MBConvSpec)}
    return {(stem, stages) for stem, stages in own if stages in bounds.stages}


def _count(bounds: MBConvBounds, stages: int) -> int:
    """Number of non-decreasing widths times layer choices of each stage; 0 if no such backbone is evolved."""
    if not bounds.mbconv_widths or stages not in bounds.stages:
        return 0
    choices = len(bounds.mbconv_kernels) * len(bounds.mbconv_expansions)
    layers: int = sum(choices**depth for depth in range(1, bounds.mbconv_layers + 1))
    ways: int = layers**stages
    return comb(len(bounds.mbconv_widths) + stages - 1, stages) * ways


class _Genes:
    """Stage widths, then kernels (or the identity), then expansions of the largest number of layers of each stage.

    Decoding repairs: a width is at least that of the stage before, the first layer of a stage is not the identity, and
    layers after an identity move up.
    """

    def __init__(self, bounds: MBConvBounds) -> None:
        self._bounds = bounds
        self._stages = max(bounds.stages)
        kernels, expansions = len(bounds.mbconv_kernels), len(bounds.mbconv_expansions)
        layers = [(i, j) for i in range(1, self._stages + 1) for j in range(1, bounds.mbconv_layers + 1)]
        self.genes = (
            *(Gene(f"mbconv{i}_width", len(bounds.mbconv_widths), ordered=True) for i in range(1, self._stages + 1)),
            *(Gene(f"mbconv{i}_{j}_kernel", 1 + kernels, ordered=True) for i, j in layers),  # 0 is the identity
            *(Gene(f"mbconv{i}_{j}_expansion", expansions, ordered=True) for i, j in layers),
        )
        self.neutral = (0,) * len(self.genes)

    def family(self, backbone: MBConvSpec) -> MBConvSpec | None:
        return _representative(backbone.stem, len(backbone.stages)) if backbone.inside(self._bounds) else None

    def encode(self, backbone: MBConvSpec) -> tuple[int, ...]:
        bounds, values = self._bounds, list(self.neutral)
        kernels = self._stages
        expansions = kernels + self._stages * bounds.mbconv_layers
        for index, stage in enumerate(backbone.stages):
            values[index] = bounds.mbconv_widths.index(stage.width)
            for at, (kernel, expansion) in enumerate(stage.layers, start=index * bounds.mbconv_layers):
                values[kernels + at] = 1 + bounds.mbconv_kernels.index(kernel)
                values[expansions + at] = bounds.mbconv_expansions.index(expansion)
        return tuple(values)

    def decode(self, family: MBConvSpec, values: Sequence[int]) -> MBConvSpec:
        bounds, count = self._bounds, len(family.stages)
        layers = np.reshape(values[self._stages :], (2, self._stages, bounds.mbconv_layers)).tolist()
        widths = [bounds.mbconv_widths[place] for place in accumulate(values[:count], max)]
        stages = []
        for width, kernels, expansions in zip(widths, *(rows[:count] for rows in layers), strict=True):
            kernels[0] = max(kernels[0], 1)
            kept = [
                (bounds.mbconv_kernels[kernel - 1], bounds.mbconv_expansions[expansion])
                for kernel, expansion in zip(kernels, expansions, strict=True)
                if kernel
            ]
            stages.append(MBConvStage(width, tuple(kept)))
        return replace(family, stages=tuple(stages))


@lru_cache(maxsize=64)
def _representative(stem: int, stages: int) -> MBConvSpec:
    return MBConvSpec(stem, (MBConvStage(8, ((3, 1),)),) * stages)
