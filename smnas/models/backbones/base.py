"""Backbones: from an SM-NAS code, from MAE-DET's super-blocks, and the published MobileNetV2."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from smnas.models.blocks import K1KXK1, BasicBlock, Bottleneck, InvertedResidual, StemConv, StemKind, StemReduce
from smnas.models.layers import NormKind
from smnas.space.architecture import Backbone, MobileNetV2Spec, ResNetSpec, SuperBlockSpec

__all__ = [
    "FeatureBackbone",
    "Link",
    "MobileNetUnit",
    "MobileNetV2Backbone",
    "ResNetBackbone",
    "StemKind",
    "SuperBlockBackbone",
    "backbone_stage",
    "build_backbone",
    "mobilenet_units",
    "stage_channels",
    "stage_depth",
    "stem_channels",
]


class Link(NamedTuple):
    """One module of a backbone's chain; each reads what the one before it wrote, the first the images.

    Attributes:
        name: Where it sits, e.g. ``stage2.block1``.
        module: One map in, one out.
        level: The level that it completes (C_level is its output), or None.
    """

    name: str
    module: nn.Module
    level: int | None


class FeatureBackbone(nn.Module, ABC):
    """What a detector knows of its backbone.

    Attributes:
        spec: What it was built from.
        channels: Channels of every level, ``{1: C1, 2: C2, ...}``; level l has stride ``2 ** l``.
        stages: The stages in order, registered as ``stage1``, ``stage2``, ...; stage k ends at level k + 1.
    """

    spec: Backbone
    channels: dict[int, int]
    stages: list[nn.Sequential]

    @abstractmethod
    def entry(self) -> tuple[Link, ...]:
        """The links before the first stage; one of them completes level 1."""

    def chain(self) -> tuple[Link, ...]:
        """Every module in the order of running: stem, then block by block."""
        links = list(self.entry())
        for number, stage in enumerate(self.stages, start=1):
            links += stage_links(number, stage)
        return tuple(links)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """uint8 images ``(B, 3, H, W)`` to every level's map ``(B, channels[l], H/2^l, W/2^l)``."""
        levels: dict[int, Tensor] = {}
        x = images
        for link in self.chain():
            x = link.module(x)
            if link.level is not None:
                levels[link.level] = x
        return levels

    def _add_stages(self, norm: NormKind, top_level: int | None) -> None:
        self.stages = []
        for index in range((top_level or self.spec.top_level) - 1):
            stage = backbone_stage(self.spec, index, norm)
            self.add_module(f"stage{index + 1}", stage)
            self.stages.append(stage)
            self.channels[index + 2] = stage_channels(self.spec, index)


def stage_links(number: int, stage: nn.Sequential) -> list[Link]:
    """The blocks of stage ``number`` (from 1), the last of which completes level ``number + 1``."""
    return [
        Link(f"stage{number}.block{position}", block, number + 1 if position == len(stage) else None)
        for position, block in enumerate(stage, start=1)
    ]


