"""Whole detectors with ``norm="bn"`` against torchvision's own on ResNet-50-FPN: counts, and outputs on real images.

torchvision's models are built with random weights, which are copied into ours by name.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fcos_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from smnas.data.image import load_rgb
from smnas.data.letterbox import letterbox
from smnas.latency.workloads import end_to_end_workload, inference_workloads
from smnas.models.build import build_detector, deployable
from smnas.models.detector import Detector, OneStageDetector, TwoStageDetector
from smnas.models.heads.fcos import FCOSPostprocess, decode_distances
from smnas.models.heads.retina import RetinaPostprocess
from smnas.models.heads.rpn import ProposalLayer
from smnas.models.options import DetectorOptions
from smnas.space.architecture import Architecture

CLASSES = 5
# Divisible by every level's stride: torchvision takes a level's stride to be the quotient of sides, rounded down, which
# is 59 instead of 64 for P6 of 416 pixels.
SIDE = 512
RESNET50 = "bottleneck_64_111-2111-211111-211"
OURS = {
    "faster": f"{RESNET50}+fpn_2-6_256+rpn+rcnn_1024+{SIDE}x{SIDE}",
    "retina": f"{RESNET50}+fpn_3-7_256+norpn+retina_256+{SIDE}x{SIDE}",
    "fcos": f"{RESNET50}+fpn_3-7_256+norpn+fcos_256+{SIDE}x{SIDE}",
}
THEIRS: dict[str, Callable[..., Any]] = {
    "faster": fasterrcnn_resnet50_fpn,
    "retina": retinanet_resnet50_fpn,
    "fcos": fcos_resnet50_fpn,
}
# Our parameters less torchvision's:
DIFFERENCE = {
    # the background has no box: 4 outputs of 1024 inputs and a bias
    "faster": -4 * (1024 + 1),
    "retina": 0,
    # no centerness (a 3x3 convolution of 256 channels and a bias), but a learned scale for each of the 5 levels
    "fcos": -(256 * 9 + 1) + 5,
}
# "num_params" in torchvision's table of COCO weights, of 91 classes with the background, and without the weights and
# biases of the BatchNorms, which are frozen there
PUBLISHED = {"faster": 41755286, "retina": 34014999, "fcos": 32269600}
BATCH_NORM = 2 * 26560


def build_theirs(name: str, classes: int) -> Any:
    background = 1 if name == "faster" else 0  # the dense heads of torchvision score no background
    return THEIRS[name](weights=None, weights_backbone=None, num_classes=classes + background)


def build_ours(name: str, classes: int, device: str = "cpu") -> Detector:
    return build_detector(Architecture.parse(OURS[name]), classes, norm="bn", stem="imagenet", device=device)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", OURS)
def test_parameter_counts_differ_from_torchvisions_by_what_is_stated(name: str) -> None:
    with torch.device("meta"):
        theirs = build_theirs(name, CLASSES)
    assert count(build_ours(name, CLASSES, "meta")) - count(theirs) == DIFFERENCE[name]
    coco = build_ours(name, 90 if name == "faster" else 91, "meta")
    assert count(coco) == PUBLISHED[name] + BATCH_NORM + DIFFERENCE[name]


@pytest.mark.parametrize("name", OURS)
def test_batch_norm_is_in_the_backbone_only(name: str) -> None:
    ours = build_ours(name, CLASSES, "meta")
    norms = {part for part, module in ours.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert len(norms) == 53
    assert all(part.startswith("backbone.") for part in norms)
    groups = {part: m.num_groups for part, m in ours.named_modules() if isinstance(m, nn.GroupNorm)}
    expected = {f"head.{tower}.{i}.1": 32 for tower in ("classify", "regress") for i in range(4)}
    assert groups == (expected if name == "fcos" else {})
    behind = {p: m for p, m in ours.named_modules() if isinstance(m, nn.Conv2d) and not p.startswith("backbone.")}
    assert behind
    assert all(m.bias is not None for m in behind.values())


# torchvision's names to ours, as regular expressions of a name's beginning
COMMON = {
    r"backbone\.body\.conv1\.": "backbone.stem.conv.",
    r"backbone\.body\.bn1\.": "backbone.stem.norm.",
    r"backbone\.body\.layer(\d)\.": r"backbone.stage\1.",
    r"backbone\.fpn\.inner_blocks\.(\d)\.0\.": r"neck.lateral.\1.0.",
    r"backbone\.fpn\.layer_blocks\.(\d)\.0\.": r"neck.smooth.\1.0.",
    r"backbone\.fpn\.extra_blocks\.p6\.": "neck.extra.0.0.",
    r"backbone\.fpn\.extra_blocks\.p7\.": "neck.extra.1.1.0.",  # behind its ReLU
    r"head\.classification_head\.cls_logits\.": "head.logits.",
}
NAMES = {
    "faster": {
        r"rpn\.head\.conv\.0\.0\.": "rpn.conv.0.",
        r"rpn\.head\.cls_logits\.": "rpn.objectness.",
        r"rpn\.head\.bbox_pred\.": "rpn.deltas.",
        r"roi_heads\.box_head\.fc6\.": "roi_stage1.head.fc1.",
        r"roi_heads\.box_head\.fc7\.": "roi_stage1.head.fc2.",
        r"roi_heads\.box_predictor\.cls_score\.": "roi_stage1.head.logits.",
        r"roi_heads\.box_predictor\.bbox_pred\.": "roi_stage1.head.deltas.",
    },
    "retina": {
        r"head\.classification_head\.conv\.(\d)\.0\.": r"head.classify.\1.0.",
        r"head\.regression_head\.conv\.(\d)\.0\.": r"head.regress.\1.0.",
        r"head\.regression_head\.bbox_reg\.": "head.deltas.",
    },
    "fcos": {
        # a flat list of convolution, norm and ReLU, four times
        **{
            rf"head\.classification_head\.conv\.{3 * i + j}\.": f"head.classify.{i}.{j}."
            for i in range(4)
            for j in (0, 1)
        },
        **{rf"head\.regression_head\.conv\.{3 * i + j}\.": f"head.regress.{i}.{j}." for i in range(4) for j in (0, 1)},
        r"head\.regression_head\.bbox_reg\.": "head.distances.",
    },
}


def mapped(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's weights under our names, without what only torchvision has."""
    found: dict[str, Tensor] = {}
    for theirs, value in state.items():
        if theirs.startswith("head.regression_head.bbox_ctrness."):
            continue
        ours = [re.sub(f"^{a}", b, theirs) for a, b in (COMMON | NAMES[name]).items() if re.match(a, theirs)]
        assert len(ours) == 1, theirs
        found[ours[0]] = value
        if "cls_score" in theirs:  # the background is torchvision's first class and our last
            found[ours[0]] = value.roll(-1, dims=0)
        if "box_predictor.bbox_pred" in theirs:
            found[ours[0]] = value[4:]
    if name == "fcos":
        found["head.log_scales"] = torch.zeros(5)
    return found


