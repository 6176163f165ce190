"""Residual backbones from an SM-NAS code."""

from types import MappingProxyType

from torch import nn

from smnas.models.backbones.base import FeatureBackbone, Link
from smnas.models.blocks import BasicBlock, Bottleneck, InvertedResidual, StemConv, StemReduce
from smnas.models.layers import NormKind
from smnas.space.convolutions import StemKind
from smnas.space.families.resnet import ResNetSpec

__all__ = ["ResNetBackbone"]


class ResNetBackbone(FeatureBackbone):
    """Stem and stages of a :class:`~smnas.space.families.resnet.ResNetSpec`.

    Args:
        spec: Block, width and code.
        norm: Norm of every convolution.
        stem: ``deep`` or ``imagenet``.
        top_level: Coarsest level to build; all of them by default.
    """

    TORCHVISION_STEM = MappingProxyType({"conv": "conv1", "norm": "bn1"})

    spec: ResNetSpec

    def __init__(
        self, spec: ResNetSpec, norm: NormKind = "gn-ws", stem: StemKind = "deep", top_level: int | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self._groups = groups = spec.base // 2  # SM-NAS: the backbone's groups are half its base width
        # ImageNet's stem is 64 wide for every published ResNet, whose base is 64: both stems are `base` wide
        self.stem = StemConv(norm, spec.base, 3 if stem == "deep" else 7, groups)
        self.reduce = StemReduce(stem, norm, spec.base, groups)
        self.channels = {1: spec.base}
        self._add_stages(norm, top_level)

    def entry(self) -> tuple[Link, ...]:
        """The stem, which is C1, and the way to stride 4."""
        return Link("stem", self.stem, 1), Link("reduce", self.reduce, None)

    def build_stage(self, index: int, norm: NormKind) -> nn.Sequential:
        """See :class:`FeatureBackbone`; every stage but the first halves the resolution."""
        spec = self.spec
        channels = spec.base if index == 0 else spec.stage_channels(index - 1)
        blocks = nn.Sequential()
        for position, width in enumerate(spec.stage_widths()[index]):
            blocks.append(self._block(norm, channels, width, 2 if index > 0 and position == 0 else 1))
            channels = width * spec.expansion
        return blocks

    def _block(self, norm: NormKind, in_channels: int, width: int, stride: int) -> nn.Module:
        groups = self._groups
        match self.spec.block:
            case "basicblock":
                return BasicBlock(norm, in_channels, width, stride, groups)
            case "bottleneck":
                return Bottleneck(norm, in_channels, width, stride, groups)
            case "resnext":
                paths, path_width = self.spec.paths
                return Bottleneck(norm, in_channels, width, stride, groups, cardinality=paths, path_width=path_width)
            case "inverted":
                return InvertedResidual(norm, in_channels, width, stride, groups)
