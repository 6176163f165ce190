"""MAE-DET's score against its formula, written here again, against a forward pass, and against published anchors."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from entropy_forward import forward_entropy
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from smnas.models.backbones.by_family import build_backbone
from smnas.scoring.by_name import get_scorer
from smnas.scoring.entropy import ENTROPY_FORMS, EntropyForm, backbone_entropy, detector_entropy
from smnas.scoring.entropy_population import entropy_of
from smnas.space.architecture import Architecture, Backbone, parse_backbone
from smnas.space.convolutions import layers, multiply_adds, parameters
from smnas.space.families.super_blocks import MoveBounds, SuperBlockPopulation, SuperBlockSpec, mutate_super_blocks
from smnas.space.preset import load_space
from smnas.space.sampling import sample_modular, sample_structural
from smnas.space.super_block_cost import population_cost

R50 = parse_backbone("k1kxk1_64_256b64k3r3-512b128k3r4-1024b256k3r6-2048b512k3r3")
SIX = parse_backbone("k1kxk1_64_256b64k3r1-512b64k5r2-768b128k3r1.1024b128k3r3-2048b256k5r1")
WRITTEN = [
    "basicblock_16_11-21-21-21",
    "bottleneck_64_111-2111-211111-211",
    "resnext4x8_16_1-211-2",
    "inverted_16_11-2-2",
    "mobilenetv2_75",
    "k1kxk1_8_16b8k3r1-24b8k5r2-24b16k3r1.32b8k3r1-40b8k5r1",
]


def test_the_published_anchor() -> None:
    # the published implementation's score of its ResNet-50-like backbone, whose stem has a 7x7 kernel
    assert backbone_entropy(R50, stem="imagenet") == pytest.approx(1174.298, abs=5e-4)


def by_formula(spec: Backbone, form: EntropyForm, stem: str, size: tuple[int, int]) -> float:
    """The score off the modules themselves: 0.5 ln(C_in k^2) of every convolution but the shortcuts'."""
    with torch.device("meta"):
        backbone = build_backbone(spec, "bn", stem)  # type: ignore[arg-type]
    images = torch.empty(1, 3, size[1], size[0], dtype=torch.uint8, device="meta")
    maps = backbone(images)
    before, score = 0.0, 0.0
    pending: list[nn.Conv2d] = []
    for link in backbone.chain():
        found = [(name, m) for name, m in link.module.named_modules() if isinstance(m, nn.Conv2d)]
        pending += [m for name, m in found if not name.startswith("downsample")]
        if link.level is None:
            continue
        for conv in pending:
            before += 0.5 * math.log(conv.in_channels * conv.kernel_size[0] ** 2)
        pending = []
        channels, height, width = maps[link.level].shape[1:]
        weight = form.weights[link.level - 1]
        if form.by_resolution:
            score += weight * (math.log(channels) + math.log(height * width)) * before
        else:
            score += weight * (before + math.log(channels))
    return score


@pytest.mark.slow
@pytest.mark.parametrize("text", WRITTEN)
@pytest.mark.parametrize("stem", ["deep", "imagenet"])
@pytest.mark.parametrize("form", [*ENTROPY_FORMS.values(), EntropyForm((1, 0, 2, 0.5, 3))])
def test_the_closed_form_is_the_formula(text: str, stem: str, form: EntropyForm) -> None:
    spec = parse_backbone(text)
    expected = by_formula(spec, form, stem, (250, 130))
    assert backbone_entropy(spec, form, stem=stem, size=(250, 130)) == pytest.approx(expected, abs=1e-9)  # type: ignore[arg-type]


def test_the_weights_of_the_forms() -> None:
    assert ENTROPY_FORMS["entropy"].weights == (0, 0, 1, 1, 6)
    assert ENTROPY_FORMS["entropy-16"].weights == (0, 0, 1, 1, 16)
    deepmad = ENTROPY_FORMS["entropy-deepmad"]
    assert deepmad.by_resolution
    assert deepmad.weights == (1, 1, 1, 1, 8)
    # a larger image has more cells, and only that form sees it
    small, large = (
        [backbone_entropy(R50, form, size=(side, side)) for form in ENTROPY_FORMS.values()] for side in (240, 480)
    )
    assert small[:2] == large[:2]
    assert small[2] < large[2]


