"""The architecture string: round trips, refusals, and the counts of the published networks."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UserError
from smnas.space.architecture import (
    Architecture,
    ArchitectureError,
    C4Spec,
    CascadeSpec,
    ExtraLevels,
    FCOSSpec,
    FPNSpec,
    RCNNSpec,
    RetinaSpec,
    RPNKind,
)
from smnas.space.families.mobilenetv2 import MobileNetV2Spec
from smnas.space.families.resnet import BlockKind, ResNetSpec
from smnas.space.families.super_blocks import SuperBlock, SuperBlockSpec

bases = st.integers(4, 256).map(lambda half: 2 * half)


def with_doublings(code: str, most: int) -> str:
    """The code with a 1 instead of every 2 after the first ``most``."""
    first = code.split("2")
    return "2".join(first[: most + 1]) + "".join("1" + rest for rest in first[most + 1 :])


# 512 channels, doubled four times, are as wide as the language allows
codes = st.lists(st.from_regex(r"[12]{1,25}", fullmatch=True), min_size=1, max_size=4).map(
    lambda stages: with_doublings("-".join(stages), 4)
)
residual = st.one_of(
    st.builds(ResNetSpec, st.sampled_from(get_args(BlockKind)), bases, codes),
    st.builds(ResNetSpec, st.just("resnext"), bases, codes, st.tuples(st.integers(2, 256), st.integers(1, 256))),
)
even = st.integers(4, 2048).map(lambda n: 2 * n)
super_blocks = st.builds(SuperBlock, even, even, st.sampled_from((3, 5)), st.integers(1, 99))
super_block_stages = st.lists(st.lists(super_blocks, min_size=1, max_size=2).map(tuple), min_size=1, max_size=4)
super_block_backbones = st.builds(
    SuperBlockSpec, st.integers(4, 256).map(lambda n: 2 * n), super_block_stages.map(tuple)
)
pyramids = st.builds(
    lambda levels, width, extra: FPNSpec(min(levels), max(levels), 8 * width, extra),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.integers(1, 128),
    st.sampled_from(get_args(ExtraLevels)),
)
heads = st.one_of(
    st.builds(RCNNSpec, st.integers(1, 512).map(lambda n: 8 * n)),
    st.builds(CascadeSpec, st.integers(2, 4), st.integers(1, 512).map(lambda n: 8 * n)),
    st.builds(RetinaSpec, st.integers(1, 512).map(lambda n: 8 * n), st.integers(1, 8)),
    st.builds(FCOSSpec, st.integers(1, 512).map(lambda n: 8 * n), st.integers(1, 8)),
)


@pytest.mark.slow
@given(
    st.one_of(residual, st.builds(MobileNetV2Spec, st.integers(10, 400)), super_block_backbones),
    st.one_of(st.just(C4Spec()), pyramids),
    st.sampled_from(RPNKind),
    heads,
    st.integers(32, 4096),
    st.integers(32, 4096),
)
def test_str_and_parse_round_trip(backbone, neck, rpn, head, width, height) -> None:  # type: ignore[no-untyped-def]
    try:
        architecture = Architecture(backbone, neck, rpn, head, width, height)
    except ArchitectureError:
        return
    assert Architecture.parse(str(architecture)) == architecture
    assert len(str(architecture)) < 200, "a folder's name has 255 bytes at most"
    assert not set(str(architecture)) & set(" /\\'\"$&|;<>*?()[]{}!~`\n"), "safe in a shell and in a file name"


@given(st.text(max_size=60))
def test_any_other_text_is_refused_as_the_users_mistake(text: str) -> None:
    with pytest.raises(UserError, match=r"(?s), but got "):
        Architecture.parse(text)


@pytest.mark.parametrize(
    ("code", "blocks"),
    [("11-21-21-21", 8), ("111-2111-211111-211", 16), (f"111-2111-2{'1' * 22}-211", 33)],
)
def test_published_resnets(code: str, blocks: int) -> None:
    spec = ResNetSpec("bottleneck", 64, code)
    assert spec.depth == blocks
    assert spec.doublings == 3
    assert spec.top_level == 5
    # Widths of the four stages in He et al. (2016), table 1.
    assert [row[-1] for row in spec.stage_widths()] == [64, 128, 256, 512]
    assert [set(row) for row in spec.stage_widths()] == [{64}, {128}, {256}, {512}]
    assert spec.expansion == 4


def test_widths_double_inside_a_stage_where_the_code_says() -> None:
    assert ResNetSpec("basicblock", 54, "1211-211-1111-12111").stage_widths() == (
        (54, 108, 108, 108),
        (216, 216, 216),
        (216, 216, 216, 216),
        (216, 432, 432, 432, 432),
    )


def test_super_blocks_are_read_stage_by_stage() -> None:
    text = "k1kxk1_64_256b64k3r3-512b128k5r4-768b256k3r3.1024b256k3r2-2048b512k3r3+fpn_2-6_256+rpn+rcnn_1024+800x600"
    spec = Architecture.parse(text).backbone
    assert isinstance(spec, SuperBlockSpec)
    assert spec.stem == 64
    assert list(map(len, spec.stages)) == [1, 1, 2, 1]
    assert spec.stages[2] == (SuperBlock(768, 256, 3, 3), SuperBlock(1024, 256, 3, 2))
    assert spec.stages[1] == (SuperBlock(out=512, width=128, kernel=5, repeats=4),)
    assert (spec.depth, spec.top_level) == (15, 5)


def test_one_network_has_one_string() -> None:
    assert ResNetSpec("resnext", 64, "1-2") == ResNetSpec("resnext", 64, "1-2", (32, 4))
    assert str(ResNetSpec("resnext", 64, "1-2", (32, 4))) == "resnext_64_1-2"
    assert str(ResNetSpec("resnext", 64, "1-2", (32, 8))) == "resnext32x8_64_1-2"
    with pytest.raises(ArchitectureError, match="only resnext has a cardinality"):
        ResNetSpec("bottleneck", 64, "1-2", (32, 8))


def test_the_id_is_stable() -> None:
    # sha256 of the string, by coreutils: printf '%s' STRING | sha256sum | cut -c1-10
    text = "basicblock_64_11-21-21-21+fpn_2-6_256+rpn+rcnn_1024+800x600"
    assert Architecture.parse(text).id == "5c0beb4313"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("basicblock_64_11-21-21-21+fpn_2-6_256+rpn+rcnn_1024", "backbone.neck.rpn.head.WIDTHxHEIGHT"),
        ("basicblock_64_11--21+fpn_2-4_256+rpn+rcnn_1024+96x96", "a backbone code is"),
        ("basicblock_64_1-1-1-1-1+fpn_2-4_256+rpn+rcnn_1024+96x96", "a backbone code is"),
        (
            f"basicblock_8_{'1' * 60}-{'1' * 41}+fpn_2-3_256+rpn+rcnn_1024+96x96",
            "100 blocks at most, but got 101",
        ),
        ("bottleneck_512_222-22+fpn_2-3_256+rpn+rcnn_1024+96x96", "within 8192 channels, but got 16384"),
        ("basicblock_63_1-1+fpn_2-3_256+rpn+rcnn_1024+96x96", "base width is even"),
        ("mobilenetv2_5+fpn_2-3_256+rpn+rcnn_1024+96x96", "between 10 and 400 percent"),
        ("resnext32x4_64_1-1+fpn_2-3_32+rpn+rcnn_64+96x96", "written canonically"),
        ("resnext1x64_64_1-1+fpn_2-3_32+rpn+rcnn_64+96x96", "2 to 256 paths"),
        ("resnext64x0_64_1-1+fpn_2-3_32+rpn+rcnn_64+96x96", "2 to 256 paths"),
        ("bottleneck32x8_64_1-1+fpn_2-3_32+rpn+rcnn_64+96x96", "a backbone is"),
        ("basicblock_8_1-1+fpn_2-3_32c+rpn+rcnn_64+96x96", "only where it reaches above C3"),
        ("basicblock_8_1-1+fpn_2-4_32p+rpn+rcnn_64+96x96", "only for the other way"),
        ("basicblock_8_1-1+fpn_2-4_32c+norpn+retina_64+96x96", "only for the other way"),
        ("basicblock_8_1-1+fpn_2-4_32x+rpn+rcnn_64+96x96", "a neck is"),
        ("basicblock_8_1-1+fpn_4-5_32+rpn+rcnn_64+96x96", "coarsest is C3"),
        ("basicblock_8_1-1+fpn_3-2_32+rpn+rcnn_64+96x96", "low <= high"),
        ("basicblock_8_1-1+fpn_2-3_33+rpn+rcnn_64+96x96", "multiple of 8"),
        ("basicblock_8_1-1+c4+rpn+rcnn_64+96x96", "reaches C4"),
        ("basicblock_8_1-1+fpn_2-3_32+norpn+rcnn_64+96x96", "goes with norpn"),
        ("basicblock_8_1-1+fpn_2-3_32+rpn+retina_64+96x96", "goes with norpn"),
        ("basicblock_8_1-1-1+c4+norpn+retina_64+96x96", "needs a feature pyramid"),
        ("basicblock_8_1-1+fpn_2-3_32+rpn+fcos_64+96x96", "goes with norpn"),
        ("basicblock_8_1-1+fpn_2-3_32+garpn+fcos_64+96x96", "goes with norpn"),
        ("basicblock_8_1-1-1+c4+norpn+fcos_64+96x96", "needs a feature pyramid"),
        ("basicblock_8_1-1+fpn_2-3_32+norpn+fcos_64_9+96x96", "1 to 8 convolutions"),
        ("basicblock_8_1-1+fpn_2-3_32+norpn+fcos_60+96x96", "a head width is a multiple of 8"),
        ("basicblock_8_1-1+fpn_2-3_32+norpn+fcos_64_4+96x96", "written canonically"),
        ("basicblock_8_1-1+fpn_2-3_32+norpn+fcos+96x96", "fcos_WIDTH"),
        ("basicblock_8_1-1+fpn_2-3_32+rpn+cascade_5_64+96x96", "2, 3 or 4 stages"),
        ("basicblock_8_1-1+fpn_2-3_32+rpn+rcnn_64+96x16", "input height"),
        ("basicblock_8_1-1+fpn_2-3_32+rpn+rcnn_064+96x96", "written canonically"),
        ("basicblock_8_1-1+fpn_2-3_32+norpn+retina_64_4+96x96", "written canonically"),
        ("k1kxk1_64+fpn_2-3_32+rpn+rcnn_64+96x96", "k1kxk1_STEM_STAGES|a backbone is"),
        ("k1kxk1_64_256b64-2+fpn_2-3_32+rpn+rcnn_64+96x96", "a super-block is .OUT.b.WIDTH."),
        ("k1kxk1_64_256b64k3r3-+fpn_2-3_32+rpn+rcnn_64+96x96", "a super-block is"),
        ("k1kxk1_64_256b64k4r3+fpn_2-2_32+rpn+rcnn_64+96x96", "kernel is 3 or 5"),
        ("k1kxk1_64_256b61k3r3+fpn_2-2_32+rpn+rcnn_64+96x96", "width is even and from 8 to 4096, but got 61"),
        ("k1kxk1_64_0b64k3r3+fpn_2-2_32+rpn+rcnn_64+96x96", "output is even and from 8"),
        ("k1kxk1_61_256b64k3r3+fpn_2-2_32+rpn+rcnn_64+96x96", "the stem of super-blocks"),
        ("k1kxk1_64_256b64k3r0+fpn_2-2_32+rpn+rcnn_64+96x96", "1 to 99 times"),
        ("k1kxk1_64_256b064k3r3+fpn_2-2_32+rpn+rcnn_64+96x96", "written canonically"),
        ("k1kxk1_8_8b8k3r1-8b8k3r1-8b8k3r1-8b8k3r1-8b8k3r1+fpn_2-2_32+rpn+rcnn_64+96x96", "one to four stages"),
        (f"k1kxk1_8_{'.'.join(['8b8k3r1'] * 9)}+fpn_2-2_32+rpn+rcnn_64+96x96", "8 at most"),
        ("k1kxk1_8_8b8k3r1+fpn_3-4_32+rpn+rcnn_64+96x96", "coarsest is C2"),
        ("k1kxk1_8_8b8k3r1-8b8k3r1+c4+rpn+rcnn_64+96x96", "reaches C4"),
        ("basicblock_8_1-1+fpn_2-3_32+maybe+rcnn_64+96x96", "must be one of norpn, rpn, garpn"),
    ],
)
def test_refusals_say_the_rule_then_what_was_got(text: str, rule: str) -> None:
    with pytest.raises(ArchitectureError, match=rule) as caught:
        Architecture.parse(text)
    assert ", but got " in str(caught.value)
