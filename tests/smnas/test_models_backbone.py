"""Backbones against torchvision's own ResNets."""

import pytest
import torch
import torchvision

from profiler.errors import UserError
from smnas.models.backbone import ResNetBackbone
from smnas.models.layers import ConvNorm, WSConv2d, fold_weight_standardization, group_norm
from smnas.models.pretrained import load_torchvision_weights
from smnas.space.architecture import ResNetSpec

PUBLISHED = {
    "resnet18": ResNetSpec("basicblock", 64, "11-21-21-21"),
    "resnet34": ResNetSpec("basicblock", 64, "111-2111-211111-211"),
    "resnet50": ResNetSpec("bottleneck", 64, "111-2111-211111-211"),
    "resnext50_32x4d": ResNetSpec("resnext", 64, "111-2111-211111-211"),
}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_torchvisions(name):
    with torch.device("meta"):
        published = torchvision.models.get_model(name)
        imagenet = ResNetBackbone(PUBLISHED[name], "bn", "imagenet")
        deep = ResNetBackbone(PUBLISHED[name], "bn", "deep")
    assert count(imagenet) == count(published) - count(published.fc)
    # the deep stem: two 3x3 convolutions (3 to 64, 64 to 64) with norms, instead of one 7x7 (3 to 64) with a norm
    assert count(deep) - count(imagenet) == (3 * 64 * 9 + 64 * 64 * 9 + 2 * 64) - 3 * 64 * 49


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_weights_load_by_name_and_give_torchvisions_features(name):
    published = torchvision.models.get_model(name).eval()
    for module in published.modules():  # statistics that are not 0 and 1, so that a mix-up of norms would show
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    backbone = ResNetBackbone(PUBLISHED[name], "bn", "imagenet").eval()
    load_torchvision_weights(backbone, published.state_dict())
    images = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        x = published.relu(published.bn1(published.conv1((images / 255 - mean) / std)))
        levels = backbone(images)
        torch.testing.assert_close(levels[1], x, atol=1e-4, rtol=1e-4)
        x = published.maxpool(x)
        for level in range(2, 6):
            x = getattr(published, f"layer{level - 1}")(x)
            torch.testing.assert_close(levels[level], x, atol=1e-3, rtol=1e-3)


def test_weights_of_another_network_are_refused_by_name():
    backbone = ResNetBackbone(PUBLISHED["resnet18"], "bn", "imagenet")
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight must have shape"):
        load_torchvision_weights(backbone, torchvision.models.resnet50().state_dict())
    deeper = ResNetBackbone(PUBLISHED["resnet34"], "bn", "imagenet")
    with pytest.raises(UserError, match=r"layer1\.2\.conv1\.weight is missing"):
        load_torchvision_weights(deeper, torchvision.models.resnet18().state_dict())


@pytest.mark.parametrize("code", ["1", "2-1", "1-22-112", "12-1-211-21", "1211-211-1111-12111"])
@pytest.mark.parametrize("block", ["basicblock", "bottleneck"])
def test_channels_and_strides_of_any_code(code, block):
    spec = ResNetSpec(block, 16, code)
    levels = ResNetBackbone(spec)(torch.zeros(1, 3, 70, 90, dtype=torch.uint8))
    assert max(levels) == 1 + code.count("-") + 1
    width = 16
    for level, x in levels.items():
        if level > 1:
            width *= 2 ** spec.stages[level - 2].count("2")
        expansion = 1 if level == 1 or block == "basicblock" else 4
        rows, columns = -(-70 // 2**level), -(-90 // 2**level)
        assert x.shape == (1, width * expansion, rows, columns)


def test_every_convolution_of_a_backbone_is_standardized():
    backbone = ResNetBackbone(ResNetSpec("bottleneck", 16, "11-2-2-2"))
    convolutions = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions
    assert all(isinstance(m, WSConv2d) for m in convolutions)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())


def test_folding_keeps_outputs_and_leaves_the_original_alone():
    module = torch.nn.Sequential(ConvNorm("gn-ws", 3, 16, 3), ConvNorm("gn-ws", 16, 8, 1)).eval()
    x = torch.randn(2, 3, 9, 9)
    before = torch.get_rng_state()
    folded = fold_weight_standardization(module)
    assert torch.equal(before, torch.get_rng_state()), "folding must not draw random numbers"
    torch.testing.assert_close(folded(x), module(x))
    assert not any(isinstance(m, WSConv2d) for m in folded.modules())
    assert sum(isinstance(m, WSConv2d) for m in module.modules()) == 2


@pytest.mark.parametrize(("channels", "groups", "expected"), [(64, 32, 32), (48, 32, 24), (96, 28, 24), (7, 4, 1)])
def test_group_norm_takes_the_most_groups_that_divide(channels, groups, expected):
    assert group_norm(channels, groups).num_groups == expected
