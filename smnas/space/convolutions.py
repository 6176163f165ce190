"""The convolutions of a backbone, in closed form: what it costs and how deep it is, with no module built.

Microseconds instead of the milliseconds that building shapes takes. That the two agree is tested on every kind of
backbone.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from smnas.models.backbones.base import mobilenet_units, stem_channels
from smnas.models.blocks import StemKind, bottleneck_inner
from smnas.space.architecture import Backbone, MobileNetV2Spec, ResNetSpec, SuperBlockSpec

__all__ = ["Convolution", "backbone_convolutions", "layers", "multiply_adds", "parameters"]


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


def backbone_convolutions(spec: Backbone, stem: StemKind = "deep") -> tuple[Convolution, ...]:
    """All convolutions in the order of running; a block's projection comes behind its other ones."""
    channels, kernel = stem_channels(spec), 7 if stem == "imagenet" else 3
    if isinstance(spec, ResNetSpec):
        first = [Convolution(3, channels, kernel, 1, 1, 1)]
        if stem == "deep":
            first.append(Convolution(channels, channels, 3, 1, 2, 2))
        return (*first, *_residual(spec))
    if isinstance(spec, SuperBlockSpec):
        return (Convolution(3, channels, kernel, 1, 1, 1), *_super_blocks(spec))
    return (Convolution(3, channels, 3, 1, 1, 1), *_mobilenet(spec))


def multiply_adds(convolutions: Iterable[Convolution], width: int, height: int) -> int:
    """Multiply-adds of one image of ``width`` x ``height`` pixels; half of what is counted as FLOPs elsewhere."""
    return sum(c.weights * _halved(width, c.halvings) * _halved(height, c.halvings) for c in convolutions)


def parameters(convolutions: Iterable[Convolution]) -> int:
    """Weights of the convolutions, and two numbers a channel for the norm behind each."""
    return sum(c.weights + 2 * c.out_channels for c in convolutions)


def layers(convolutions: Iterable[Convolution]) -> int:
    """Convolutions of the chain: ResNet-50 has 49 of its 50 layers here, as shortcuts do not count."""
    return sum(not c.shortcut for c in convolutions)


def _halved(size: int, times: int) -> int:
    # every halving rounds up, and rounding up once at the end is the same
    return -(-size // (1 << times))


def _bottleneck(
    read: int, inner: int, out: int, kernel: int, groups: int, halvings: int, level: int, stride: int
) -> Iterator[Convolution]:
    yield Convolution(read, inner, 1, 1, halvings - (stride == 2), level)
    yield Convolution(inner, inner, kernel, groups, halvings, level)
    yield Convolution(inner, out, 1, 1, halvings, level)
    if stride == 2 or read != out:
        yield Convolution(read, out, 1, 1, halvings, level, shortcut=True)


def _residual(spec: ResNetSpec) -> Iterator[Convolution]:
    read = spec.base
    for level, widths in enumerate(spec.stage_widths(), start=2):
        for position, width in enumerate(widths):
            stride = 2 if level > 2 and position == 0 else 1
            out = width * spec.expansion
            match spec.block:
                case "basicblock":
                    yield Convolution(read, out, 3, 1, level, level)
                    yield Convolution(out, out, 3, 1, level, level)
                    if stride == 2 or read != out:
                        yield Convolution(read, out, 1, 1, level, level, shortcut=True)
                case "bottleneck" | "resnext":
                    paths, path_width = spec.paths if spec.block == "resnext" else (1, 64)
                    inner = bottleneck_inner(width, paths, path_width)
                    yield from _bottleneck(read, inner, out, 3, paths, level, level, stride)
                case "inverted":
                    yield from _inverted(read, out, 6, level, level, stride)
            read = out


def _super_blocks(spec: SuperBlockSpec) -> Iterator[Convolution]:
    read = spec.stem
    for level, stage in enumerate(spec.stages, start=2):
        stride = 2
        for block in stage:
            for _ in range(block.repeats):
                yield from _bottleneck(read, block.width, block.out, block.kernel, 1, level, level, stride)
                read, stride = block.out, 1


def _inverted(read: int, out: int, expansion: int, halvings: int, level: int, stride: int) -> Iterator[Convolution]:
    inner = read * expansion
    if expansion != 1:
        yield Convolution(read, inner, 1, 1, halvings - (stride == 2), level)
    yield Convolution(inner, inner, 3, inner, halvings, level)
    yield Convolution(inner, out, 1, 1, halvings, level)


def _mobilenet(spec: MobileNetV2Spec) -> Iterator[Convolution]:
    for level in range(1, spec.top_level + 1):
        for unit in mobilenet_units(spec, level):
            yield from _inverted(unit.in_channels, unit.out_channels, unit.expansion, level, level, unit.stride)
