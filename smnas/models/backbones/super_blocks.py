"""Backbones of MAE-DET's super-blocks."""

from torch import nn

from smnas.models.backbones.base import FeatureBackbone, Link
from smnas.models.blocks import K1KXK1, StemConv
from smnas.models.layers import NormKind
from smnas.space.convolutions import StemKind
from smnas.space.families.super_blocks import SuperBlockSpec

__all__ = ["SuperBlockBackbone"]


class SuperBlockBackbone(FeatureBackbone):
    """Stem and stages of a :class:`~smnas.space.families.super_blocks.SuperBlockSpec` (MAE-DET, arXiv 2111.13336).

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
        self.stem = StemConv(norm, spec.stem, 3 if stem == "deep" else 7, spec.stem // 2)
        self.channels = {1: spec.stem}
        self._add_stages(norm, top_level)

    def entry(self) -> tuple[Link, ...]:
        """The stem, which is C1."""
        return (Link("stem", self.stem, 1),)

    def build_stage(self, index: int, norm: NormKind) -> nn.Sequential:
        """See :class:`FeatureBackbone`; the stem's channels are what a base width is elsewhere."""
        spec = self.spec
        channels = spec.stem if index == 0 else spec.stage_channels(index - 1)
        units = nn.Sequential()
        for block in spec.stages[index]:
            for _ in range(block.repeats):
                stride = 2 if len(units) == 0 else 1
                units.append(
                    K1KXK1(norm, channels, block.width, block.out, stride, spec.stem // 2, kernel=block.kernel)
                )
                channels = block.out
        return units
