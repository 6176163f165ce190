"""Residual backbones in SM-NAS's notation."""

from torch import nn

from smnas.models.backbones.base import FeatureBackbone, Link
from smnas.models.blocks import BasicBlock, Bottleneck, InvertedResidual, StemConv, StemReduce
from smnas.models.layers import NormKind
from smnas.space.convolutions import StemKind
from smnas.space.families.resnet import ResNetSpec

__all__ = ["ResNetBackbone"]


class ResNetBackbone(FeatureBackbone):
    """Stem and stages of a :class:`~smnas.space.families.resnet.ResNetSpec`."""

    spec: ResNetSpec

    def build_stem(self, norm: NormKind, stem: StemKind) -> None:
        """Either stem is as wide as the base, like ImageNet's: 64 for every published ResNet."""
        self.channels[1] = base = self.spec.base
        self.stem = StemConv(norm, base, 3 if stem == "deep" else 7, self.groups)
        self.reduce = StemReduce(stem, norm, base, self.groups)

    def entry(self) -> tuple[Link, ...]:
        """The stem (C1), and the reduction to stride 4."""
        return Link("stem", self.stem, 1), Link("reduce", self.reduce, None)

    def build_stage(self, index: int, norm: NormKind) -> nn.Sequential:
        """See :class:`FeatureBackbone`; every stage but the first halves the resolution."""
        spec = self.spec
        channels = self.channels[index + 1]
        blocks = nn.Sequential()
        for position, width in enumerate(spec.stage_widths()[index]):
            blocks.append(self._block(norm, channels, width, 2 if index > 0 and position == 0 else 1))
            channels = width * spec.expansion
        return blocks

    def _block(self, norm: NormKind, in_channels: int, width: int, stride: int) -> nn.Module:
        groups = self.groups
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
