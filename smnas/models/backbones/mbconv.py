"""Backbones of inverted residuals with a kernel and an expansion per layer."""

from torch import nn

from smnas.models.backbones.base import FeatureBackbone
from smnas.models.blocks import InvertedResidual, StemConv
from smnas.models.layers import NormKind
from smnas.space.convolutions import StemKind
from smnas.space.families.mbconv import MBConvSpec

__all__ = ["MBConvBackbone"]


class MBConvBackbone(FeatureBackbone):
    """Stem and stages of a :class:`~smnas.space.families.mbconv.MBConvSpec`."""

    spec: MBConvSpec

    def build_stem(self, norm: NormKind, stem: StemKind) -> None:
        """One 3x3 convolution of stride 2."""
        self.channels[1] = self.spec.stem
        self.stem = StemConv(norm, self.spec.stem, 3, self.groups, relu6=True)

    def build_stage(self, index: int, norm: NormKind) -> nn.Sequential:
        """See :class:`FeatureBackbone`."""
        read, width = self.channels[index + 1], self.spec.stages[index].width
        layers = nn.Sequential()
        for kernel, expansion in self.spec.stages[index].layers:
            stride = 2 if len(layers) == 0 else 1
            layers.append(InvertedResidual(norm, read, width, stride, self.groups, expansion=expansion, kernel=kernel))
            read = width
        return layers
