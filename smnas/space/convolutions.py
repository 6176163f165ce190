"""A backbone's convolutions in closed form: cost and depth without building a module."""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

__all__ = ["Convolution", "StemKind", "bottleneck", "inverted_residual", "layers", "multiply_adds", "parameters"]

StemKind = Literal["deep", "imagenet"]


class Convolution(NamedTuple):
    """One convolution of a backbone, followed by a norm.

    Attributes:
        in_channels, out_channels, kernel, groups: As in PyTorch.
        halvings: Number of halvings of the resolution, its own included.
        level: The finest pyramid level computed from it.
        shortcut: Whether it is the projection of a shortcut, which does not add to the depth.
    """

    in_channels: int
    out_channels: int
    kernel: int
    groups: int
    halvings: int
    level: int
    shortcut: bool = False

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.in_channels // self.groups * self.out_channels * self.kernel * self.kernel


def multiply_adds(convolutions: Iterable[Convolution], width: int, height: int) -> int:
    """Multiply-adds for one image of ``width`` x ``height`` pixels: half the FLOPs."""
    return sum(c.weights * _halved(width, c.halvings) * _halved(height, c.halvings) for c in convolutions)


def parameters(convolutions: Iterable[Convolution]) -> int:
    """Weights of the convolutions, plus two parameters per channel for each norm."""
    return sum(c.weights + 2 * c.out_channels for c in convolutions)


def layers(convolutions: Iterable[Convolution]) -> int:
    """Depth in convolutions, shortcuts excluded: 49 for ResNet-50, whose 50th layer is the classifier."""
    return sum(not c.shortcut for c in convolutions)


def _halved(size: int, times: int) -> int:
    # rounding up once equals rounding up at each halving
    return -(-size // (1 << times))


def bottleneck(
    read: int, inner: int, out: int, kernel: int, groups: int, level: int, stride: int
) -> Iterator[Convolution]:
    """1x1, ``kernel`` x ``kernel`` and 1x1 convolutions of the stage that ends at ``level``, and any projection."""
    yield Convolution(read, inner, 1, 1, level - (stride == 2), level)
    yield Convolution(inner, inner, kernel, groups, level, level)
    yield Convolution(inner, out, 1, 1, level, level)
    if stride == 2 or read != out:
        yield Convolution(read, out, 1, 1, level, level, shortcut=True)


def inverted_residual(
    read: int, out: int, expansion: int, level: int, stride: int, kernel: int = 3
) -> Iterator[Convolution]:
    """1x1 expansion by ``expansion`` (absent for 1), depthwise and 1x1 projection."""
    inner = read * expansion
    if expansion != 1:
        yield Convolution(read, inner, 1, 1, level - (stride == 2), level)
    yield Convolution(inner, inner, kernel, inner, level, level)
    yield Convolution(inner, out, 1, 1, level, level)
