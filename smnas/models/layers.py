"""Convolutions with normalization: GroupNorm + Weight Standardization by default, GroupNorm, or BatchNorm.

- ``gn-ws``: every convolution is standardized and followed by GroupNorm. Without batch statistics, detectors train from
  scratch in small batches (Qiao et al., arXiv 1903.10520; used throughout SM-NAS).
- ``gn``: as ``gn-ws``, but the backbone's convolutions are plain, so that weights that were trained with BatchNorm keep
  their means and scales. For inference both are the same modules, and have the same latency.
- ``bn``: as in torchvision's detectors, BatchNorm follows the backbone's convolutions only. Pyramid and heads are plain
  convolutions with biases; FCOS's towers have GroupNorm.
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

NormKind = Literal["gn-ws", "gn", "bn"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class WSConv2d(nn.Conv2d):
    """A convolution with weights standardized at every call, or beforehand by :func:`standardized_together`."""

    standardized: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H', W')``."""
        stride = self.stride
        if self.kernel_size == (1, 1) and stride != (1, 1):
            # Equivalent, as a strided 1x1 convolution reads these positions only. PyTorch 2.14's backward pass of one
            # with 8 channels and channels-last inputs writes out of bounds on some CPUs and crashes the process.
            x, stride = x[..., :: stride[0], :: stride[1]], (1, 1)
        weight = weight_standardize(self.weight) if self.standardized is None else self.standardized
        return F.conv2d(x, weight, self.bias, stride, self.padding, self.dilation, self.groups)


@contextmanager
def standardized_together(module: nn.Module) -> Iterator[None]:
    """Inside, standardize all weights of a module in one kernel launch, and their gradients in another.

    The weights must not change inside. Without a kernel, each convolution standardizes its own, as outside.
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
    """GroupNorm with an optional residual added before an optional ReLU."""

    def __init__(self, groups: int, channels: int, *, relu: bool = False) -> None:
        super().__init__(groups, channels)
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``(B, C, H, W)`` and an optional residual of the same shape to that shape."""
        return group_norm_relu(x, self.num_groups, self.weight, self.bias, self.eps, residual, relu=self.relu)

    def extra_repr(self) -> str:
        """Add ``relu``."""
        return f"{super().extra_repr()}, relu={self.relu}"


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm with the same residual and ReLU as :class:`GroupNorm`."""

    def __init__(self, channels: int, *, relu: bool = False) -> None:
        super().__init__(channels)
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """As :meth:`GroupNorm.forward`."""
        out = super().forward(x)
        if residual is not None:
            out = out + residual
        return F.relu(out, inplace=True) if self.relu else out

    def extra_repr(self) -> str:
        """Add ``relu``."""
        return f"{super().extra_repr()}, relu={self.relu}"  # type: ignore[no-untyped-call]


def conv2d(
    norm: NormKind, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A bias-free "same" convolution of a backbone, standardized with ``gn-ws``; a norm must follow."""
    kind = WSConv2d if norm == "gn-ws" else nn.Conv2d
    conv = kind(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def group_norm(channels: int, groups: int, *, relu: bool = False) -> GroupNorm:
    """GroupNorm with the most groups up to ``groups`` that divide ``channels`` with two or more channels each.

    On a 1x1 feature map a group of one channel is a single value, which cannot be normalized.
    """
    most = max(g for g in range(1, groups + 1) if channels % g == 0 and (g == 1 or 2 * g <= channels))
    return GroupNorm(most, channels, relu=relu)


def norm2d(norm: NormKind, channels: int, groups: int, *, relu: bool = False) -> GroupNorm | BatchNorm:
    """The norm that follows :func:`conv2d` in a backbone, optionally with ReLU."""
    return BatchNorm(channels, relu=relu) if norm == "bn" else group_norm(channels, groups, relu=relu)


class ConvNorm(nn.Sequential):
    """A convolution of the pyramid or a head, with its norm and ReLU.

    ``gn-ws`` and ``gn`` standardize the weights and add a GroupNorm of at most 32 groups; ``bn`` adds none unless
    ``always_norm``, and the convolution has a bias.
    """

    def __init__(
        self,
        norm: NormKind,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        relu: bool = True,
        always_norm: bool = False,
    ) -> None:
        layers: list[nn.Module] = []
        if norm != "bn":
            layers.append(conv2d("gn-ws", in_channels, out_channels, kernel, stride))
        else:
            conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2)
            # Without a norm, the weights must preserve the scale of the activations. torchvision initialises its heads
            # with a standard deviation of 0.01, which does so for 256 channels only.
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu" if relu else "linear")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            layers.append(conv)
        if norm != "bn" or always_norm:
            layers.append(group_norm(out_channels, 32, relu=relu))
        elif relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


def fold_weight_standardization(module: ModuleT) -> ModuleT:
    """A copy with equal outputs whose inner standardized convolutions are plain ones with standardized weights."""
    folded = copy.deepcopy(module)
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, WSConv2d):
                setattr(parent, name, _folded(child))
    return folded


def _folded(conv: WSConv2d) -> nn.Conv2d:
    # skip_init: initialisation would cost time and advance the global generator of a concurrent training run
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
    if not conv.weight.is_meta:
        plain.weight.data = weight_standardize(conv.weight.detach())
    if conv.bias is not None and plain.bias is not None:
        plain.bias.data = conv.bias.detach().clone()
    return plain


def prior_bias(probability: float) -> float:
    """Bias at which a sigmoid outputs ``probability`` (Lin et al., "Focal Loss", arXiv 1708.02002)."""
    return -math.log((1 - probability) / probability)
