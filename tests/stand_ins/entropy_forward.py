"""MAE-DET's score by running the chain of convolutions: the slow check of the closed form.

The convolutions are read off the built backbone, not off its closed form. Two things set the result apart from it. At a
map's border a kernel meets padding, so its deviation is smaller there: in a 2x2 map a 3x3 kernel sees 4 of its 9 cells.
And one draw of weights is a sample; the fewer channels, the larger its error.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smnas.models.backbones.by_family import build_backbone
from smnas.scoring.entropy import PUBLISHED, EntropyForm, weighted_entropy
from smnas.space.architecture import Backbone
from smnas.space.convolutions import StemKind

__all__ = ["forward_entropy"]


def forward_entropy(
    spec: Backbone,
    form: EntropyForm = PUBLISHED,
    *,
    seed: int,
    stem: StemKind = "deep",
    size: tuple[int, int] = (64, 64),
    batch: int = 1,
) -> float:
    """The score by a forward pass on N(0, 1) input with N(0, 1) weights, in float32 on the CPU.

    Args:
        spec: Any backbone.
        form: Weights and terms.
        seed: Of weights and input.
        stem: ``deep`` or ``imagenet``, whose pooling becomes taking every second cell.
        size: Input (width, height) in pixels.
        batch: Inputs at once.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        backbone = build_backbone(spec, "bn", stem)
    width, height = size
    x = torch.randn(batch, 3, height, width, generator=generator)
    deviations: dict[int, float] = {}
    channels: dict[int, int] = {}
    since = 0.0
    for link in backbone.chain():
        for module in _chain(link.module):
            if isinstance(module, nn.MaxPool2d):
                x = x[..., ::2, ::2]
                continue
            x = _convolve(module, x, generator)
            deviation = x.std()
            x = x / deviation
            since += math.log(float(deviation))
        if link.level is not None:
            deviations[link.level], channels[link.level] = since, x.shape[1]
            since = 0.0
    return weighted_entropy(deviations, channels, form, size)


def _chain(module: nn.Module) -> list[nn.Module]:
    """Convolutions and pooling of one link in the order of running, without the shortcut's."""
    return [
        inner
        for name, inner in module.named_modules()
        if isinstance(inner, nn.Conv2d | nn.MaxPool2d) and "downsample" not in name.split(".")
    ]


def _convolve(conv: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """A grouped convolution runs as a dense one, as it is scored."""
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"a chain has convolutions and pooling, but got {type(conv).__name__}")
    side = conv.kernel_size[0]
    weight = torch.randn(conv.out_channels, conv.in_channels, side, side, generator=generator)
    return F.conv2d(x, weight, stride=conv.stride, padding=side // 2)
