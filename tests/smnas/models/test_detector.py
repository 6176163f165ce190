"""Whole detectors: they build, learn, decompose into workloads, and fold."""

import numpy as np
import pytest
import torch

from profiler.errors import UserError
from profiler.workload import Workload
from smnas.latency.workloads import detector_workloads, end_to_end_workload
from smnas.models.build import build_detector, deployable
from smnas.models.detector import TwoStageDetector
from smnas.models.layers import WSConv2d
from smnas.models.target import Detections, Target
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space
from smnas.space.sampling import sample_modular, sample_structural

HEADS = {
    "rcnn": "basicblock_8_1-2-2+fpn_2-4_32+rpn+rcnn_64+96x64",
    "rcnn-extra-level": "basicblock_8_1-2-2+fpn_1-6_32+rpn+rcnn_64+96x64",
    "rcnn-odd-size": "basicblock_8_1-2-2-1+fpn_3-5_32+rpn+rcnn_64+90x70",
    "cascade": "basicblock_8_1-2-2+fpn_2-4_32+rpn+cascade_3_64+96x64",
    "cascade4": "bottleneck_8_1-2-2+fpn_2-3_32+rpn+cascade_4_64+96x64",
    "c4": "basicblock_8_1-2-2+c4+rpn+rcnn_64+96x64",
    "c4-blocks-on-rois": "bottleneck_8_1-2-2-21+c4+rpn+cascade_2_64+96x64",
    "resnext": "resnext4x16_8_1-2-2+fpn_1-3_32+rpn+rcnn_64+96x64",
    "resnext-32x4d-c4": "resnext_8_1-2-2-2+c4+rpn+rcnn_64+96x64",
    "inverted": "inverted_8_11-2-21+fpn_2-5_32c+rpn+rcnn_64+96x64",
    "inverted-c4": "inverted_8_1-2-2-21+c4+rpn+cascade_2_64+96x64",
    "mobilenetv2": "mobilenetv2_25+fpn_1-7_32p+norpn+retina_32_1+96x64",
    "mobilenetv2-c4": "mobilenetv2_50+c4+rpn+rcnn_64+90x70",
    "garpn": "basicblock_8_1-2-2+fpn_2-4_32+garpn+rcnn_64+96x64",
    "garpn-odd-size": "basicblock_8_1-2-2-1+fpn_3-6_32+garpn+cascade_2_64+90x70",
    "garpn-c4": "bottleneck_8_1-2-2-21+c4+garpn+cascade_2_64+96x64",
    "retina": "basicblock_8_1-2-2+fpn_3-6_32+norpn+retina_32_2+96x64",
    "fcos": "basicblock_8_1-2-2+fpn_2-5_32+norpn+fcos_32_2+96x64",
    "fcos-odd-size": "basicblock_8_1-2-2+fpn_3-4_32+norpn+fcos_32_1+90x70",
}


def some_images(architecture: Architecture, count: int) -> tuple[torch.Tensor, list[Target]]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, architecture.input_height, architecture.input_width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[4.0, 6.0, 40.0, 44.0], [20.0, 10.0, 60.0, 60.0]])
    some, none = Target(boxes, torch.tensor([0, 4])), Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    return images, [some, none] * (count // 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_one_training_step_reaches_every_parameter(name):
    torch.manual_seed(0)
    architecture = Architecture.parse(HEADS[name])
    detector = build_detector(architecture, 5)
    losses = detector.loss(*some_images(architecture, 4))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    for parameter_name, parameter in detector.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_batch_norm_is_in_the_backbone_and_its_blocks_on_rois_only(name):
    detector = build_detector(Architecture.parse(HEADS[name]), 5, norm="bn", device="meta")
    own = {part for part, _ in detector.named_modules() if part.startswith("backbone.") or ".blocks." in part}
    for part, module in detector.named_modules():
        assert not isinstance(module, WSConv2d), part
        if isinstance(module, torch.nn.Conv2d):
            assert (module.bias is None) == (part in own), part
        if isinstance(module, torch.nn.BatchNorm2d):
            assert part in own, part
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            assert name.startswith("fcos"), part
            assert part.startswith(("head.classify.", "head.regress.")), part


@pytest.mark.parametrize("name", HEADS)
def test_images_without_objects_train(name):
    architecture = Architecture.parse(HEADS[name])
    images, _ = some_images(architecture, 2)
    nothing = [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))] * 2
    losses = build_detector(architecture, 5).loss(images, nothing)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses[next(key for key in losses if key.endswith("_box"))] == 0


