"""MobileNetV2."""

from torch import nn

from smnas.models.backbones.base import FeatureBackbone, Link, stage_links
from smnas.models.blocks import InvertedResidual, StemConv
from smnas.models.layers import NormKind
from smnas.space.convolutions import StemKind
from smnas.space.families.mobilenetv2 import MobileNetV2Spec

__all__ = ["MobileNetV2Backbone"]


class MobileNetV2Backbone(FeatureBackbone):
    """MobileNetV2 (Sandler et al., arXiv 1801.04381, table 2) up to C5, rounded as in torchvision.

    The last convolution (1x1 to 1280 channels) belongs to the classifier and is left out: the pyramid's 1x1 lateral
    would narrow its output at once. C1, C2 and C3 precede a halving of the resolution; C4 has 96 and C5 320 channels at
    100 percent width.
    """

    spec: MobileNetV2Spec

    def build_stem(self, norm: NormKind, stem: StemKind) -> None:
        """A 3x3 convolution of stride 2, then ``stage0``: stage k ends at level k + 1."""
        self.channels[1] = self.spec.level_channels(1)
        self.stem = StemConv(norm, self.spec.stem_channels, 3, self.groups, relu6=True)
        self.stage0 = self.build_stage(-1, norm)

    def entry(self) -> tuple[Link, ...]:
        """The stem, and the block that completes C1."""
        return Link("stem", self.stem, None), *stage_links(0, self.stage0)

    def build_stage(self, index: int, norm: NormKind) -> nn.Sequential:
        """The blocks of stage ``index`` (from 0; -1 is the block before the first stage), freshly initialised."""
        return nn.Sequential(
            *(
                InvertedResidual(norm, u.in_channels, u.out_channels, u.stride, self.groups, expansion=u.expansion)
                for u in self.spec.units(index + 2)
            )
        )
