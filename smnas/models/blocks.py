"""Stems and blocks of the backbones.

Names inside a block (``conv1``, ``bn1``, ``downsample.0``; ``conv.0.0`` in an inverted residual) are torchvision's, so
that ImageNet weights map by name (:mod:`smnas.models.remapping`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smnas.models.layers import NormKind, conv2d, norm2d
from smnas.space.convolutions import StemKind
from smnas.space.families.resnet import bottleneck_inner

__all__ = [
    "K1KXK1",
    "BasicBlock",
    "Bottleneck",
    "InvertedResidual",
    "StemConv",
    "StemReduce",
]

# ImageNet's mean and standard deviation of RGB values in 0..255, as in torchvision
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)


class StemConv(nn.Module):
    """Normalizes uint8 RGB images, then a convolution of stride 2 to C1."""

    FLOAT_IN_INT8 = ("conv",)  # reads the image, in few channels

    mean: Tensor
    std: Tensor

    def __init__(self, norm: NormKind, channels: int, kernel: int, groups: int, *, relu6: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.conv = conv2d(norm, 3, channels, kernel, stride=2)
        self.norm = norm2d(norm, channels, groups, relu=not relu6)
        self.relu6 = relu6

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` uint8 to ``(B, C, H/2, W/2)``."""
        x = (images.to(self.conv.weight.dtype) - self.mean) / self.std
        out: Tensor = self.norm(self.conv(x))
        return F.relu6(out, inplace=True) if self.relu6 else out


class StemReduce(nn.Module):
    """C1 to stride 4: a second 3x3 convolution (``deep``) or max-pooling (``imagenet``)."""

    def __init__(self, kind: StemKind, norm: NormKind, channels: int, groups: int) -> None:
        super().__init__()
        self.reduce: nn.Module
        if kind == "deep":
            self.reduce = nn.Sequential(
                conv2d(norm, channels, channels, 3, stride=2), norm2d(norm, channels, groups, relu=True)
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
        self.bn1 = norm2d(norm, width, groups, relu=True)
        self.conv2 = conv2d(norm, width, width, 3)
        self.bn2 = norm2d(norm, width, groups, relu=True)
        self.downsample = _shortcut(norm, in_channels, width, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, width, H/stride, W/stride)``."""
        out = self.conv2(self.bn1(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.bn2(out, shortcut)
        return result


class K1KXK1(nn.Module):
    """1x1, kxk and 1x1 convolutions and a shortcut: MAE-DET's unit (Sun et al., arXiv 2111.13336).

    The kxk convolution has the ``stride`` and ``cardinality`` groups; ``inner`` are the channels between the 1x1
    convolutions and ``groups`` the maximal groups of a GroupNorm.
    """

    def __init__(
        self,
        norm: NormKind,
        in_channels: int,
        inner: int,
        out_channels: int,
        stride: int,
        groups: int,
        *,
        kernel: int = 3,
        cardinality: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = conv2d(norm, in_channels, inner, 1)
        self.bn1 = norm2d(norm, inner, groups, relu=True)
        self.conv2 = conv2d(norm, inner, inner, kernel, stride, groups=cardinality)
        self.bn2 = norm2d(norm, inner, groups, relu=True)
        self.conv3 = conv2d(norm, inner, out_channels, 1)
        self.bn3 = norm2d(norm, out_channels, groups, relu=True)
        self.downsample = _shortcut(norm, in_channels, out_channels, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H/stride, W/stride)``."""
        out = self.bn1(self.conv1(x))
        out = self.conv3(self.bn2(self.conv2(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.bn3(out, shortcut)
        return result


class Bottleneck(K1KXK1):
    """ResNet's bottleneck, four times as wide outside as inside; with a cardinality, ResNeXt's (arXiv 1611.05431).

    ``width`` is a quarter of the output channels, ``cardinality`` the paths of the 3x3 convolution (1 for the plain
    bottleneck, with one path of ``width`` channels) and ``path_width`` the channels per path at width 64 (the 4 of
    ``32x4d``), proportional to the width.
    """

    expansion = 4

    def __init__(
        self,
        norm: NormKind,
        in_channels: int,
        width: int,
        stride: int,
        groups: int,
        *,
        cardinality: int = 1,
        path_width: int = 64,
    ) -> None:
        inner = bottleneck_inner(width, cardinality, path_width)
        super().__init__(norm, in_channels, inner, width * self.expansion, stride, groups, cardinality=cardinality)


def _shortcut(norm: NormKind, in_channels: int, out_channels: int, stride: int, groups: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv2d(norm, in_channels, out_channels, 1, stride), norm2d(norm, out_channels, groups))


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al., arXiv 1801.04381): 1x1 expansion, depthwise and linear 1x1 projection.

    ``kernel`` and ``stride`` are the depthwise convolution's; an ``expansion`` of 1 omits the first convolution, as in
    the published network's first block. The input is added if it has the output's shape.
    """

    def __init__(
        self,
        norm: NormKind,
        in_channels: int,
        out_channels: int,
        stride: int,
        groups: int,
        *,
        expansion: int = 6,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.conv = nn.Sequential()
        if expansion != 1:
            self.conv.append(_relu6(conv2d(norm, in_channels, inner, 1), norm2d(norm, inner, groups)))
        self.conv.append(_relu6(conv2d(norm, inner, inner, kernel, stride, groups=inner), norm2d(norm, inner, groups)))
        self.conv.append(conv2d(norm, inner, out_channels, 1))
        self.conv.append(norm2d(norm, out_channels, groups))
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H/stride, W/stride)``."""
        *layers, last = self.conv
        out = x
        for layer in layers:
            out = layer(out)
        result: Tensor = last(out, x if self.adds_input else None)
        return result


def _relu6(conv: nn.Module, norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, norm, nn.ReLU6(inplace=True))