def enliven(model: nn.Module, images: Tensor) -> None:
    """Give a fresh model outputs that are worth comparing.

    Its BatchNorms get statistics near those of the images, without which maps vanish or explode on their way, and
    weights of their own; pyramid and heads get weights that keep the scale of maps (torchvision's shrink it to nothing
    before they are trained) and biases.
    """
    backbone = model.backbone
    assert isinstance(backbone, nn.Module)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    backbone.train()(images[..., ::4, ::4])
    backbone.eval()
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean += norm.running_var.sqrt() * torch.empty_like(norm.weight).uniform_(-0.2, 0.2)
        norm.running_var *= torch.empty_like(norm.weight).uniform_(0.7, 1.4)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            # branches weaker than shortcuts, or rounding errors grow a thousandfold on the way
            weaker = 0.5 if name.endswith("bn3") else 1.0
            nn.init.uniform_(module.weight, 0.7 * weaker, 1.2 * weaker)
            nn.init.uniform_(module.bias, -0.1, 0.1)
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith("backbone.body"):
            nn.init.normal_(module.weight, std=(1.5 / module.weight[0].numel()) ** 0.5)
            assert module.bias is not None
            nn.init.uniform_(module.bias, -0.1, 0.1)


def pair(name: str, canvases: Tensor) -> tuple[Any, Detector, ImageList]:
    """torchvision's model and ours with its weights, in evaluation mode, and the images as torchvision has them."""
    torch.manual_seed(0)
    theirs = build_theirs(name, CLASSES).eval().requires_grad_(False)
    # as torchvision's models prepare a batch, but for resizing
    normalized = torch.stack([theirs.transform.normalize(canvas / 255) for canvas in canvases])
    enliven(theirs, normalized)
    ours = build_ours(name, CLASSES)
    ours.load_state_dict(mapped(name, theirs.state_dict()))
    return theirs, ours.eval().requires_grad_(False), ImageList(normalized, [(SIDE, SIDE)] * len(canvases))


@pytest.fixture(scope="module")
def canvases(aquarium_mini: Path) -> Tensor:
    """``(2, 3, SIDE, SIDE)`` uint8, of real images."""
    paths = sorted((aquarium_mini / "val").glob("*.jpg"))[:2]
    some_images = [letterbox(load_rgb(path), SIDE, SIDE)[0] for path in paths]
    return torch.from_numpy(np.stack(some_images)).permute(0, 3, 1, 2).contiguous()


