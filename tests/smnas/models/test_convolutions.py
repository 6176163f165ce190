"""The closed form of a backbone's convolutions against the modules themselves, counted by PyTorch."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from smnas.models.backbones.by_family import build_backbone
from smnas.space.architecture import Backbone, parse_backbone
from smnas.space.convolutions import layers, multiply_adds, parameters
from smnas.space.preset import load_space
from smnas.space.sampling import sample_modular, sample_structural

R50 = "bottleneck_64_111-2111-211111-211"
R50_LIKE = "k1kxk1_64_256b64k3r3-512b128k3r4-1024b256k3r6-2048b512k3r3"


def counted(module: nn.Module, width: int, height: int, dtype: torch.dtype = torch.uint8) -> int:
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(1, 3, height, width, dtype=dtype, device="meta"))
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [(1333, 800), (480, 480)])
def test_resnet50_costs_what_torchs_counter_says_of_torchvisions(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        published = torchvision.models.resnet50()
    published.fc = nn.Identity()
    convolutions = parse_backbone(R50).convolutions("imagenet")
    assert 2 * multiply_adds(convolutions, *size) == counted(published, *size, dtype=torch.float32)
    assert parameters(convolutions) == sum(p.numel() for p in published.parameters()) == 23_508_032
    assert layers(convolutions) == 49


@pytest.mark.parametrize("size", [(1333, 800), (480, 480)])
@pytest.mark.parametrize("stem", ["deep", "imagenet"])
def test_super_blocks_like_resnet50_cost_what_torchs_counter_says(size: tuple[int, int], stem: str) -> None:
    spec = parse_backbone(R50_LIKE)
    with torch.device("meta"):
        backbone = build_backbone(spec, "gn-ws", stem)  # type: ignore[arg-type]
    convolutions = spec.convolutions(stem)  # type: ignore[arg-type]
    assert 2 * multiply_adds(convolutions, *size) == counted(backbone, *size)
    assert parameters(convolutions) == sum(p.numel() for p in backbone.parameters())
    # all of the same channels as ResNet-50: only the resolution of the first 1x1 convolution differs
    assert parameters(spec.convolutions("imagenet")) == 23_508_032


def random_backbones() -> list[Backbone]:
    rng = np.random.default_rng(0)
    written = [
        "k1kxk1_8_16b8k3r1-24b8k5r2-24b16k3r1.32b8k3r1-40b8k5r1",
        # channels like MAE-DET-L's, whose third bottleneck is 220 wide
        "k1kxk1_80_156b80k3r1-608b88k5r2-912b220k5r3.912b226k3r1-2034b240k5r1",
        "mbconv_16_24k3e6.k5e4-40k5e1.k3e3-80k7e6",
        "mobilenetv2_35",
        "mobilenetv2_140",
    ]
    drawn = []
    for name in ("nano", "small", "paper"):
        space = load_space(name)
        drawn += [sample_modular(space, sample_structural(space, rng), rng).backbone for _ in range(3)]
    return [*map(parse_backbone, written), *drawn]


@pytest.mark.slow
@pytest.mark.parametrize("spec", random_backbones(), ids=str)
@pytest.mark.parametrize("stem", ["deep", "imagenet"])
def test_every_backbone_costs_what_its_modules_cost(spec: Backbone, stem: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(spec, "gn-ws", stem)  # type: ignore[arg-type]
    convolutions = spec.convolutions(stem)  # type: ignore[arg-type]
    assert 2 * multiply_adds(convolutions, 250, 130) == counted(backbone, 250, 130)
    assert parameters(convolutions) == sum(p.numel() for p in backbone.parameters())
    built = [
        (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.groups, "downsample" in name)
        for name, conv in backbone.named_modules()
        if isinstance(conv, nn.Conv2d)
    ]
    assert built == [(c.in_channels, c.out_channels, c.kernel, c.groups, c.shortcut) for c in convolutions]