@pytest.mark.parametrize("name", HEADS)
def test_detections_are_well_formed_and_folding_keeps_them(name):
    torch.manual_seed(0)
    architecture = Architecture.parse(HEADS[name])
    detector = build_detector(architecture, 5).eval()
    images, _ = some_images(architecture, 2)
    with torch.inference_mode():
        found = detector(images)
        folded = deployable(detector)
        for a, b in zip(found, folded(images), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    assert isinstance(found, Detections)
    assert not any(isinstance(module, WSConv2d) for module in folded.modules())
    assert found.boxes.shape[2] == 4
    for num, boxes, scores, labels in zip(*found, strict=True):
        assert (scores[:-1] >= scores[1:]).all()
        assert (scores[:num] > 0).all()
        assert (scores[num:] == 0).all()
        assert (boxes[num:] == 0).all()
        assert ((labels >= 0) & (labels < 5)).all()
        real = boxes[:num]
        assert (real[:, 2:] > real[:, :2]).all()
        assert (real >= 0).all()
        assert (real[:, 0::2] <= architecture.input_width).all()
        assert (real[:, 1::2] <= architecture.input_height).all()


def test_a_batch_detects_what_its_images_detect_alone():
    torch.manual_seed(1)
    architecture = Architecture.parse(HEADS["cascade"])
    detector = deployable(build_detector(architecture, 3))
    images, _ = some_images(architecture, 4)
    together = detector(images)
    for index in range(4):
        alone = detector(images[index : index + 1])
        torch.testing.assert_close(together.scores[index], alone.scores[0], atol=1e-4, rtol=1e-4)
        assert together.num[index] == alone.num[0]


def random_architectures(count: int) -> list[Architecture]:
    rng = np.random.default_rng(7)
    found = []
    for preset in ("nano", "small", "paper"):
        space = load_space(preset)
        while len(found) < count * {"nano": 0.6, "small": 0.9, "paper": 1.0}[preset]:
            architecture = sample_structural(space, rng)
            found.append(sample_modular(space, architecture, rng) if rng.random() < 0.5 else architecture)
    return found


@pytest.mark.slow
def test_workloads_add_up_to_the_whole_detector():
    flops: dict[str, int] = {}  # a key decides the work, so each is counted once

    def counted(part: Workload) -> int:
        if part.key not in flops:
            flops[part.key] = part.flops
        return flops[part.key]

    for architecture in random_architectures(10):
        parts = detector_workloads(architecture, 7)
        detector = deployable(build_detector(architecture, 7, device="meta"))
        whole = end_to_end_workload(detector)
        own = sum(parameter.numel() for parameter in detector.parameters())
        assert sum(part.parameters for part in parts) == own == whole.parameters, str(architecture)
        assert sum(counted(part) for part in parts) == whole.flops, str(architecture)


def test_flops_of_blocks_equal_the_formula():
    parts = {part.name: part.flops for part in detector_workloads(Architecture.parse(HEADS["rcnn"]), 5)}
    # a convolution: 2 * kernel area * channels in * channels out * cells out; the canvas is 96 x 64
    assert parts["backbone.stem"] == 2 * 9 * 3 * 8 * (48 * 32)
    assert parts["backbone.reduce"] == 2 * 9 * 8 * 8 * (24 * 16)
    assert parts["backbone.stage1.block1"] == 2 * (2 * 9 * 8 * 8 * (24 * 16))
    assert parts["backbone.stage2.block1"] == 2 * (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16) * (12 * 8)
    assert parts["roi1.head"] == 2 * 100 * (32 * 49 * 64 + 64 * 64 + 64 * 6 + 64 * 20)


def test_equal_blocks_share_a_key_and_different_ones_do_not():
    small = {w.name: w.key for w in detector_workloads(Architecture.parse(HEADS["rcnn"]), 5)}
    deeper = {
        w.name: w.key
        for w in detector_workloads(Architecture.parse("basicblock_8_11-2-2+fpn_2-4_32+rpn+rcnn_64+96x64"), 5)
    }
    assert deeper["backbone.stage1.block1"] == deeper["backbone.stage1.block2"] == small["backbone.stage1.block1"]
    assert small["neck"] == deeper["neck"]
    other_classes = {w.name: w.key for w in detector_workloads(Architecture.parse(HEADS["rcnn"]), 6)}
    assert other_classes["neck"] == small["neck"]
    assert other_classes["roi1.head"] != small["roi1.head"]
    wider = {
        w.name: w.key
        for w in detector_workloads(Architecture.parse("basicblock_16_1-2-2+fpn_2-4_32+rpn+rcnn_64+96x64"), 5)
    }
    assert wider["backbone.stage1.block1"] != small["backbone.stage1.block1"]


def test_keys_do_not_depend_on_the_device_of_the_weights():
    architecture = Architecture.parse(HEADS["c4-blocks-on-rois"])
    on_meta = [w.key for w in detector_workloads(architecture, 5)]
    assert on_meta == [w.key for w in detector_workloads(architecture, 5, device="cpu")]


def test_no_classes_are_refused():
    with pytest.raises(UserError, match="at least one class, but got 0"):
        build_detector(Architecture.parse(HEADS["rcnn"]), 0)


def test_cascade_stages_sharpen():
    detector = build_detector(Architecture.parse(HEADS["cascade4"]), 3)
    assert isinstance(detector, TwoStageDetector)
    scales = [stage.coder.weights[0] for stage in detector.roi_stages]
    assert scales == [10.0, 20.0, 30.0, 40.0]


def test_options_follow_the_input_size():
    large = build_detector(
        Architecture.parse("basicblock_64_11-21-21-21+fpn_2-6_256+rpn+rcnn_1024+800x600"), 80, device="meta"
    )
    small = build_detector(Architecture.parse(HEADS["rcnn"]), 80, device="meta")
    assert (large.options.proposals, large.options.anchor_cells) == (1000, (8.0,))
    assert (small.options.proposals, small.options.anchor_cells) == (100, (2.0, 4.0))
    assert large.options.roi_overlaps == small.options.roi_overlaps == (0.5, 0.6, 0.7, 0.75)


def test_guided_anchors_ask_more_of_fewer_proposals():
    for name, proposals in (("basicblock_64_11-21-21-21+fpn_2-6_256+garpn+cascade_3_1024+800x600", 300), ("garpn", 30)):
        options = build_detector(Architecture.parse(HEADS.get(name, name)), 3, device="meta").options
        assert (options.proposals, options.roi_overlaps[:3]) == (proposals, (0.6, 0.7, 0.75))