def check(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std(dim=0).mean() > 0.05, "images, or regions, must not look alike"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def checked_maps(
    theirs: Any, ours: Detector, images: ImageList, canvases: Tensor
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """The maps that the heads read, found equal: torchvision's and ours."""
    their_maps: dict[str, Tensor] = theirs.backbone(images.tensors)
    our_maps = ours.features(canvases)
    for a, b in zip(our_maps, their_maps.values(), strict=True):
        check(a, b)
    return their_maps, our_maps


@pytest.mark.slow
def test_faster_rcnn_gives_torchvisions_outputs(canvases: Tensor) -> None:
    theirs, ours, images = pair("faster", canvases)
    assert isinstance(ours, TwoStageDetector)
    assert isinstance(ours.proposals, ProposalLayer)
    their_maps, our_maps = checked_maps(theirs, ours, images, canvases)
    logits, deltas = ours.rpn(*our_maps)
    objectness, regression = concat_box_prediction_layers(*theirs.rpn.head(list(their_maps.values())))
    check(logits, objectness.view(2, -1))
    check(deltas, regression.view(2, -1, 4))
    anchors = theirs.rpn.anchor_generator(images, list(their_maps.values()))[0]
    assert torch.equal(ours.proposals.anchors, anchors)

    corner = torch.rand(2, 30, 2) * 0.7 * SIDE
    boxes = torch.cat([corner, corner + 8 + torch.rand(2, 30, 2) ** 3 * (0.95 * SIDE - corner)], dim=2).clamp(max=SIDE)
    logits, deltas = ours.roi_stages[0](boxes, our_maps[:4])
    roi = theirs.roi_heads
    scores, regression = roi.box_predictor(roi.box_head(roi.box_roi_pool(their_maps, list(boxes), images.image_sizes)))
    check(logits, scores.roll(-1, dims=1))
    check(deltas, regression[:, 4:])


@pytest.mark.slow
def test_retinanet_gives_torchvisions_outputs(canvases: Tensor) -> None:
    theirs, ours, images = pair("retina", canvases)
    assert isinstance(ours, OneStageDetector)
    their_maps, our_maps = checked_maps(theirs, ours, images, canvases)
    logits, deltas = ours.head(*our_maps)
    expected = theirs.head(list(their_maps.values()))
    check(logits, expected["cls_logits"])
    check(deltas, expected["bbox_regression"])


@pytest.mark.slow
def test_fcos_gives_torchvisions_outputs(canvases: Tensor) -> None:
    theirs, ours, images = pair("fcos", canvases)
    assert isinstance(ours, OneStageDetector)
    assert isinstance(ours.postprocess, FCOSPostprocess)
    their_maps, our_maps = checked_maps(theirs, ours, images, canvases)
    logits, distances = ours.head(*our_maps)
    expected = theirs.head(list(their_maps.values()))
    check(logits, expected["cls_logits"])
    # torchvision's distances are the output where it is above 0, ours its exponential: the head's last difference
    check(distances.relu(), expected["bbox_regression"])
    # torchvision measures from a cell's corner, we from its centre
    anchors = theirs.anchor_generator(images, list(their_maps.values()))[0]
    boxes = theirs.head.box_coder.decode(distances.exp(), anchors.expand(2, -1, -1))
    check(decode_distances(distances, ours.postprocess.cells), boxes + ours.postprocess.cells[:, 2:] / 2)


def test_retinanets_anchors_are_torchvisions_to_a_pixel() -> None:
    """In the same order; torchvision cuts the two larger sizes of a level to whole pixels (50.8 to 50), we do not."""
    layer = RetinaPostprocess(range(3, 8), SIDE, SIDE, DetectorOptions())
    with torch.device("meta"):
        generator = build_theirs("retina", CLASSES).anchor_generator
    maps = [torch.zeros(1, 1, SIDE // 2**level, SIDE // 2**level) for level in range(3, 8)]
    expected = generator(ImageList(torch.zeros(1, 3, SIDE, SIDE), [(SIDE, SIDE)]), maps)[0]
    assert (layer.anchors - expected).abs().max() == 1.0
    exact = torch.arange(len(expected)) % 3 == 0  # of three sizes in three shapes the first size
    assert torch.equal(layer.anchors[exact], expected[exact])


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_workloads_of_bn_detectors_add_up(name: str) -> None:
    ours = deployable(build_ours(name, CLASSES, "meta"))
    parts = inference_workloads(ours)
    assert sum(part.parameters for part in parts) == count(ours)
    assert sum(part.flops for part in parts) == end_to_end_workload(ours).flops
