"""The backbone families. A new one is a module here, one in :mod:`smnas.models.backbones`, and a line in each list."""

from smnas.space.families.base import ArchitectureError, Backbone
from smnas.space.families.mbconv import MBConvBounds, MBConvSpec
from smnas.space.families.mobilenetv2 import MobileNetV2Bounds, MobileNetV2Spec
from smnas.space.families.resnet import ResNetBounds, ResNetSpec
from smnas.space.families.super_blocks import SuperBlockBounds, SuperBlockSpec

__all__ = ["FAMILIES", "BackboneBounds", "parse_backbone"]

FAMILIES: tuple[type[Backbone], ...] = (ResNetSpec, MobileNetV2Spec, SuperBlockSpec, MBConvSpec)


class BackboneBounds(ResNetBounds, MobileNetV2Bounds, SuperBlockBounds, MBConvBounds):
    """The bounds of all families, in one TOML table."""


def parse_backbone(text: str) -> Backbone:
    """Read a backbone of any family.

    Raises:
        ArchitectureError: no family reads ``text``.
    """
    for family in FAMILIES:
        if (backbone := family.parse(text)) is not None:
            return backbone
    *grammars, last = (family.GRAMMAR for family in FAMILIES)
    raise ArchitectureError(f"a backbone is {', '.join(grammars)} or {last}, but got {text!r}")
