"""Backbones against torchvision's own ResNets, ResNeXts and MobileNetV2."""

import onnxruntime
import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models.mobilenetv2 import InvertedResidual as PublishedInvertedResidual

from kernels.weight_standardization import weight_standardize
from profiler.graphs.export import to_onnx
from smnas.models.backbones.by_family import build_backbone
from smnas.models.backbones.mobilenetv2 import MobileNetV2Backbone
from smnas.models.backbones.resnet import ResNetBackbone
from smnas.models.blocks import InvertedResidual
from smnas.models.build import build_detector
from smnas.models.detector import TwoStageDetector
from smnas.models.layers import ConvNorm, WSConv2d, fold_weight_standardization, group_norm
from smnas.models.neck import FPN
from smnas.models.remapping import Seed, remap, seed_block, seed_state, start_from
from smnas.space.architecture import Architecture, FPNSpec, parse_backbone
from smnas.space.families.mobilenetv2 import MobileNetV2Spec
from smnas.space.families.resnet import ResNetSpec

PUBLISHED = {
    "resnet18": ResNetSpec("basicblock", 64, "11-21-21-21"),
    "resnet34": ResNetSpec("basicblock", 64, "111-2111-211111-211"),
    "resnet50": ResNetSpec("bottleneck", 64, "111-2111-211111-211"),
    "resnet101": ResNetSpec("bottleneck", 64, f"111-2111-2{'1' * 22}-211"),
    "resnext50_32x4d": ResNetSpec("resnext", 64, "111-2111-211111-211"),
    "resnext101_32x8d": ResNetSpec("resnext", 64, f"111-2111-2{'1' * 22}-211", (32, 8)),
    "resnext101_64x4d": ResNetSpec("resnext", 64, f"111-2111-2{'1' * 22}-211", (64, 4)),
}
# torchvision's table of weights: parameters with a classifier of 1000 classes
PARAMETERS = {"resnext50_32x4d": 25028904, "resnext101_32x8d": 88791336, "resnext101_64x4d": 83455272}
# MobileNetV2's levels in torchvision's `features`: the last block at every resolution
MOBILENET_LEVELS = {1: 1, 2: 3, 3: 6, 4: 13, 5: 17}


def load(backbone, state):
    found = remap(backbone.state_dict(), seed_state(state))
    assert found.fraction == 1
    backbone.load_state_dict(found.state)


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


@pytest.mark.parametrize("name", PARAMETERS)
def test_resnexts_have_the_published_number_of_parameters(name):
    with torch.device("meta"):
        backbone = ResNetBackbone(PUBLISHED[name], "bn", "imagenet")
    assert count(backbone) + 2048 * 1000 + 1000 == PARAMETERS[name]


def test_mobilenetv2_has_the_published_number_of_parameters():
    with torch.device("meta"):
        backbone = MobileNetV2Backbone(MobileNetV2Spec(100), "bn")
    # left out: the 1x1 convolution from 320 to 1280 channels with its norm, and the classifier
    assert count(backbone) + (320 * 1280 + 2 * 1280) + (1280 * 1000 + 1000) == 3504872
    assert backbone.channels == {1: 16, 2: 24, 3: 32, 4: 96, 5: 320}


@pytest.mark.parametrize("percent", [10, 35, 50, 75, 100, 130, 140, 223, 400])
def test_mobilenetv2_of_any_width_has_torchvisions_channels(percent):
    with torch.device("meta"):
        published = torchvision.models.mobilenet_v2(width_mult=percent / 100).features
        backbone = MobileNetV2Backbone(MobileNetV2Spec(percent), "bn")
    assert count(backbone) == count(published[:18])
    assert backbone.channels == {level: published[i].out_channels for level, i in MOBILENET_LEVELS.items()}


def with_statistics(published):
    """In evaluation mode, with statistics that are not 0 and 1, so that a mix-up of norms would show."""
    for module in published.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return published.eval()


def normalized(images):
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (images / 255 - mean) / std


