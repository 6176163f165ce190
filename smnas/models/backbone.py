"""Residual backbones from an SM-NAS code: any depth, width and place of doubling.

A block's inner names (``conv1``, ``bn1``, ``downsample.0``) are torchvision's, so that ImageNet weights map by name
(:mod:`smnas.models.pretrained`).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from smnas.models.layers import NormKind, conv2d, norm2d
from smnas.space.architecture import ResNetSpec

__all__ = ["BasicBlock", "Bottleneck", "ResNetBackbone", "StemConv", "StemKind", "residual_stage", "stage_channels"]

StemKind = Literal["deep", "imagenet"]

# ImageNet's mean and standard deviation of RGB values in 0..255, as torchvision normalizes
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)


class StemConv(nn.Module):
    """The first convolution: uint8 RGB pictures are normalized, then halved to C1 (stride 2)."""

    mean: Tensor
    std: Tensor

    def __init__(self, norm: NormKind, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.conv = conv2d(norm, 3, channels, kernel, stride=2)
        self.norm = norm2d(norm, channels, groups)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` uint8 to ``(B, C, H/2, W/2)``."""
        x = (images.to(self.conv.weight.dtype) - self.mean) / self.std
        out: Tensor = self.relu(self.norm(self.conv(x)))
        return out


class StemReduce(nn.Module):
    """From C1 to stride 4: a second 3x3 convolution (``deep``) or max-pooling (``imagenet``)."""

    def __init__(self, kind: StemKind, norm: NormKind, channels: int, groups: int) -> None:
        super().__init__()
        self.reduce: nn.Module
        if kind == "deep":
            self.reduce = nn.Sequential(
                conv2d(norm, channels, channels, 3, stride=2), norm2d(norm, channels, groups), nn.ReLU(inplace=True)
            )
        else:
            self.reduce = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H/2, W/2)`` to ``(B, C, H/4, W/4)``."""
        out: Tensor = self.reduce(x)
        return out


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., arXiv 1512.03385)."""

    def __init__(self, norm: NormKind, in_channels: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = conv2d(norm, in_channels, width, 3, stride)
        self.bn1 = norm2d(norm, width, groups)
        self.conv2 = conv2d(norm, width, width, 3)
        self.bn2 = norm2d(norm, width, groups)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(norm, in_channels, width, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, width, H/stride, W/stride)``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out + shortcut)
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; with a cardinality ResNeXt's (Xie et al., arXiv 1611.05431)."""

    expansion = 4

    def __init__(
        self, norm: NormKind, in_channels: int, width: int, stride: int, groups: int, *, cardinality: int = 1
    ) -> None:
        super().__init__()
        # ResNeXt 32x4d: four channels a path at width 64, growing with the width
        inner = width if cardinality == 1 else max(1, width * 4 // 64) * cardinality
        out = width * self.expansion
        self.conv1 = conv2d(norm, in_channels, inner, 1)
        self.bn1 = norm2d(norm, inner, groups)
        self.conv2 = conv2d(norm, inner, inner, 3, stride, groups=cardinality)
        self.bn2 = norm2d(norm, inner, groups)
        self.conv3 = conv2d(norm, inner, out, 1)
        self.bn3 = norm2d(norm, out, groups)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(norm, in_channels, out, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, 4 * width, H/stride, W/stride)``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out + shortcut)
        return result


def _shortcut(norm: NormKind, in_channels: int, out_channels: int, stride: int, groups: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv2d(norm, in_channels, out_channels, 1, stride), norm2d(norm, out_channels, groups))


class ResNetBackbone(nn.Module):
    """Stem and stages of a :class:`~smnas.space.architecture.ResNetSpec`.

    Args:
        spec: Block, width and code.
        norm: Norm of every convolution.
        stem: ``deep`` or ``imagenet``.
        top_level: Coarsest level to build; all of them by default.

    Attributes:
        channels: Channels of every level, ``{1: C1, 2: C2, ...}``; level l has stride ``2 ** l``.
        stages: The stages in order, registered as ``stage1``, ``stage2``, ...; stage k ends at level k + 1.
    """

    def __init__(
        self, spec: ResNetSpec, norm: NormKind = "gn-ws", stem: StemKind = "deep", top_level: int | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        groups = _groups(spec)
        # ImageNet's stem is 64 wide for every published ResNet, whose base is 64: both stems are `base` wide
        self.stem = StemConv(norm, spec.base, 3 if stem == "deep" else 7, groups)
        self.reduce = StemReduce(stem, norm, spec.base, groups)
        self.channels: dict[int, int] = {1: spec.base}
        self.stages: list[nn.Sequential] = []
        for index in range((top_level or spec.top_level) - 1):
            stage = residual_stage(spec, index, norm)
            self.add_module(f"stage{index + 1}", stage)
            self.stages.append(stage)
            self.channels[index + 2] = stage_channels(spec, index)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """uint8 pictures ``(B, 3, H, W)`` to every level's map ``(B, channels[l], H/2^l, W/2^l)``."""
        levels = {1: self.stem(images)}
        x = self.reduce(levels[1])
        for index, stage in enumerate(self.stages):
            levels[index + 2] = x = stage(x)
        return levels


def _groups(spec: ResNetSpec) -> int:
    return spec.base // 2  # SM-NAS: the backbone's groups are half its base width


def stage_channels(spec: ResNetSpec, index: int) -> int:
    """Output channels of stage ``index`` (from 0)."""
    return spec.stage_widths()[index][-1] * spec.expansion


def residual_stage(spec: ResNetSpec, index: int, norm: NormKind) -> nn.Sequential:
    """The blocks of stage ``index`` (from 0); every stage but the first halves the resolution at its first block."""
    channels = spec.base if index == 0 else stage_channels(spec, index - 1)
    blocks = nn.Sequential()
    for position, width in enumerate(spec.stage_widths()[index]):
        stride = 2 if index > 0 and position == 0 else 1
        blocks.append(_block(spec, norm, channels, width, stride))
        channels = width * spec.expansion
    return blocks


def _block(spec: ResNetSpec, norm: NormKind, in_channels: int, width: int, stride: int) -> nn.Module:
    groups = _groups(spec)
    if spec.block == "basicblock":
        return BasicBlock(norm, in_channels, width, stride, groups)
    cardinality = 32 if spec.block == "resnext" else 1
    return Bottleneck(norm, in_channels, width, stride, groups, cardinality=cardinality)
