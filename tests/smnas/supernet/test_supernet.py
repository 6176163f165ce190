"""Shared weights: every detector of a space is made of slices, and extraction changes nothing."""

from dataclasses import replace
from itertools import cycle, product
from pathlib import Path

import numpy as np
import pytest
import torch
from narrow_space import narrowed

import smnas.supernet.supernet as module
from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.data.loader import TrainLoader
from smnas.data.shapes import generate_shapes
from smnas.deploy.export import export_detector
from smnas.inference.runtime import OnnxDetector
from smnas.models.build import build_detector
from smnas.space.architecture import Architecture
from smnas.space.families.resnet import ResNetSpec
from smnas.space.preset import load_space
from smnas.supernet.supernet import Supernet
from smnas.supernet.training import load_supernet, train_supernet
from smnas.training.checkpoint import Checkpoint, CheckpointError, CheckpointInfo, save_checkpoint
from smnas.training.recipe import load_recipe

CODED = narrowed(
    load_space("nano"),
    "basicblock_8_1-2-2+fpn_2-4_16+rpn+rcnn_32+64x64",
    {
        "blocks": ("basicblock", "bottleneck", "inverted"),
        "bases": (8, 12),
        "stages": (3, 4),
        "max_blocks": 5,
        "max_doublings": 2,
        "fpn_widths": (8, 16),
        "head_widths": {"rcnn": (16, 32), "fcos": (8, 16)},
    },
    backbones=("basicblock_8_1-2-2", "bottleneck_8_1-2-1", "inverted_8_1-1-2", "basicblock_8_1-2-1-1"),
    necks=("c4", "fpn_2-4_16", "fpn_3-4_16"),
    heads=("rcnn_32", "cascade_2_16", "retina_16_1", "retina_16_2", "fcos_16_1"),
    inputs=("64x64", "96x64"),
)
MBCONV = narrowed(
    load_space("nano"),
    "mbconv_8_8k3e3-16k3e3-16k3e3+fpn_2-4_16+norpn+retina_16_1+64x64",
    {
        "stages": (3,),
        "mbconv_widths": (8, 12, 16),
        "mbconv_expansions": (1, 3, 4),
        "mbconv_layers": 2,
        "fpn_widths": (8, 16),
    },
    backbones=("mbconv_8_8k3e3-16k3e3-16k3e3",),
    necks=("fpn_2-4_16",),
    rpns=("norpn",),
    heads=("retina_16_1",),
    inputs=("64x64",),
)


@pytest.fixture(scope="module")
def supernets() -> dict[str, Supernet]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"coded": Supernet(CODED, 3).eval(), "mbconv": Supernet(MBCONV, 3).eval()}


@pytest.mark.parametrize("name", ["coded", "mbconv"])
def test_an_extracted_detector_is_an_ordinary_one_with_the_outputs_of_the_activated(
    name: str, supernets: dict[str, Supernet]
) -> None:
    supernet, rng = supernets[name], np.random.default_rng(1)
    found = 0
    for number in range(12):
        size = supernet.space.inputs[number % len(supernet.space.inputs)]
        architecture = supernet.draw(size, rng)
        images = torch.randint(0, 256, (1, 3, size[1], size[0]), dtype=torch.uint8)
        before = torch.get_rng_state()
        extracted = supernet.extract(architecture)
        assert torch.equal(torch.get_rng_state(), before)
        ordinary = build_detector(architecture, 3)
        assert repr(extracted) == repr(ordinary)
        assert [(n, p.shape) for n, p in extracted.named_parameters()] == [
            (n, p.shape) for n, p in ordinary.named_parameters()
        ]
        assert not any(p.requires_grad is False for p in extracted.parameters())
        with torch.no_grad():
            expected, got = supernet(images, architecture), extracted(images)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        found += int(got.num.sum())
    assert found > 0  # the comparison compared something


def test_every_code_within_the_bounds_is_held(supernets: dict[str, Supernet]) -> None:
    bounds, baseline = CODED.modular, Architecture.parse(CODED.baseline)
    codes = [
        "".join(a + "-" * b for a, b in zip(digits, (*borders, False), strict=True))
        for length in range(3, 6)
        for digits in product("12", repeat=length)
        for borders in product((False, True), repeat=length - 1)
    ]
    inside = [code for code in codes if bounds.contains_code(code)]
    assert len(inside) == sum(map(bounds.code_count, bounds.stages))
    for code, block in zip(inside[::2], cycle(bounds.blocks), strict=False):
        assert supernets["coded"].holds(replace(baseline, backbone=ResNetSpec(block, 12, code))), code


def test_slices_are_the_first_channels_and_layers_and_the_centre_of_the_kernel(supernets: dict[str, Supernet]) -> None:
    supernet = supernets["mbconv"]
    small = supernet.extract(
        Architecture.parse("mbconv_8_8k3e3-12k3e1-12k5e4+fpn_2-4_8+norpn+retina_16_1+64x64")
    ).state_dict()
    large = supernet.extract(
        Architecture.parse("mbconv_8_8k7e4-16k7e4.k7e4-16k7e4+fpn_2-4_16+norpn+retina_16_1+64x64")
    ).state_dict()
    depthwise = "backbone.stage1.0.conv.1.0.weight"
    torch.testing.assert_close(small[depthwise], large[depthwise][:24, :, 2:5, 2:5])
    # without expansion, the depthwise convolution is the first of the block
    unexpanded = large["backbone.stage2.0.conv.1.0.weight"][:8, :, 2:5, 2:5]
    torch.testing.assert_close(small["backbone.stage2.0.conv.0.0.weight"], unexpanded)
    lateral = "neck.lateral.2.0.weight"
    torch.testing.assert_close(small[lateral], large[lateral][:8, :12])


