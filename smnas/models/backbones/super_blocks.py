"""Backbones of MAE-DET's super-blocks."""

from torch import nn

from smnas.models.backbones.base import FeatureBackbone
from smnas.models.blocks import K1KXK1, StemConv
from smnas.models.layers import NormKind
from smnas.space.convolutions import StemKind
from smnas.space.families.super_blocks import SuperBlockSpec

__all__ = ["SuperBlockBackbone"]


class SuperBlockBackbone(FeatureBackbone):
    """Stem and stages of a :class:`~smnas.space.families.super_blocks.SuperBlockSpec` (MAE-DET, arXiv 2111.13336)."""

    spec: SuperBlockSpec

    def build_stem(self, norm: NormKind, stem: StemKind) -> None:
        """One convolution of stride 2, 3x3, or 7x7 for ``imagenet``."""
        self.channels[1] = self.spec.stem
        self.stem = StemConv(norm, self.spec.stem, 3 if stem == "deep" else 7, self.groups)

    def build_stage(self, index: int, norm: NormKind) -> nn.Sequential:
        """See :class:`FeatureBackbone`."""
        spec = self.spec
        channels = self.channels[index + 1]
        units = nn.Sequential()
        for block in spec.stages[index]:
            for _ in range(block.repeats):
                stride = 2 if len(units) == 0 else 1
                units.append(K1KXK1(norm, channels, block.width, block.out, stride, self.groups, kernel=block.kernel))
                channels = block.out
        return units
