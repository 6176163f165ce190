"""The contract of a backbone family.

A family is a frozen value with a canonical string: grammar, bounds and moves of stage 2, genes, partial order, and
convolutions, from which costs, depth and entropy follow.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from profiler.errors import UserError
from smnas.space.convolutions import Convolution, StemKind, multiply_adds

if TYPE_CHECKING:
    from smnas.space.families.by_name import BackboneBounds

__all__ = [
    "STAGE_RANGES",
    "ArchitectureError",
    "Backbone",
    "Bounds",
    "Gene",
    "Genes",
    "SpaceError",
    "StageBounds",
    "ascending",
    "matched",
    "neighbour",
    "require",
    "require_even",
]

STAGE_RANGES = {"stages": (1, 4), "blocks": (1, 1000), **{f"stage{i}_blocks": (1, 1000) for i in range(1, 5)}}
"""Ranges of the values that :meth:`Backbone.stage_parameters` returns."""


class ArchitectureError(UserError):
    """A string that is not an architecture, or parts that do not fit together."""


class SpaceError(UserError):
    """An unknown preset, an invalid space file, or an empty space."""


def require(holds: bool, rule: str, *got: object) -> None:
    """Raise :class:`ArchitectureError` unless ``holds``; ``got`` is formatted only then, as this is a hot path."""
    if not holds:
        raise ArchitectureError(f"{rule}, but got {'+'.join(map(str, got))}")


def matched(pattern: str, text: str, rule: str) -> re.Match[str]:
    """The match of all of ``text``; raises :class:`ArchitectureError` without one."""
    if match := re.fullmatch(pattern, text):
        return match
    raise ArchitectureError(f"{rule}, but got {text!r}")


def require_even(what: str, channels: int, most: int) -> None:
    """Raise :class:`ArchitectureError` unless ``channels`` is an even number from 8 to ``most``."""
    require(8 <= channels <= most and channels % 2 == 0, f"{what} is even and from 8 to {most}", channels)


class Bounds(BaseModel):
    """Keys of a space's TOML file; unknown ones are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    """Validate that ``values`` ascend without repetition."""
    if list(values) != sorted(set(values)):
        raise ValueError("the values must ascend without repetition")
    return values


class StageBounds(Bounds):
    """Bounds of the families with a variable number of stages."""

    stages: tuple[int, ...] = Field(min_length=1, description="numbers of backbone stages that are evolved")

    _ascending_stages = field_validator("stages")(ascending)


def neighbour(value: int, values: tuple[int, ...], rng: np.random.Generator) -> int:
    """The next smaller or next larger of ``values``; ``value`` itself if there is neither."""
    near = [v for v in values if v < value][-1:] + [v for v in values if v > value][:1]
    return near[int(rng.integers(len(near)))] if near else value


@dataclass(frozen=True)
class Gene:
    """One position of an encoding, with the values 0 to ``size - 1``.

    If ``ordered``, near values are similar; otherwise they are labels.
    """

    name: str
    size: int
    ordered: bool


BackboneT = TypeVar("BackboneT", bound="Backbone")


class Genes(Protocol[BackboneT]):
    """A family's part of an encoding.

    Attributes:
        genes: Its positions; the first is the backbone's width.
        neutral: Their values for backbones of other families.
    """

    genes: tuple[Gene, ...]
    neutral: tuple[int, ...]

    def family(self, backbone: BackboneT) -> BackboneT | None:
        """A representative of all backbones that stage 2 derives from each other; None if it is not evolved."""

    def encode(self, backbone: BackboneT) -> tuple[int, ...]:
        """The genes of an evolved backbone."""

    def decode(self, family: BackboneT, values: Sequence[int]) -> BackboneT:
        """The backbone of these genes, repaired to the bounds; ``family`` is a result of :meth:`family`."""


class Backbone(ABC):
    """A backbone of any family.

    Attributes:
        GRAMMAR: Notation of the family, for error messages.
        PARAMETERS: Ranges of the values that :meth:`parameters` returns.
    """

    GRAMMAR: ClassVar[str]
    PARAMETERS: ClassVar[Mapping[str, tuple[int, int]]]

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self | None:
        """Read the canonical string; None if ``text`` is another family's.

        Raises:
            ArchitectureError: ``text`` is this family's but breaks one of its rules.
        """

    @property
    @abstractmethod
    def depths(self) -> tuple[int, ...]:
        """Number of blocks of each stage."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(self.depths)

    @property
    def top_level(self) -> int:
        """The coarsest pyramid level: the first stage ends at C2 (stride 4), four stages end at C5 (stride 32)."""
        return 1 + len(self.depths)

    @property
    @abstractmethod
    def stem_channels(self) -> int:
        """Output channels of the stem."""

    @abstractmethod
    def stage_channels(self, index: int) -> int:
        """Output channels of stage ``index`` (from 0)."""

    @property
    def narrowing(self) -> int:
        """Output channels of a block divided by its inner channels, as a bottleneck."""
        return 2

    def convolutions(self, stem: StemKind = "deep") -> tuple[Convolution, ...]:
        """All convolutions in execution order; a block's projection follows its other convolutions."""
        return tuple(self._convolutions(stem))

    @abstractmethod
    def _convolutions(self, stem: StemKind) -> Iterator[Convolution]: ...

    @abstractmethod
    def not_larger(self, other: Self) -> bool:
        """Whether it is nowhere deeper or wider than ``other`` and otherwise equal."""

    @abstractmethod
    def inside(self, bounds: "BackboneBounds") -> bool:
        """Whether stage 2 evolves its kind and it satisfies the bounds."""

    @abstractmethod
    def evolves(self, bounds: "BackboneBounds", listed: "Sequence[Backbone]") -> bool:
        """Whether stage 2 can derive it from a backbone that stage 1 lists."""

    @classmethod
    def count(cls, bounds: "BackboneBounds", listed: "Sequence[Backbone]") -> int:
        """Number of backbones that stage 2 derives from those ``listed``; 0 if the family is not counted."""
        return 0

    @classmethod
    def covering(cls, bounds: "BackboneBounds", listed: "Sequence[Backbone]") -> "Sequence[Backbone]":
        """Backbones of which each layer of every evolved one is a slice: no deeper, wider or of a larger kernel."""
        return ()

    @abstractmethod
    def mutated(self, bounds: "BackboneBounds", rng: np.random.Generator) -> "Backbone | None":
        """One draw of a mutation: itself if it is not evolved, None if the draw breaks the bounds."""

    @abstractmethod
    def sampled(self, bounds: "BackboneBounds", rng: np.random.Generator) -> "Backbone":
        """A random backbone of its structure; itself if it is not evolved."""

    @classmethod
    def genes(cls, bounds: "BackboneBounds", listed: "Sequence[Backbone]") -> "Genes[Self] | None":
        """The family's genes in a space; None if each listed backbone is a label of its own."""
        return None

    def rough_cost(self, pixels: int) -> tuple[float, float, int]:
        """Features for surrogate models: approximate multiply-adds at ``pixels``, last channels, and depth."""
        side = round(pixels**0.5)
        cost = float(multiply_adds(self.convolutions(), side, side))
        return cost, float(self.stage_channels(self.top_level - 2)), self.depth

    @abstractmethod
    def parameters(self) -> dict[str, str | int]:
        """The backbone as parameters of a study."""

    def stage_parameters(self) -> dict[str, str | int]:
        """The stages as parameters of a study."""
        stages = {f"stage{i}_blocks": depth for i, depth in enumerate(self.depths, start=1)}
        return {"stages": len(self.depths), "blocks": self.depth, **stages}