@pytest.mark.parametrize("percent", [35, 100])
def test_mobilenetv2_gives_torchvisions_features(percent):
    torch.manual_seed(0)
    published = with_statistics(torchvision.models.mobilenet_v2(width_mult=percent / 100))
    for module in published.modules():  # fresh depthwise filters are so small that deep maps vanish
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    backbone = MobileNetV2Backbone(MobileNetV2Spec(percent), "bn").eval()
    load(backbone, published.state_dict())
    images = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
    with torch.no_grad():
        levels, x = backbone(images), normalized(images)
        assert levels.keys() == MOBILENET_LEVELS.keys()
        expected = {}
        for index, module in enumerate(published.features[:18]):
            expected[index] = x = module(x)
    for level, index in MOBILENET_LEVELS.items():
        scale = expected[index].std()
        assert scale > 0.1
        torch.testing.assert_close(levels[level] / scale, expected[index] / scale, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("stride", "out_channels"), [(1, 16), (1, 32), (2, 16)])
def test_a_coded_inverted_residual_is_torchvisions_block(stride, out_channels):
    torch.manual_seed(0)
    published = with_statistics(PublishedInvertedResidual(16, out_channels, stride, expand_ratio=6))
    block = InvertedResidual("bn", 16, out_channels, stride, 8).eval()
    block.load_state_dict(published.state_dict())
    x = torch.randn(2, 16, 9, 12)
    torch.testing.assert_close(block(x), published(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvision_weights_load_by_name_and_give_torchvisions_features(name):
    published = with_statistics(torchvision.models.get_model(name))
    backbone = ResNetBackbone(PUBLISHED[name], "bn", "imagenet").eval()
    load(backbone, published.state_dict())
    images = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
    with torch.no_grad():
        x = published.relu(published.bn1(published.conv1(normalized(images))))
        levels = backbone(images)
        torch.testing.assert_close(levels[1], x, atol=1e-4, rtol=1e-4)
        x = published.maxpool(x)
        for level in range(2, 6):
            x = getattr(published, f"layer{level - 1}")(x)
            torch.testing.assert_close(levels[level], x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("backbone", "published"), [("basicblock_64_11-21-21-21", "resnet18"), ("mobilenetv2_100", "mobilenet_v2")]
)
@pytest.mark.parametrize("neck", ["c4", "fpn_2-5_32"])
def test_a_detector_takes_every_weight_of_its_backbone(backbone, published, neck):
    classifier = with_statistics(torchvision.models.get_model(published))
    detector = build_detector(
        Architecture.parse(f"{backbone}+{neck}+rpn+cascade_2_64+96x96"), 3, norm="bn", stem="imagenet"
    ).eval()
    # files from before PyTorch 0.4.1, ResNet's among them, have no such counters
    state = {name: value for name, value in classifier.state_dict().items() if "num_batches_tracked" not in name}
    backbone_state = seed_state(state)
    assert start_from(detector, Seed(published, seed_block(backbone_state), backbone_state, "0")) == 1
    images = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
    assert isinstance(detector, TwoStageDetector)
    with torch.no_grad():
        levels, x = detector.backbone(images), normalized(images)
        if published == "mobilenet_v2":
            body, behind = classifier.features[:14], classifier.features[14:18]
        else:
            *body, behind = [module for name, module in classifier.named_children() if name not in ("avgpool", "fc")]
            body = torch.nn.Sequential(*body)
        torch.testing.assert_close(levels[4], body(x), atol=1e-3, rtol=1e-3)
        for stage in detector.roi_stages:  # each cascade stage has the blocks behind C4 to itself
            c5 = stage.blocks(levels[4]) if neck == "c4" else levels[5]
            torch.testing.assert_close(c5, behind(levels[4]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("stem", ["deep", "imagenet"])
@pytest.mark.parametrize("code", ["1", "2-1", "1-22-112", "12-1-211-21", "1211-211-1111-12111"])
@pytest.mark.parametrize("block", ["basicblock", "bottleneck", "resnext", "inverted"])
def test_channels_and_strides_of_any_code(code, block, stem):
    spec = ResNetSpec(block, 16, code)
    levels = ResNetBackbone(spec, stem=stem)(torch.zeros(1, 3, 70, 90, dtype=torch.uint8))
    assert max(levels) == 1 + code.count("-") + 1
    width = 16
    for level, x in levels.items():
        if level > 1:
            width *= 2 ** spec.stages[level - 2].count("2")
        expansion = 1 if level == 1 or block in ("basicblock", "inverted") else 4
        rows, columns = -(-70 // 2**level), -(-90 // 2**level)
        assert x.shape == (1, width * expansion, rows, columns)


@pytest.mark.parametrize(
    "text",
    ["basicblock_8_1-2-1", "inverted_8_1-2-1", "resnext4x16_8_1-2-1", "mobilenetv2_25", "mbconv_8_8k3e3-16k5e3-24k7e6"],
)
@pytest.mark.parametrize("extra", ["pool", "conv"])
def test_every_pyramid_of_levels_1_to_7_builds(text, extra):
    backbone = build_backbone(parse_backbone(text)).eval()
    with torch.inference_mode():
        levels = backbone(torch.zeros(1, 3, 130, 96, dtype=torch.uint8))
        top = max(levels)
        for low in range(1, top + 1):
            for high in range(low, 8):
                channels = {level: count for level, count in backbone.channels.items() if level >= low}
                pyramid = FPN(FPNSpec(low, high, 8), channels, "gn-ws", extra).eval()
                maps = pyramid(*(levels[level] for level in pyramid.in_levels))
                shapes = [(1, 8, -(-130 // 2**level), -(-96 // 2**level)) for level in range(low, high + 1)]
                assert [tuple(x.shape) for x in maps] == shapes
                kinds = {type(module) for module in pyramid.extra}
                assert kinds <= ({torch.nn.MaxPool2d} if extra == "pool" else {ConvNorm})
                assert len(pyramid.extra) == max(0, high - top)


@pytest.mark.parametrize("text", ["bottleneck_16_11-2-2-2", "inverted_16_11-2-2-2", "mobilenetv2_35"])
def test_every_convolution_of_a_backbone_is_standardized(text):
    backbone = build_backbone(parse_backbone(text))
    convolutions = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions
    assert all(isinstance(m, WSConv2d) for m in convolutions)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "basicblock_8_1-2-1",
        "bottleneck_8_12-1",
        "resnext4x16_8_1-2-1",
        "inverted_8_11-2-1",
        "mbconv_8_12k3e3.k5e1-24k7e6",
    ],
)
@pytest.mark.parametrize("stem", ["deep", "imagenet"])
@pytest.mark.parametrize("norm", ["gn-ws", "bn"])
def test_every_block_learns_and_exports_to_what_eager_computes(text, stem, norm, tmp_path):
    check_learning_and_export(build_backbone(parse_backbone(text), norm, stem), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["gn-ws", "bn"])
def test_mobilenetv2_learns_and_exports_to_what_eager_computes(norm, tmp_path):
    check_learning_and_export(build_backbone(MobileNetV2Spec(25), norm), tmp_path)


def check_learning_and_export(backbone, folder):
    images = torch.randint(0, 256, (2, 3, 70, 90), dtype=torch.uint8)
    names = [f"c{level}" for level in backbone.channels]
    torch.stack([x.square().mean() for x in backbone(images).values()]).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert any(parameter.grad.abs().sum() > 0 for parameter in backbone.stages[-1].parameters())

    deployed = fold_weight_standardization(backbone).eval().requires_grad_(False)
    model = to_onnx(Levels(deployed), (images,), input_names=["images"], output_names=names).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = session.run(names, {"images": images.numpy()})
    for exported, eager in zip(found, deployed(images).values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(exported), eager, atol=1e-4, rtol=1e-4)


class Levels(torch.nn.Module):
    """A backbone whose levels are a tuple, as an exported graph's outputs are."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return tuple(self.backbone(images).values())


@pytest.mark.parametrize("percent", [10, 35, 100, 400])
def test_mobilenetv2s_groups_divide_and_hold_two_channels_at_least(percent):
    norms = [m for m in MobileNetV2Backbone(MobileNetV2Spec(percent)).modules() if isinstance(m, torch.nn.GroupNorm)]
    assert norms
    assert all(m.num_channels >= 2 * m.num_groups for m in norms)
    assert {m.num_groups for m in norms} != {1}


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


@pytest.mark.parametrize("channels", [(8, 8), (8, 16), (16, 24)])
def test_a_strided_projection_trains_on_channels_last_maps(channels):
    # some builds of PyTorch corrupt memory in the backward pass of exactly this convolution
    torch.manual_seed(0)
    conv = WSConv2d(*channels, 1, stride=2, bias=False)
    x = torch.randn(4, channels[0], 33, 48)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        conv.zero_grad()
        inputs = x.clone(memory_format=layout).requires_grad_()
        out = conv(inputs)
        torch.testing.assert_close(out, F.conv2d(x, weight_standardize(conv.weight), stride=2), atol=1e-5, rtol=1e-4)
        out.square().sum().backward()
        gradients.append((conv.weight.grad.clone(), inputs.grad.clone()))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-3)
