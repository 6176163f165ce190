"""The contract of a backbone family.

A family is a frozen value with a canonical string: its grammar, the bounds and moves of stage 2, its genes, its partial
order, and its convolutions, from which costs, depth and entropy follow.
"""

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
    "ArchitectureError",
    "Backbone",
    "Bounds",
    "Gene",
    "Genes",
    "SpaceError",
    "StageBounds",
    "ascending",
    "neighbour",
    "require",
]


class ArchitectureError(UserError):
    """A string that is not an architecture, or a combination of modules that does not fit together."""


class SpaceError(UserError):
    """An unknown preset, a space's file that breaks a rule, or a space in which nothing is left to choose."""


def require(holds: bool, rule: str, *got: object) -> None:
    """Raise :class:`ArchitectureError` unless ``holds``; ``got`` is joined by ``+`` only then, on a hot path."""
    if not holds:
        raise ArchitectureError(f"{rule}, but got {'+'.join(map(str, got))}")


class Bounds(BaseModel):
    """Keys of a space's TOML file; an unknown one is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    """``values``, which a validator requires to ascend without repetition."""
    if list(values) != sorted(set(values)):
        raise ValueError("the values must ascend without repetition")
    return values


class StageBounds(Bounds):
    """Bounds of the families whose number of stages varies."""

    stages: tuple[int, ...] = Field(min_length=1, description="numbers of backbone stages that are evolved")

    _ascending_stages = field_validator("stages")(ascending)


def neighbour(value: int, values: tuple[int, ...], rng: np.random.Generator) -> int:
    """The next smaller or the next larger of ``values``; ``value`` itself when there is neither."""
    near = [v for v in values if v < value][-1:] + [v for v in values if v > value][:1]
    return near[int(rng.integers(len(near)))] if near else value


@dataclass(frozen=True)
class Gene:
    """One position of an encoding.

    Attributes:
        name: What it decides.
        size: Its values are 0, 1, ..., size - 1.
        ordered: Whether near values are similar; otherwise they are labels.
    """

    name: str
    size: int
    ordered: bool


BackboneT = TypeVar("BackboneT", bound="Backbone")


class Genes(Protocol[BackboneT]):
    """A family's part of an encoding.

    Attributes:
        genes: Its positions; the first one is the backbone's width.
        neutral: Their values where the backbone is of another family.
    """

    genes: tuple[Gene, ...]
    neutral: tuple[int, ...]

    def family(self, backbone: BackboneT) -> BackboneT | None:
        """One backbone for all that stage 2 turns into each other; None where stage 2 does not evolve ``backbone``."""

    def encode(self, backbone: BackboneT) -> tuple[int, ...]:
        """The genes of a backbone that is evolved."""

    def decode(self, family: BackboneT, values: Sequence[int]) -> BackboneT:
        """The backbone of these genes, repaired to the bounds; ``family`` as :meth:`family` returns it."""


class Backbone(ABC):
    """What the rest of the package needs of a backbone.

    Attributes:
        GRAMMAR: How the family is written, for error messages.
        PARAMETERS: Ranges of what :meth:`parameters` returns.
    """

    GRAMMAR: ClassVar[str]
    PARAMETERS: ClassVar[Mapping[str, tuple[int, int]]]

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self | None:
        """Read the canonical string; None where ``text`` is another family's.

        Raises:
            ArchitectureError: ``text`` is this family's and breaks one of its rules.
        """

    @property
    @abstractmethod
    def top_level(self) -> int:
        """The coarsest pyramid level: C2 is the first stage (stride 4), so four stages end at C5 (stride 32)."""

    @property
    @abstractmethod
    def stem_channels(self) -> int:
        """Output channels of the first convolution."""

    @abstractmethod
    def stage_channels(self, index: int) -> int:
        """Output channels of stage ``index`` (from 0)."""

    @abstractmethod
    def stage_depth(self, index: int) -> int:
        """Blocks of stage ``index`` (from 0)."""

    @property
    def narrowing(self) -> int:
        """Output channels of a block divided by those inside, where the block is a bottleneck."""
        return 2

    def convolutions(self, stem: StemKind = "deep") -> tuple[Convolution, ...]:
        """All convolutions in the order of execution; a block's projection follows its other ones."""
        return tuple(self._convolutions(stem))

    @abstractmethod
    def _convolutions(self, stem: StemKind) -> Iterator[Convolution]: ...

    @abstractmethod
    def not_larger(self, other: Self) -> bool:
        """Whether it is nowhere deeper or wider than ``other``, and equal to it in everything that is neither."""

    @abstractmethod
    def inside(self, bounds: "BackboneBounds") -> bool:
        """Whether it keeps the bounds of stage 2, which evolve its kind."""

    @abstractmethod
    def evolves(self, bounds: "BackboneBounds", listed: "Sequence[Backbone]") -> bool:
        """Whether stage 2 can reach it from one of the backbones ``listed`` for stage 1."""

    @abstractmethod
    def variants(self, bounds: "BackboneBounds") -> int:
        """Number of backbones that stage 2 makes from its structure; 1 where it is not evolved."""

    @classmethod
    def count(cls, bounds: "BackboneBounds", listed: "Sequence[Backbone]") -> int:
        """Number of the family's backbones that stage 2 makes from those ``listed``; 0 where they are not counted."""
        return 0

    @abstractmethod
    def mutated(self, bounds: "BackboneBounds", rng: np.random.Generator) -> "Backbone | None":
        """One draw of a small move: itself where it is not evolved, None where the draw breaks the bounds."""

    @abstractmethod
    def sampled(self, bounds: "BackboneBounds", rng: np.random.Generator) -> "Backbone":
        """A random backbone of its structure; the same one where it is not evolved."""

    @classmethod
    def genes(cls, bounds: "BackboneBounds", listed: "Sequence[Backbone]") -> "Genes[Self] | None":
        """The family's genes in a space; None where each listed backbone is a label of its own."""
        return None

    def rough_cost(self, pixels: int) -> tuple[float, float, int]:
        """Features for surrogate models: multiply-adds at about so many ``pixels``, last channels, and depth."""
        side = round(pixels**0.5)
        depth = sum(self.stage_depth(index) for index in range(self.top_level - 1))
        cost = float(multiply_adds(self.convolutions(), side, side))
        return cost, float(self.stage_channels(self.top_level - 2)), depth

    @abstractmethod
    def parameters(self) -> dict[str, str | int]:
        """The backbone as values of a study's parameters."""