def test_pyramids_of_other_levels_share_what_is_of_one_level(supernets: dict[str, Supernet]) -> None:
    fine, coarse = (
        supernets["coded"].extract(Architecture.parse(f"basicblock_8_1-2-2+fpn_{low}-4_16+norpn+fcos_16_1+64x64"))
        for low in (2, 3)
    )
    assert fine.neck is not None
    assert coarse.neck is not None
    torch.testing.assert_close(
        fine.neck.state_dict()["smooth.1.0.weight"], coarse.neck.state_dict()["smooth.0.0.weight"]
    )


def test_gradients_reach_the_slices_alone(supernets: dict[str, Supernet]) -> None:
    supernet = supernets["mbconv"]
    detector = supernet.activate(Architecture.parse(MBCONV.baseline))
    assert not list(detector.parameters())
    logits, _ = detector.head(*detector.features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)))
    logits.sum().backward()
    weight = supernet.get_parameter("mbconv/stage1/0/conv/1/0/weight")
    assert weight.grad is not None
    outside = weight.grad.clone()
    outside[:24, :, 2:5, 2:5] = 0
    assert weight.grad.abs().sum() > 0
    assert outside.abs().sum() == 0
    supernet.zero_grad(set_to_none=True)


def test_what_is_not_of_the_space_is_refused(supernets: dict[str, Supernet]) -> None:
    wider = Architecture.parse("mbconv_8_8k3e3-24k3e3-24k3e3+fpn_2-4_16+norpn+retina_16_1+64x64")
    assert not supernets["mbconv"].holds(wider)
    with pytest.raises(UserError, match="must be those of the detector's space, but got mbconv_8_8k3e3-24"):
        supernets["mbconv"].extract(wider)
    with pytest.raises(UserError, match="gn-ws or gn, but got bn"):
        Supernet(MBCONV, 3, norm="bn")


def test_a_space_that_is_too_large_for_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 10)
    with pytest.raises(UserError, match=r"must fit in memory, but nano has over 0 million; narrow its bounds"):
        Supernet(MBCONV, 3)


def test_loaders_that_take_turns_make_each_batch_once(tmp_path: Path) -> None:
    split = CocoFolder(generate_shapes(tmp_path, train=14, val=1, width=32, height=32)).split("train")
    alone = TrainLoader(split, 32, 32, 2, seed=3, workers=0)
    for epoch in range(2):
        turns = [list(TrainLoader(split, 32, 32, 2, seed=3, turn=(i, 3), workers=0).epoch(epoch)) for i in range(3)]
        for step, batch in enumerate(alone.epoch(epoch)):
            mine = turns[(step + epoch) % 3].pop(0)
            assert torch.equal(mine.images, batch.images)
        assert not any(turns)


@pytest.mark.slow
def test_the_file_of_an_extracted_detector_finds_the_same_boxes(supernets: dict[str, Supernet], tmp_path: Path) -> None:
    architecture = Architecture.parse("bottleneck_8_1-21-1+fpn_2-4_16+norpn+fcos_16_1+96x64")
    extracted = supernets["coded"].extract(architecture)
    info = CheckpointInfo(
        str(architecture), ("a", "b", "c"), (1, 2, 3), "gn-ws", "deep", load_recipe("nano"), 0, 1, epoch=8
    )
    save_checkpoint(tmp_path / "checkpoint.pt", Checkpoint(info, extracted.state_dict()))
    report = export_detector(tmp_path / "checkpoint.pt", tmp_path / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    found = OnnxDetector(report.path, threads=1)(images)
    with torch.no_grad():
        expected = supernets["coded"](torch.from_numpy(images), architecture)
    assert int(found.num[0]) == int(expected.num[0]) > 0
    np.testing.assert_allclose(found.boxes[0], expected.boxes[0].numpy(), atol=0.05)
    np.testing.assert_allclose(found.scores[0], expected.scores[0].numpy(), atol=1e-3)


@pytest.mark.slow
def test_a_training_run_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    data = CocoFolder(generate_shapes(tmp_path / "data", train=8, val=2, width=64, height=64))
    recipe = load_recipe("nano").with_(epochs=2, batch_size=2, ema_decay=0.9)
    whole = train_supernet(MBCONV, data, recipe, out_dir=tmp_path / "whole", seed=1)

    def kill(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_supernet(MBCONV, data, recipe, out_dir=tmp_path / "killed", seed=1, on_epoch=kill)
    with pytest.raises(CheckpointError, match=r"trained to the end, but .* after 1 of 2 epochs"):
        load_supernet(tmp_path / "killed", MBCONV)
    resumed = train_supernet(MBCONV, data, recipe, out_dir=tmp_path / "killed", seed=1)
    read = load_supernet(tmp_path / "killed", MBCONV)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])
        assert torch.equal(weight, read.state_dict()[name])
    again = train_supernet(MBCONV, data, recipe, out_dir=tmp_path / "killed", seed=1, on_epoch=kill)  # only read
    assert torch.equal(next(again.parameters()), next(whole.parameters()))
    with pytest.raises(CheckpointError, match="one run"):
        train_supernet(MBCONV, data, recipe, out_dir=tmp_path / "killed", seed=2)
    with pytest.raises(CheckpointError, match="shared weights are those of the supernet of"):
        load_supernet(tmp_path / "killed", CODED)
