"""The published MobileNetV2."""

from types import MappingProxyType

from torch import nn

from smnas.models.backbones.base import FeatureBackbone, Link, stage_links
from smnas.models.blocks import InvertedResidual, StemConv
from smnas.models.layers import NormKind
from smnas.space.convolutions import StemKind
from smnas.space.families.mobilenetv2 import MobileNetV2Spec

__all__ = ["MobileNetV2Backbone"]


class MobileNetV2Backbone(FeatureBackbone):
    """The published MobileNetV2 (Sandler et al., arXiv 1801.04381, table 2) up to C5, with torchvision's rounding.

    Its last convolution (1x1 to 1280 channels) is left out: it belongs to the classifier, widening C5 once more before
    the average is taken, and would cost a pyramid or the RoIs 1280 channels that a 1x1 lateral narrows again at once.
    The stem is its own, a 3x3 convolution of stride 2. C1, C2 and C3 are the maps before the resolution halves, as
    everywhere; C4 has 96 and C5 320 channels at a width of 100 percent.
    """

    TORCHVISION_STEM = MappingProxyType({"conv": "features.0.0", "norm": "features.0.1"})

    spec: MobileNetV2Spec

    def build_stem(self, norm: NormKind, stem: StemKind) -> None:
        """A stage before the first is numbered 0 because stage k ends at level k + 1."""
        self.channels[1] = self.spec.level_channels(1)
        self.stem = StemConv(norm, self.spec.stem_channels, 3, self.groups, relu6=True)
        self.stage0 = self.build_stage(-1, norm)

    def entry(self) -> tuple[Link, ...]:
        """The stem, and the one block at its resolution, which is C1."""
        return Link("stem", self.stem, None), *stage_links(0, self.stage0)

    def build_stage(self, index: int, norm: NormKind) -> nn.Sequential:
        """The blocks of stage ``index`` (from 0, or -1 for the block before the first) with fresh weights."""
        return nn.Sequential(
            *(
                InvertedResidual(norm, u.in_channels, u.out_channels, u.stride, self.groups, expansion=u.expansion)
                for u in self.spec.units(index + 2)
            )
        )

    def torchvision_block(self, stage: int, position: int) -> str:
        """Torchvision counts its blocks through, from the stem, which is ``features.0``; our first stage is 0."""
        before = sum(self.spec.stage_depth(index) for index in range(-1, stage - 1))
        return f"features.{1 + before + position}"
