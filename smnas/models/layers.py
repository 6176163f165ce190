"""Convolutions with normalization: GroupNorm + Weight Standardization by default, BatchNorm where asked.

Weight Standardization needs no batch statistics, so detectors train from scratch with small batches (Qiao et al.,
arXiv 1903.10520; used throughout by SM-NAS).
"""

import copy
import math
from typing import Literal, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from kernels.weight_standardization import weight_standardize

__all__ = ["ConvNorm", "NormKind", "WSConv2d", "conv2d", "fold_weight_standardization", "group_norm", "norm2d"]

NormKind = Literal["gn-ws", "bn"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class WSConv2d(nn.Conv2d):
    """A convolution whose filters are standardized at every call."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H', W')``."""
        return F.conv2d(
            x, weight_standardize(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


def conv2d(
    norm: NormKind, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A bias-free "same" convolution to be followed by a norm; standardized with ``gn-ws``."""
    kind = WSConv2d if norm == "gn-ws" else nn.Conv2d
    conv = kind(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with the most groups up to ``groups`` that divide ``channels``."""
    return nn.GroupNorm(max(g for g in range(1, groups + 1) if channels % g == 0), channels)


def norm2d(norm: NormKind, channels: int, groups: int) -> nn.Module:
    """The norm that belongs behind :func:`conv2d`."""
    return group_norm(channels, groups) if norm == "gn-ws" else nn.BatchNorm2d(channels)


class ConvNorm(nn.Sequential):
    """Convolution, norm and, unless told otherwise, ReLU."""

    def __init__(
        self,
        norm: NormKind,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 32,
        relu: bool = True,
    ) -> None:
        layers: list[nn.Module] = [
            conv2d(norm, in_channels, out_channels, kernel, stride),
            norm2d(norm, out_channels, groups),
        ]
        if relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


def fold_weight_standardization(module: ModuleT) -> ModuleT:
    """A copy whose inner standardized convolutions became plain ones with the standardized weights: equal outputs."""
    folded = copy.deepcopy(module)
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, WSConv2d):
                setattr(parent, name, _folded(child))
    return folded


def _folded(conv: WSConv2d) -> nn.Conv2d:
    # skip_init: fresh weights would only cost time and draw from the global random numbers of whoever trains beside
    plain: nn.Conv2d = skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d,
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        groups=conv.groups,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    plain.weight.data = weight_standardize(conv.weight.detach())
    if conv.bias is not None and plain.bias is not None:
        plain.bias.data = conv.bias.detach().clone()
    return plain


def prior_bias(probability: float) -> float:
    """Bias with which a sigmoid says ``probability`` at the start (Lin et al., "Focal Loss", arXiv 1708.02002)."""
    return -math.log((1 - probability) / probability)
