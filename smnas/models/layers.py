"""Convolutions with normalization: GroupNorm + Weight Standardization by default, torchvision's BatchNorm where asked.

- ``gn-ws``: every convolution is standardized and followed by GroupNorm. That needs no batch statistics, so detectors
  train from scratch with small batches (Qiao et al., arXiv 1903.10520; used throughout by SM-NAS).
- ``bn``: as in torchvision's detectors, BatchNorm behind the backbone's convolutions only, whose ImageNet weights bring
  statistics along. Pyramid and heads are plain convolutions with biases; FCOS's towers have GroupNorm as well.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from kernels.dispatch import runs_triton
from kernels.group_norm import group_norm_relu
from kernels.weight_standardization import weight_standardize, weight_standardize_all

__all__ = [
    "BatchNorm",
    "ConvNorm",
    "GroupNorm",
    "NormKind",
    "WSConv2d",
    "conv2d",
    "fold_weight_standardization",
    "group_norm",
    "norm2d",
    "prior_bias",
    "standardized_together",
]

NormKind = Literal["gn-ws", "bn"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class WSConv2d(nn.Conv2d):
    """A convolution whose filters are standardized at every call, or before it (:func:`standardized_together`)."""

    standardized: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H', W')``."""
        stride = self.stride
        if self.kernel_size == (1, 1) and stride != (1, 1):
            # The same sums over the cells that it reads. PyTorch 2.14's own backward pass of such a convolution of 8
            # channels on channels-last maps writes outside its memory on some CPUs, and the process dies.
            x, stride = x[..., :: stride[0], :: stride[1]], (1, 1)
        weight = weight_standardize(self.weight) if self.standardized is None else self.standardized
        return F.conv2d(x, weight, self.bias, stride, self.padding, self.dilation, self.groups)


@contextmanager
def standardized_together(module: nn.Module) -> Iterator[None]:
    """Inside, the filters of all standardized convolutions of a module come from one launch of a kernel, and so back.

    The weights must not change inside. Where no kernel runs every convolution does its own, as outside.
    """
    convs = [conv for conv in module.modules() if isinstance(conv, WSConv2d)]
    weights = [conv.weight for conv in convs]
    if not convs or not runs_triton(*weights):
        yield
        return
    for conv, weight in zip(convs, weight_standardize_all(weights), strict=True):
        conv.standardized = weight
    try:
        yield
    finally:
        for conv in convs:
            conv.standardized = None


class GroupNorm(nn.GroupNorm):
    """GroupNorm with what follows it: an addition where one is given, and ReLU where asked for.

    Args:
        groups: Divides ``channels``.
        channels: Of its input.
        relu: Whether ReLU comes last.
    """

    def __init__(self, groups: int, channels: int, *, relu: bool = False) -> None:
        super().__init__(groups, channels)
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``(B, C, H, W)``, and what is added to its normalized values, to the same shape."""
        return group_norm_relu(x, self.num_groups, self.weight, self.bias, self.eps, residual, relu=self.relu)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{super().extra_repr()}, relu={self.relu}"


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm with what follows it, as :class:`GroupNorm`."""

    def __init__(self, channels: int, *, relu: bool = False) -> None:
        super().__init__(channels)
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``(B, C, H, W)``, and what is added to its normalized values, to the same shape."""
        out = super().forward(x)
        if residual is not None:
            out = out + residual
        return F.relu(out, inplace=True) if self.relu else out

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{super().extra_repr()}, relu={self.relu}"  # type: ignore[no-untyped-call]


def conv2d(
    norm: NormKind, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A bias-free "same" convolution of a backbone, to be followed by a norm; standardized with ``gn-ws``."""
    kind = WSConv2d if norm == "gn-ws" else nn.Conv2d
    conv = kind(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def group_norm(channels: int, groups: int, *, relu: bool = False) -> GroupNorm:
    """GroupNorm with the most groups up to ``groups`` that divide ``channels`` and leave two of them to each.

    On a map of one cell a group of one channel has a single value, which can not be normalized.
    """
    most = max(g for g in range(1, groups + 1) if channels % g == 0 and (g == 1 or 2 * g <= channels))
    return GroupNorm(most, channels, relu=relu)


def norm2d(norm: NormKind, channels: int, groups: int, *, relu: bool = False) -> GroupNorm | BatchNorm:
    """The norm that belongs behind :func:`conv2d` in a backbone, with ReLU if asked for."""
    return group_norm(channels, groups, relu=relu) if norm == "gn-ws" else BatchNorm(channels, relu=relu)


class ConvNorm(nn.Sequential):
    """A convolution of the pyramid or a head, the norm that it has there and, unless told otherwise, ReLU.

    Args:
        norm: With ``gn-ws`` a GroupNorm follows; with ``bn`` none, and the convolution has a bias.
        in_channels: Channels that it reads.
        out_channels: Channels that it writes.
        kernel: Side.
        stride: Of the convolution.
        groups: Of a GroupNorm, at most.
        relu: Whether ReLU comes last.
        always_norm: With ``bn`` a GroupNorm follows, too.
    """

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
        always_norm: bool = False,
    ) -> None:
        layers: list[nn.Module] = []
        if norm == "gn-ws":
            layers.append(conv2d(norm, in_channels, out_channels, kernel, stride))
        else:
            conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2)
            # Without a norm behind it the filters must keep the scale of the maps. torchvision draws its heads' with a
            # deviation of 0.01, which does so for 256 channels only.
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu" if relu else "linear")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            layers.append(conv)
        if norm == "gn-ws" or always_norm:
            layers.append(group_norm(out_channels, groups, relu=relu))
        elif relu:
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
