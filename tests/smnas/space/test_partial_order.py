"""The partial order's laws by hypothesis, and its meaning on examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas.space.architecture import Architecture, FPNSpec, RCNNSpec, RPNKind
from smnas.space.families.resnet import ResNetSpec
from smnas.space.mutation import mutate_modular
from smnas.space.partial_order import not_larger
from smnas.space.preset import load_space
from smnas.space.sampling import sample_structural

NANO = load_space("nano")

# Few bases and short codes, so that comparable pairs are common.
codes = st.lists(st.from_regex(r"[12]{1,3}", fullmatch=True), min_size=2, max_size=2).map("-".join)
backbones = st.builds(ResNetSpec, st.just("basicblock"), st.sampled_from([8, 16, 32]), codes)
architectures = st.builds(
    Architecture,
    backbones,
    st.builds(FPNSpec, st.just(2), st.just(4), st.sampled_from([32, 64])),
    st.just(RPNKind.RPN),
    st.builds(RCNNSpec, st.sampled_from([64, 128])),
    st.just(96),
    st.just(96),
)


def widths_fit(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """The definition, searched exhaustively: a's blocks, in order, each onto a block of b that is as wide."""
    if not a:
        return True
    return any(b[i] >= a[0] and widths_fit(a[1:], b[i + 1 :]) for i in range(len(b)))


@given(architectures)
def test_reflexive(a: Architecture) -> None:
    assert not_larger(a, a)


@given(architectures, architectures)
@settings(max_examples=500)
def test_antisymmetric(a: Architecture, b: Architecture) -> None:
    if not_larger(a, b) and not_larger(b, a):
        assert a == b


@given(architectures, architectures, architectures)
@settings(max_examples=1000)
def test_transitive(a: Architecture, b: Architecture, c: Architecture) -> None:
    if not_larger(a, b) and not_larger(b, c):
        assert not_larger(a, c)


@given(architectures, architectures)
@settings(max_examples=500)
def test_equals_the_definition_by_exhaustive_assignment(a: Architecture, b: Architecture) -> None:
    assert isinstance(a.backbone, ResNetSpec)
    assert isinstance(b.backbone, ResNetSpec)
    stages = zip(a.backbone.stage_widths(), b.backbone.stage_widths(), strict=True)
    expected = (
        a.backbone.base <= b.backbone.base
        and a.neck.width <= b.neck.width  # type: ignore[union-attr]
        and a.head.width <= b.head.width
        and all(widths_fit(x, y) for x, y in stages)
    )
    assert not_larger(a, b) == expected