class ResNetBackbone(FeatureBackbone):
    """Stem and stages of a :class:`~smnas.space.architecture.ResNetSpec`.

    Args:
        spec: Block, width and code.
        norm: Norm of every convolution.
        stem: ``deep`` or ``imagenet``.
        top_level: Coarsest level to build; all of them by default.
    """

    spec: ResNetSpec

    def __init__(
        self, spec: ResNetSpec, norm: NormKind = "gn-ws", stem: StemKind = "deep", top_level: int | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        groups = _groups(spec)
        # ImageNet's stem is 64 wide for every published ResNet, whose base is 64: both stems are `base` wide
        self.stem = StemConv(norm, spec.base, 3 if stem == "deep" else 7, groups)
        self.reduce = StemReduce(stem, norm, spec.base, groups)
        self.channels = {1: spec.base}
        self._add_stages(norm, top_level)

    def entry(self) -> tuple[Link, ...]:
        """The stem, which is C1, and the way to stride 4."""
        return Link("stem", self.stem, 1), Link("reduce", self.reduce, None)


class MobileNetV2Backbone(FeatureBackbone):
    """The published MobileNetV2 (Sandler et al., arXiv 1801.04381, table 2) up to C5, with torchvision's rounding.

    Its last convolution (1x1 to 1280 channels) is left out: it belongs to the classifier, widening C5 once more before
    the average is taken, and would cost a pyramid or the RoIs 1280 channels that a 1x1 lateral narrows again at once.
    The stem is its own, a 3x3 convolution of stride 2. C1, C2 and C3 are the maps before the resolution halves, as
    everywhere; C4 has 96 and C5 320 channels at a width of 100 percent.

    Args:
        spec: Width.
        norm: Norm of every convolution.
        top_level: Coarsest level to build; all of them by default.
    """

    spec: MobileNetV2Spec

    def __init__(self, spec: MobileNetV2Spec, norm: NormKind = "gn-ws", top_level: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.stem = StemConv(norm, stem_channels(spec), 3, _groups(spec), relu6=True)
        # numbered 0 because stage k ends at level k + 1
        self.stage0 = _mobilenet_stage(spec, 1, norm)
        self.channels = {1: _mobilenet_channels(spec, 1)}
        self._add_stages(norm, top_level)

    def entry(self) -> tuple[Link, ...]:
        """The stem, and the one block at its resolution, which is C1."""
        return Link("stem", self.stem, None), *stage_links(0, self.stage0)


class SuperBlockBackbone(FeatureBackbone):
    """Stem and stages of a :class:`~smnas.space.architecture.SuperBlockSpec` (MAE-DET, arXiv 2111.13336).

    One stem convolution of stride 2, its side by the kind of stem (3, or ImageNet's 7), then stages that all halve.

    Args:
        spec: Stem and super-blocks.
        norm: Norm of every convolution.
        stem: ``deep`` or ``imagenet``.
        top_level: Coarsest level to build; all of them by default.
    """

    spec: SuperBlockSpec

    def __init__(
        self, spec: SuperBlockSpec, norm: NormKind = "gn-ws", stem: StemKind = "deep", top_level: int | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.stem = StemConv(norm, spec.stem, 3 if stem == "deep" else 7, _groups(spec))
        self.channels = {1: spec.stem}
        self._add_stages(norm, top_level)

    def entry(self) -> tuple[Link, ...]:
        """The stem, which is C1."""
        return (Link("stem", self.stem, 1),)


def build_backbone(
    spec: Backbone, norm: NormKind = "gn-ws", stem: StemKind = "deep", top_level: int | None = None
) -> FeatureBackbone:
    """The backbone of any spec; MobileNetV2 has a stem of its own, the same for both kinds."""
    if isinstance(spec, ResNetSpec):
        return ResNetBackbone(spec, norm, stem, top_level)
    if isinstance(spec, SuperBlockSpec):
        return SuperBlockBackbone(spec, norm, stem, top_level)
    return MobileNetV2Backbone(spec, norm, top_level)


def stem_channels(spec: Backbone) -> int:
    """Output channels of the first convolution."""
    if isinstance(spec, ResNetSpec):
        return spec.base
    return spec.stem if isinstance(spec, SuperBlockSpec) else _scaled(spec, _MOBILENET_STEM)


def stage_channels(spec: Backbone, index: int) -> int:
    """Output channels of stage ``index`` (from 0)."""
    if isinstance(spec, ResNetSpec):
        return spec.stage_widths()[index][-1] * spec.expansion
    if isinstance(spec, SuperBlockSpec):
        return spec.stages[index][-1].out
    return _mobilenet_channels(spec, index + 2)


def stage_depth(spec: Backbone, index: int) -> int:
    """How many blocks stage ``index`` (from 0) has; MobileNetV2's block before the first stage has index -1."""
    if isinstance(spec, ResNetSpec):
        return len(spec.stages[index])
    if isinstance(spec, SuperBlockSpec):
        return sum(block.repeats for block in spec.stages[index])
    return sum(count for _, _, count in _MOBILENET[index + 2])


def backbone_stage(spec: Backbone, index: int, norm: NormKind) -> nn.Sequential:
    """The blocks of stage ``index`` (from 0); every stage but the first of a ResNet halves the resolution."""
    if isinstance(spec, ResNetSpec):
        return _residual_stage(spec, index, norm)
    if isinstance(spec, SuperBlockSpec):
        return _super_block_stage(spec, index, norm)
    return _mobilenet_stage(spec, index + 2, norm)


def _groups(spec: Backbone) -> int:
    """The most groups of a backbone's GroupNorms."""
    if isinstance(spec, ResNetSpec):
        return spec.base // 2  # SM-NAS: the backbone's groups are half its base width
    if isinstance(spec, SuperBlockSpec):
        return spec.stem // 2  # the stem is what a base width is elsewhere
    return _mobilenet_channels(spec, 1) // 2  # likewise at least two channels a group at the narrowest map


def _residual_stage(spec: ResNetSpec, index: int, norm: NormKind) -> nn.Sequential:
    channels = spec.base if index == 0 else stage_channels(spec, index - 1)
    blocks = nn.Sequential()
    for position, width in enumerate(spec.stage_widths()[index]):
        stride = 2 if index > 0 and position == 0 else 1
        blocks.append(_block(spec, norm, channels, width, stride))
        channels = width * spec.expansion
    return blocks


def _block(spec: ResNetSpec, norm: NormKind, in_channels: int, width: int, stride: int) -> nn.Module:
    groups = _groups(spec)
    match spec.block:
        case "basicblock":
            return BasicBlock(norm, in_channels, width, stride, groups)
        case "bottleneck":
            return Bottleneck(norm, in_channels, width, stride, groups)
        case "resnext":
            cardinality, path_width = spec.paths
            return Bottleneck(norm, in_channels, width, stride, groups, cardinality=cardinality, path_width=path_width)
        case "inverted":
            return InvertedResidual(norm, in_channels, width, stride, groups)


def _super_block_stage(spec: SuperBlockSpec, index: int, norm: NormKind) -> nn.Sequential:
    channels = spec.stem if index == 0 else stage_channels(spec, index - 1)
    units = nn.Sequential()
    for block in spec.stages[index]:
        for _ in range(block.repeats):
            stride = 2 if len(units) == 0 else 1
            units.append(K1KXK1(norm, channels, block.width, block.out, stride, _groups(spec), kernel=block.kernel))
            channels = block.out
    return units


# MobileNetV2 by level: rows of (expansion, channels, blocks) that share a resolution
_MOBILENET_STEM = 32
_MOBILENET: dict[int, tuple[tuple[int, int, int], ...]] = {
    1: ((1, 16, 1),),
    2: ((6, 24, 2),),
    3: ((6, 32, 3),),
    4: ((6, 64, 4), (6, 96, 3)),
    5: ((6, 160, 3), (6, 320, 1)),
}


def _scaled(spec: MobileNetV2Spec, channels: int) -> int:
    """``channels`` times the width, to a multiple of 8 that is not less than nine tenths of it (torchvision's)."""
    wanted = channels * (spec.width_percent / 100)
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _mobilenet_channels(spec: MobileNetV2Spec, level: int) -> int:
    return _scaled(spec, _MOBILENET[level][-1][1])


class MobileNetUnit(NamedTuple):
    """One inverted residual of MobileNetV2."""

    in_channels: int
    out_channels: int
    expansion: int
    stride: int


def mobilenet_units(spec: MobileNetV2Spec, level: int) -> list[MobileNetUnit]:
    """The blocks at the resolution of ``level``; all but level 1's, which is the stem's, halve it first."""
    channels = _mobilenet_channels(spec, level - 1) if level > 1 else stem_channels(spec)
    units: list[MobileNetUnit] = []
    for expansion, published, count in _MOBILENET[level]:
        for _ in range(count):
            stride = 2 if level > 1 and not units else 1
            units.append(MobileNetUnit(channels, _scaled(spec, published), expansion, stride))
            channels = units[-1].out_channels
    return units


def _mobilenet_stage(spec: MobileNetV2Spec, level: int, norm: NormKind) -> nn.Sequential:
    return nn.Sequential(
        *(
            InvertedResidual(
                norm, unit.in_channels, unit.out_channels, unit.stride, _groups(spec), expansion=unit.expansion
            )
            for unit in mobilenet_units(spec, level)
        )
    )
