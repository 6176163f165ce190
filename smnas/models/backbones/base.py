"""The contract of a backbone's modules."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from smnas.models.blocks import StemConv
from smnas.models.layers import NormKind
from smnas.space.convolutions import StemKind
from smnas.space.families.base import Backbone

__all__ = ["FeatureBackbone", "Link", "stage_links"]


class Link(NamedTuple):
    """One module of a backbone's chain; it reads the previous module's output, the first one the images.

    Attributes:
        name: Position, e.g. ``stage2.block1``.
        module: Maps one feature map to one.
        level: The level l whose feature map C_l it outputs, or None.
    """

    name: str
    module: nn.Module
    level: int | None


class FeatureBackbone(nn.Module, ABC):
    """A backbone's modules, built by its family.

    Args:
        spec: The backbone, of the class's family.
        norm: Norm of every convolution.
        stem: ``deep`` or ``imagenet``; a family may ignore it.
        top_level: Coarsest level to build; all by default.

    Attributes:
        spec: The argument.
        channels: ``{1: C1, 2: C2, ...}``; level l has stride ``2 ** l``.
        stages: Registered as ``stage1``, ``stage2``, ...; stage k ends at level k + 1.
    """

    spec: Backbone
    channels: dict[int, int]
    stages: list[nn.Sequential]
    stem: StemConv

    def __init__(
        self, spec: Backbone, norm: NormKind = "gn-ws", stem: StemKind = "deep", top_level: int | None = None
    ) -> None:
        super().__init__()
        self.spec, self.channels, self.stages = spec, {}, []
        self.build_stem(norm, stem)
        for index in range((top_level or spec.top_level) - 1):
            stage = self.build_stage(index, norm)
            self.add_module(f"stage{index + 1}", stage)
            self.stages.append(stage)
            self.channels[index + 2] = spec.stage_channels(index)

    @abstractmethod
    def build_stem(self, norm: NormKind, stem: StemKind) -> None:
        """Add the modules before the first stage, and the channels of C1."""

    def entry(self) -> tuple[Link, ...]:
        """The links before the first stage; one completes level 1, by default the stem."""
        return (Link("stem", self.stem, 1),)

    @abstractmethod
    def build_stage(self, index: int, norm: NormKind) -> nn.Sequential:
        """The blocks of stage ``index`` (from 0), which reads C_(index + 1), freshly initialised."""

    def chain(self) -> tuple[Link, ...]:
        """All modules in execution order: stem, then block by block."""
        links = list(self.entry())
        for number, stage in enumerate(self.stages, start=1):
            links += stage_links(number, stage)
        return tuple(links)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """uint8 images ``(B, 3, H, W)`` to feature maps ``{l: (B, channels[l], H/2^l, W/2^l)}``."""
        levels: dict[int, Tensor] = {}
        x = images
        for link in self.chain():
            x = link.module(x)
            if link.level is not None:
                levels[link.level] = x
        return levels

    @property
    def groups(self) -> int:
        """Maximal groups of a GroupNorm: two channels per group at C1, as in SM-NAS (half the base width)."""
        return self.channels[1] // 2


def stage_links(number: int, stage: nn.Sequential) -> list[Link]:
    """The blocks of stage ``number`` (from 1); the last one completes level ``number + 1``."""
    return [
        Link(f"stage{number}.block{position}", block, number + 1 if position == len(stage) else None)
        for position, block in enumerate(stage, start=1)
    ]
