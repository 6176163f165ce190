"""MobileNetV2 (Sandler et al., arXiv 1801.04381, table 2) of any width, rounded as in torchvision."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np
from pydantic import Field, field_validator

from smnas.space.convolutions import Convolution, StemKind, inverted_residual
from smnas.space.families.base import Backbone, Bounds, Gene, ascending, neighbour, require

__all__ = ["MobileNetUnit", "MobileNetV2Bounds", "MobileNetV2Spec"]

_MOVE_PROBABILITY = 0.5
_STEM = 32
# per level: (expansion, channels, blocks)
_PUBLISHED: dict[int, tuple[tuple[int, int, int], ...]] = {
    1: ((1, 16, 1),),
    2: ((6, 24, 2),),
    3: ((6, 32, 3),),
    4: ((6, 64, 4), (6, 96, 3)),
    5: ((6, 160, 3), (6, 320, 1)),
}


class MobileNetV2Bounds(Bounds):
    """Widths of MobileNetV2 in stage 2."""

    mobilenetv2_percents: tuple[int, ...] = Field(
        default=(), description="MobileNetV2's widths in percent, ascending; empty keeps the parent's"
    )

    _ascending_percents = field_validator("mobilenetv2_percents")(ascending)


class MobileNetUnit(NamedTuple):
    """One inverted residual."""

    in_channels: int
    out_channels: int
    expansion: int
    stride: int


@dataclass(frozen=True, order=True)
class MobileNetV2Spec(Backbone):
    """MobileNetV2 with a width multiplier in percent: ``mobilenetv2_100``."""

    GRAMMAR: ClassVar = "mobilenetv2_PERCENT"
    PARAMETERS: ClassVar = {"width_percent": (10, 400)}

    width_percent: int

    def __post_init__(self) -> None:
        require(
            10 <= self.width_percent <= 400, "a MobileNetV2 width is between 10 and 400 percent", self.width_percent
        )

    def __str__(self) -> str:
        return f"mobilenetv2_{self.width_percent}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """See :class:`Backbone`, also for the other undocumented methods."""
        match = re.fullmatch(r"mobilenetv2_(\d{1,4})", text)
        return None if match is None else cls(int(match[1]))

    @property
    def depths(self) -> tuple[int, ...]:
        """The block before the first stage does not count."""
        return tuple(sum(count for *_, count in _PUBLISHED[level]) for level in range(2, 6))

    @property
    def stem_channels(self) -> int:
        return self._scaled(_STEM)

    def level_channels(self, level: int) -> int:
        """Channels of C_``level`` (from 1): the last block of each resolution."""
        return self._scaled(_PUBLISHED[level][-1][1])

    def stage_channels(self, index: int) -> int:
        return self.level_channels(index + 2)

    def units(self, level: int) -> list[MobileNetUnit]:
        """The blocks of ``level``, which halve the resolution first except at level 1."""
        channels = self.level_channels(level - 1) if level > 1 else self.stem_channels
        units: list[MobileNetUnit] = []
        for expansion, published, count in _PUBLISHED[level]:
            for _ in range(count):
                stride = 2 if level > 1 and not units else 1
                units.append(MobileNetUnit(channels, self._scaled(published), expansion, stride))
                channels = units[-1].out_channels
        return units

    def _scaled(self, channels: int) -> int:
        """``channels`` times the width, rounded to a multiple of 8 of at least nine tenths of it, as in torchvision."""
        wanted = channels * (self.width_percent / 100)
        rounded = max(8, int(wanted + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * wanted else rounded

    def _convolutions(self, stem: StemKind) -> Iterator[Convolution]:
        """The stem is a 3x3 convolution for either kind of ``stem``."""
        yield Convolution(3, self.stem_channels, 3, 1, 1, 1)
        for level in _PUBLISHED:
            for unit in self.units(level):
                yield from inverted_residual(unit.in_channels, unit.out_channels, unit.expansion, level, unit.stride)

    def not_larger(self, other: Self) -> bool:
        return self.width_percent <= other.width_percent

    def inside(self, bounds: MobileNetV2Bounds) -> bool:
        return self.width_percent in bounds.mobilenetv2_percents

    def evolves(self, bounds: MobileNetV2Bounds, listed: Sequence[Backbone]) -> bool:
        return any(isinstance(choice, MobileNetV2Spec) for choice in listed) and self.inside(bounds)

    @classmethod
    def count(cls, bounds: MobileNetV2Bounds, listed: Sequence[Backbone]) -> int:
        return len(bounds.mobilenetv2_percents)

    @classmethod
    def covering(cls, bounds: MobileNetV2Bounds, listed: Sequence[Backbone]) -> Sequence["MobileNetV2Spec"]:
        return [cls(percent) for percent in bounds.mobilenetv2_percents[-1:]]

    def mutated(self, bounds: MobileNetV2Bounds, rng: np.random.Generator) -> "MobileNetV2Spec":
        if rng.random() >= _MOVE_PROBABILITY:
            return self
        return type(self)(neighbour(self.width_percent, bounds.mobilenetv2_percents, rng))

    def sampled(self, bounds: MobileNetV2Bounds, rng: np.random.Generator) -> "MobileNetV2Spec":
        percents = bounds.mobilenetv2_percents
        return type(self)(percents[int(rng.integers(len(percents)))]) if percents else self

    @classmethod
    def genes(cls, bounds: MobileNetV2Bounds, listed: Sequence[Backbone]) -> "_Genes":
        widths = {choice.width_percent for choice in listed if isinstance(choice, MobileNetV2Spec)}
        return _Genes(tuple(sorted(widths | set(bounds.mobilenetv2_percents))))

    def rough_cost(self, pixels: int) -> tuple[float, float, int]:
        return 3e8 * (self.width_percent / 100) ** 2 * pixels / 224**2, 320.0, 17

    def parameters(self) -> dict[str, str | int]:
        return {"block": "mobilenetv2", "width_percent": self.width_percent}


class _Genes:
    neutral = (0,)

    def __init__(self, percents: tuple[int, ...]) -> None:
        self._percents = percents
        self.genes = (Gene("width_percent", max(len(percents), 1), ordered=True),)

    def family(self, backbone: MobileNetV2Spec) -> MobileNetV2Spec:
        return MobileNetV2Spec(100)

    def encode(self, backbone: MobileNetV2Spec) -> tuple[int, ...]:
        return (self._percents.index(backbone.width_percent),)

    def decode(self, family: MobileNetV2Spec, values: Sequence[int]) -> MobileNetV2Spec:
        return MobileNetV2Spec(self._percents[values[0]])
