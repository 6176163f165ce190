"""Builds the modules of a backbone: one line per family."""

from smnas.models.backbones.base import FeatureBackbone
from smnas.models.backbones.mbconv import MBConvBackbone
from smnas.models.backbones.mobilenetv2 import MobileNetV2Backbone
from smnas.models.backbones.resnet import ResNetBackbone
from smnas.models.backbones.super_blocks import SuperBlockBackbone
from smnas.models.layers import NormKind
from smnas.space.convolutions import StemKind
from smnas.space.families.base import Backbone
from smnas.space.families.mbconv import MBConvSpec
from smnas.space.families.mobilenetv2 import MobileNetV2Spec
from smnas.space.families.resnet import ResNetSpec
from smnas.space.families.super_blocks import SuperBlockSpec

__all__ = ["build_backbone"]

_BUILDERS: dict[type[Backbone], type[FeatureBackbone]] = {
    ResNetSpec: ResNetBackbone,
    MobileNetV2Spec: MobileNetV2Backbone,
    SuperBlockSpec: SuperBlockBackbone,
    MBConvSpec: MBConvBackbone,
}


def build_backbone(
    spec: Backbone, norm: NormKind = "gn-ws", stem: StemKind = "deep", top_level: int | None = None
) -> FeatureBackbone:
    """Build a backbone up to ``top_level``, by default its own; a family may ignore ``stem``."""
    return _BUILDERS[type(spec)](spec, norm, stem, top_level)