def random_backbones(count: int) -> list[Backbone]:
    """Of every kind: coded ones of the nano space, and super-blocks."""
    space = load_space("nano")
    rng = np.random.default_rng(3)
    seed = parse_backbone("k1kxk1_16_32b16k3r1-64b16k3r1-128b32k3r1")
    assert isinstance(seed, SuperBlockSpec)
    walked, _ = mutate_super_blocks(SuperBlockPopulation.copies(seed, count), MoveBounds(layers=31), rng, 20)
    coded = [sample_modular(space, sample_structural(space, rng), rng).backbone for _ in range(count)]
    return [walked.spec(row) if row % 3 == 0 else coded[row] for row in range(count)]


@pytest.mark.slow
def test_a_forward_pass_orders_backbones_as_the_closed_form_does() -> None:
    backbones = random_backbones(50)
    closed = [backbone_entropy(spec) for spec in backbones]
    forward = [forward_entropy(spec, seed=row, size=(64, 64)) for row, spec in enumerate(backbones)]
    assert spearmanr(closed, forward).statistic >= 0.99
    assert np.mean(np.array(forward) < np.array(closed)) > 0.9, "padding takes entropy away"


@pytest.mark.parametrize("text", ["basicblock_64_11-21-21", "k1kxk1_64_128b64k3r1-256b64k5r2-256b128k3r1-256b128k5r1"])
def test_padding_is_the_difference_of_the_forward_pass(text: str) -> None:
    """A kernel at the border reads fewer cells: the variance that is left, cell by cell, gives the forward pass."""
    spec, side = parse_backbone(text), 64
    with torch.device("meta"):
        backbone = build_backbone(spec, "bn", "deep")
    variance = torch.ones(1, 1, side, side)  # of every cell, 1 in the mean as after the division
    missing, gap = 0.0, 0.0
    for link in backbone.chain():
        for name, conv in link.module.named_modules():
            if not isinstance(conv, nn.Conv2d) or name.startswith("downsample"):
                continue
            kernel = conv.kernel_size[0]
            ones = torch.ones(1, 1, kernel, kernel)
            variance = F.conv2d(variance, ones, stride=conv.stride, padding=conv.padding)
            missing += 0.5 * math.log(float(variance.mean()) / kernel**2)
            variance = variance / variance.mean()
        if link.level is not None:
            gap += (0, 0, 1, 1, 6)[link.level - 1] * missing
    closed = backbone_entropy(spec)
    drawn = [forward_entropy(spec, seed=seed, size=(side, side), batch=4) - closed for seed in range(8)]
    assert gap < -1.0
    assert np.mean(drawn) == pytest.approx(gap, abs=0.1 * abs(gap))


@pytest.mark.parametrize("form", [*ENTROPY_FORMS.values()])
@pytest.mark.parametrize("stem", ["deep", "imagenet"])
def test_a_population_has_the_numbers_of_its_members(form: EntropyForm, stem: str) -> None:
    assert isinstance(SIX, SuperBlockSpec)
    kernel = 7 if stem == "imagenet" else 3
    population, _ = mutate_super_blocks(
        SuperBlockPopulation.copies(SIX, 40), MoveBounds(), np.random.default_rng(0), 20
    )
    size = (333, 190)
    entropy = entropy_of(population, form, stem_kernel=kernel, size=size)
    cost = population_cost(population, size, stem_kernel=kernel)
    for row in range(len(population)):
        spec = population.spec(row)
        convolutions = spec.convolutions(stem)  # type: ignore[arg-type]
        assert entropy[row] == pytest.approx(backbone_entropy(spec, form, stem=stem, size=size), abs=1e-9)  # type: ignore[arg-type]
        assert cost.multiply_adds[row] == multiply_adds(convolutions, *size)
        assert cost.parameters[row] == parameters(convolutions)
        assert cost.layers[row] == layers(convolutions)


@pytest.mark.parametrize("name", ENTROPY_FORMS)
def test_the_scorer_gives_the_score_and_trains_nothing(name: str, tmp_path: Path) -> None:
    architecture = Architecture.parse("basicblock_16_11-21-21-21+fpn_2-5_64+rpn+rcnn_256+128x160")
    scorer = get_scorer(name)
    score = scorer.score(architecture, seed=0, epochs=3, out_dir=tmp_path / "score")
    assert scorer.name == name
    assert score.value == score.metrics["entropy"] == detector_entropy(architecture, ENTROPY_FORMS[name])
    assert score.metrics["layers"] == 18, "the deep stem's two and two to a block"
    assert (score.seconds, score.epochs, score.checkpoint) == (0.0, 0, None)
    assert not (tmp_path / "score").exists()
