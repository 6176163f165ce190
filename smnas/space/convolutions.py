"""The convolutions of a backbone in closed form: its cost and depth without building a module."""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

__all__ = ["Convolution", "StemKind", "bottleneck", "inverted_residual", "layers", "multiply_adds", "parameters"]

StemKind = Literal["deep", "imagenet"]


class Convolution(NamedTuple):
    """One convolution of a backbone; a norm follows each.

    Attributes:
        in_channels, out_channels, kernel, groups: As in PyTorch.
        halvings: How often the resolution was halved up to its output.
        level: The pyramid level that it works for: C_level is the first level behind it.
        shortcut: Whether it is a projection beside a block, and no part of the chain.
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
    """Multiply-adds of one image of ``width`` x ``height`` pixels; half of what is counted as FLOPs elsewhere."""
    return sum(c.weights * _halved(width, c.halvings) * _halved(height, c.halvings) for c in convolutions)


def parameters(convolutions: Iterable[Convolution]) -> int:
    """Weights of the convolutions, and two parameters a channel for the norm behind each."""
    return sum(c.weights + 2 * c.out_channels for c in convolutions)


def layers(convolutions: Iterable[Convolution]) -> int:
    """Convolutions of the chain: ResNet-50 has 49 of its 50 layers here, as shortcuts do not count."""
    return sum(not c.shortcut for c in convolutions)


def _halved(size: int, times: int) -> int:
    # every halving rounds up, and rounding up once at the end is the same
    return -(-size // (1 << times))


def bottleneck(
    read: int, inner: int, out: int, kernel: int, groups: int, level: int, stride: int
) -> Iterator[Convolution]:
    """1x1, ``kernel`` x ``kernel`` and 1x1 convolutions of the stage that ends at ``level``, and a projection."""
    yield Convolution(read, inner, 1, 1, level - (stride == 2), level)
    yield Convolution(inner, inner, kernel, groups, level, level)
    yield Convolution(inner, out, 1, 1, level, level)
    if stride == 2 or read != out:
        yield Convolution(read, out, 1, 1, level, level, shortcut=True)


def inverted_residual(
    read: int, out: int, expansion: int, level: int, stride: int, kernel: int = 3
) -> Iterator[Convolution]:
    """A 1x1 convolution to ``expansion`` times the channels (none for 1), a depthwise one and a 1x1 one."""
    inner = read * expansion
    if expansion != 1:
        yield Convolution(read, inner, 1, 1, level - (stride == 2), level)
    yield Convolution(inner, inner, kernel, inner, level, level)
    yield Convolution(inner, out, 1, 1, level, level)