@given(st.integers(0, 2**32 - 1))
def test_not_larger_means_no_more_blocks_and_no_wider_output(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = sample_structural(NANO, rng)
    b = mutate_modular(NANO, a, rng)
    for small, large in ((a, b), (b, a)):
        if not_larger(small, large):
            assert isinstance(small.backbone, ResNetSpec)
            assert isinstance(large.backbone, ResNetSpec)
            assert small.backbone.depth <= large.backbone.depth
            assert small.backbone.stage_widths()[-1][-1] <= large.backbone.stage_widths()[-1][-1]


TAIL = "+fpn_2-4_32+rpn+rcnn_64+96x96"


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [
        ("basicblock_8_1-2-2" + TAIL, "basicblock_8_1-21-2" + TAIL, True),
        ("basicblock_8_1-2-2" + TAIL, "basicblock_12_1-2-2" + TAIL, True),
        ("basicblock_8_1-21-2" + TAIL, "basicblock_8_1-12-2" + TAIL, False),  # doubles earlier: wider somewhere
        ("basicblock_8_1-12-2" + TAIL, "basicblock_8_1-21-2" + TAIL, True),
        ("basicblock_8_11-2-2" + TAIL, "basicblock_16_1-2-2" + TAIL, False),  # deeper but narrower: incomparable
        ("basicblock_8_1-2-2" + TAIL, "bottleneck_8_1-2-2" + TAIL, False),
        ("basicblock_8_1-2-2" + TAIL, "basicblock_8_1-2-2-2" + TAIL, False),
        ("basicblock_8_1-2-2" + TAIL, "basicblock_8_1-2-2+fpn_2-4_48+rpn+rcnn_64+96x96", True),
        ("basicblock_8_1-2-2" + TAIL, "basicblock_8_1-2-2+fpn_2-5_48+rpn+rcnn_64+96x96", False),
        ("basicblock_8_1-2-2" + TAIL, "basicblock_8_1-2-2+c4+rpn+rcnn_64+96x96", False),
        ("basicblock_8_1-2-2" + TAIL, "basicblock_8_1-2-2+fpn_2-4_32+rpn+rcnn_64+128x128", False),
        ("basicblock_8_1-2-2" + TAIL, "basicblock_8_1-2-2+fpn_2-4_32+rpn+cascade_2_64+96x96", False),
        ("basicblock_8_1-2-2" + TAIL, "basicblock_8_1-2-2+fpn_2-4_32+garpn+rcnn_64+96x96", False),
        ("mobilenetv2_50" + TAIL, "mobilenetv2_100" + TAIL, True),
        ("mobilenetv2_50" + TAIL, "basicblock_8_1-2-2" + TAIL, False),
        ("mobilenetv2_50" + TAIL, "inverted_48_1-2-2" + TAIL, False),
        ("inverted_8_1-2-2" + TAIL, "inverted_12_11-2-2" + TAIL, True),
        ("inverted_8_1-2-2" + TAIL, "basicblock_8_1-2-2" + TAIL, False),
        ("resnext64x4_8_1-2-2" + TAIL, "resnext64x4_16_1-2-2" + TAIL, True),
        ("resnext_8_1-2-2" + TAIL, "resnext64x4_16_1-2-2" + TAIL, False),
        (
            "inverted_8_1-2-2+fpn_2-5_32c+rpn+rcnn_64+96x96",
            "inverted_8_1-2-2+fpn_2-5_48c+rpn+rcnn_64+96x96",
            True,
        ),
        (
            "inverted_8_1-2-2+fpn_2-5_32+rpn+rcnn_64+96x96",
            "inverted_8_1-2-2+fpn_2-5_32c+rpn+rcnn_64+96x96",
            False,
        ),
        (
            "basicblock_8_1-2-2+c4+rpn+cascade_2_64+96x96",
            "basicblock_8_1-2-2+c4+rpn+cascade_2_128+96x96",
            True,
        ),
        (
            "basicblock_8_1-2-2+c4+rpn+cascade_2_64+96x96",
            "basicblock_8_1-2-2+c4+rpn+cascade_3_64+96x96",
            False,
        ),
        (
            "basicblock_8_1-2-2+fpn_2-4_32+norpn+retina_32_1+96x96",
            "basicblock_8_1-2-2+fpn_2-4_32+norpn+retina_32_2+96x96",
            True,
        ),
        (
            "basicblock_8_1-2-2+fpn_2-4_32+norpn+fcos_32_1+96x96",
            "basicblock_8_1-2-2+fpn_2-4_32+norpn+fcos_48_2+96x96",
            True,
        ),
        (
            "basicblock_8_1-2-2+fpn_2-4_32+norpn+fcos_32_2+96x96",
            "basicblock_8_1-2-2+fpn_2-4_32+norpn+fcos_48_1+96x96",
            False,
        ),
        (
            "basicblock_8_1-2-2+fpn_2-4_32+norpn+fcos_32_1+96x96",
            "basicblock_8_1-2-2+fpn_2-4_32+norpn+retina_32_1+96x96",
            False,
        ),
    ],
)
def test_examples(small: str, large: str, expected: bool) -> None:
    assert not_larger(Architecture.parse(small), Architecture.parse(large)) is expected


@pytest.mark.parametrize(
    ("other", "smaller"),
    [
        ("k1kxk1_16_64b16k3r2-128b32k3r3", True),
        ("k1kxk1_8_64b16k3r2-128b32k3r3", True),
        ("k1kxk1_16_64b16k3r1-128b24k3r3", True),
        ("k1kxk1_16_64b16k5r2-128b32k3r3", False),
        ("k1kxk1_16_64b16k3r1-128b40k3r3", False),
        ("k1kxk1_16_64b16k3r2.64b16k3r1-128b32k3r3", False),
        ("bottleneck_16_11-211", False),
    ],
)
def test_super_blocks_compare_one_by_one(other: str, smaller: bool) -> None:
    frame = "+fpn_2-3_32+rpn+rcnn_64+96x96"
    whole = Architecture.parse("k1kxk1_16_64b16k3r2-128b32k3r3" + frame)
    assert not_larger(Architecture.parse(other + frame), whole) is smaller
