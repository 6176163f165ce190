"""Feature pyramid over any levels (Lin et al., arXiv 1612.03144)."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from smnas.models.layers import ConvNorm, NormKind
from smnas.space.architecture import FPNSpec

__all__ = ["FPN"]


class FPN(nn.Module):
    """Top-down pyramid: laterals read C_low..C_top, outputs are P_low..P_high.

    Args:
        spec: Levels and width.
        in_channels: ``{level: channels}`` of the backbone.
        norm: ``gn-ws`` standardizes and normalizes every convolution, ``bn`` none.
        extra: Levels above the backbone's coarsest: ``pool`` subsamples by 2 (two-stage detectors); ``conv`` is a 3x3
            convolution of stride 2 (RetinaNet), which with ``bn`` follows a ReLU from the second level on, like
            torchvision's P7.
    """

    def __init__(
        self, spec: FPNSpec, in_channels: dict[int, int], norm: NormKind, extra: Literal["pool", "conv"]
    ) -> None:
        super().__init__()
        top = max(in_channels)
        self.in_levels = tuple(range(spec.low, top + 1))
        self.out_levels = tuple(range(spec.low, spec.high + 1))
        self.lateral = nn.ModuleList(
            ConvNorm(norm, in_channels[level], spec.width, 1, relu=False) for level in self.in_levels
        )
        smooth_levels = [level for level in self.out_levels if level <= top]
        self.smooth = nn.ModuleList(ConvNorm(norm, spec.width, spec.width, 3, relu=False) for _ in smooth_levels)
        extra_count = len(self.out_levels) - len(smooth_levels)
        self.extra = nn.ModuleList(
            _convolved(norm, spec.width, rectified=norm == "bn" and position > 0)
            if extra == "conv"
            else nn.MaxPool2d(1, 2)
            for position in range(extra_count)
        )

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """One ``(B, C_l, H_l, W_l)`` feature map per input level, finest first, to ``(B, width, ...)`` per output."""
        merged: list[Tensor] = []
        for lateral, feature in zip(reversed(self.lateral), reversed(features), strict=True):
            x = lateral(feature)
            if merged:
                x = x + F.interpolate(merged[0], size=x.shape[-2:], mode="nearest")
            merged.insert(0, x)
        outputs = [smooth(x) for smooth, x in zip(self.smooth, merged, strict=False)]
        for extra in self.extra:
            outputs.append(extra(outputs[-1]))
        return tuple(outputs)


def _convolved(norm: NormKind, width: int, *, rectified: bool) -> nn.Sequential:
    conv = ConvNorm(norm, width, width, 3, stride=2, relu=False)
    # not in place: its input is also an output of the pyramid
    return nn.Sequential(nn.ReLU(), conv) if rectified else conv
