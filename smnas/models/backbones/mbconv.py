"""Backbones of inverted residuals with a kernel and an expansion for each layer."""

from torch import nn

from smnas.models.backbones.base import FeatureBackbone, Link
from smnas.models.blocks import InvertedResidual, StemConv
from smnas.models.layers import NormKind
from smnas.space.convolutions import StemKind
from smnas.space.families.mbconv import MBConvSpec

__all__ = ["MBConvBackbone"]


class MBConvBackbone(FeatureBackbone):
    """Stem and stages of a :class:`~smnas.space.families.mbconv.MBConvSpec`.

    Args:
        spec: Stem, widths and layers.
        norm: Norm of every convolution.
        stem: Ignored: the stem is a 3x3 convolution.
        top_level: Coarsest level to build; all of them by default.
    """

    spec: MBConvSpec

    def __init__(
        self, spec: MBConvSpec, norm: NormKind = "gn-ws", stem: StemKind = "deep", top_level: int | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.stem = StemConv(norm, spec.stem, 3, spec.stem // 2, relu6=True)
        self.channels = {1: spec.stem}
        self._add_stages(norm, top_level)

    def entry(self) -> tuple[Link, ...]:
        """The stem, which is C1."""
        return (Link("stem", self.stem, 1),)

    def build_stage(self, index: int, norm: NormKind) -> nn.Sequential:
        """See :class:`FeatureBackbone`; the stem's channels are what a base width is elsewhere."""
        read = self.spec.stem if index == 0 else self.spec.stage_channels(index - 1)
        width, groups = self.spec.stages[index].width, self.spec.stem // 2
        layers = nn.Sequential()
        for kernel, expansion in self.spec.stages[index].layers:
            stride = 2 if len(layers) == 0 else 1
            layers.append(InvertedResidual(norm, read, width, stride, groups, expansion=expansion, kernel=kernel))
            read = width
        return layers
