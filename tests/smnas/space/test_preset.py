"""Presets against counts made by hand and by brute force."""

from itertools import combinations, pairwise, product
from pathlib import Path

import pytest
from pydantic import ValidationError

from profiler.errors import UserError
from smnas.space.architecture import Architecture, ArchitectureError, C4Spec, FCOSSpec, FPNSpec, RetinaSpec, RPNKind
from smnas.space.families.resnet import ResNetSpec
from smnas.space.preset import (
    HeadWidths,
    ModularBounds,
    Space,
    SpaceError,
    load_space,
    parse_space,
    preset_names,
    space_toml,
)

PRESETS = ("nano", "small", "paper")

MINIMAL = """
name = "tiny"
description = "Two of everything."
baseline = "basicblock_8_1-2-2+fpn_2-4_32+rpn+rcnn_64+96x96"
[structural]
backbones = ["basicblock_8_1-2-2", "basicblock_8_1-2"]
necks = ["c4", "fpn_2-4_32"]
rpns = ["norpn", "rpn"]
heads = ["rcnn_64", "retina_32_1"]
inputs = ["96x96", "128x128"]
[modular]
blocks = ["basicblock"]
bases = [8, 12]
stages = [2, 3]
min_blocks = 3
max_blocks = 5
min_doublings = 1
max_doublings = 2
fpn_widths = [32, 48]
[modular.head_widths]
rcnn = [64, 128]
"""


def brute_force_codes(bounds: ModularBounds, stages: int) -> set[str]:
    codes = set()
    for blocks in range(bounds.min_blocks, bounds.max_blocks + 1):
        for digits in product("12", repeat=blocks):
            for borders in combinations(range(1, blocks), stages - 1):
                cuts = (0, *borders, blocks)
                code = "-".join("".join(digits[a:b]) for a, b in pairwise(cuts))
                if bounds.min_doublings <= code.count("2") <= bounds.max_doublings:
                    codes.add(code)
    return codes


def test_the_shipped_presets_are_listed_smallest_first() -> None:
    assert preset_names() == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_its_baseline_is_a_structural_choice(name: str) -> None:
    space = load_space(name)
    assert space.name == name
    assert space.contains_structural(space.baseline_architecture)
    assert str(space.baseline_architecture.backbone).startswith("basicblock")
    assert space.baseline_architecture.rpn is RPNKind.RPN


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"one of nano, small, paper or a \.toml file, but got 'huge'"):
        load_space("huge")


def test_paper_has_exactly_the_papers_backbones_heads_and_inputs() -> None:
    space = load_space("paper")
    depths = {(b.block, b.depth) for b in space.backbones if isinstance(b, ResNetSpec)}
    # Blocks of ResNet-18, -34, -50, -101 as He et al. (2016) list them.
    assert depths == {("basicblock", 8), ("basicblock", 16)} | {
        (b, n) for b in ("bottleneck", "resnext") for n in (16, 33)
    }
    assert {b.base for b in space.backbones if isinstance(b, ResNetSpec)} == {64}
    assert "mobilenetv2_100" in space.structural.backbones
    assert space.inputs == ((512, 512), (800, 600), (1080, 720), (1333, 800))
    assert {n.width for n in space.necks if isinstance(n, FPNSpec)} == {128, 256, 384}
    assert {n.low for n in space.necks if isinstance(n, FPNSpec)} <= set(range(1, 7))
    assert set(space.structural.rpns) == {"norpn", "rpn", "garpn"}
    assert set(space.structural.heads) == {
        "rcnn_1024", "retina_256", "cascade_2_1024", "cascade_3_1024", "cascade_4_1024",
    }  # fmt: skip


def test_the_codes_that_the_paper_prints_are_in_its_modular_space() -> None:
    space = load_space("paper")
    behind = "+rpn+cascade_3_1024+800x600"
    e3 = f"bottleneck_56_211-111111111-2111111-11112111+fpn_1-5_128{behind}"
    assert space.contains(Architecture.parse(e3))
    # the paper's example of its notation has base 54, which is not among those of the early code
    example = f"basicblock_54_1211-211-1111-12111+fpn_2-6_128{behind}"
    assert not space.contains(Architecture.parse(example))
    assert space.contains(Architecture.parse(example.replace("_54_", "_56_")))


def test_guided_anchors_are_for_a_gpu() -> None:
    assert {name for name in PRESETS if RPNKind.GUIDED in load_space(name).rpns} == {"paper", "small"}


@pytest.mark.parametrize("name", PRESETS)
def test_structural_size_is_the_count_by_the_written_rules(name: str) -> None:
    space = load_space(name)
    count = 0
    for backbone, neck, rpn, head in product(space.backbones, space.necks, space.rpns, space.heads):
        one_stage = isinstance(head, RetinaSpec | FCOSSpec)
        fits = one_stage == (rpn == "norpn")
        if isinstance(neck, C4Spec):
            fits = fits and not one_stage and backbone.top_level >= 4
        else:
            fits = fits and neck.low <= backbone.top_level
        count += fits * len(space.inputs)
    assert space.structural_size() == count == len(set(space.structures))


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
def test_code_count_equals_brute_force(stages: int) -> None:
    bounds = ModularBounds(
        blocks=("basicblock",),
        bases=(8,),
        stages=(1, 2, 3, 4),
        min_blocks=2,
        max_blocks=7,
        min_doublings=1,
        max_doublings=3,
    )
    expected = brute_force_codes(bounds, stages) if stages in bounds.stages else set()
    assert bounds.code_count(stages) == len(expected)
    assert all(bounds.contains_code(code) for code in expected)


def test_modular_size_by_hand() -> None:
    space = parse_space(MINIMAL, "tiny.toml")
    by_stage = {s: len(brute_force_codes(space.modular, s)) for s in (2, 3)}
    assert space.modular_size() == sum(by_stage.values()) * 2 * 2 * 2


def test_mobilenets_widths_and_cardinalities_are_part_of_the_modular_space() -> None:
    text = MINIMAL.replace('"basicblock_8_1-2"]', '"resnext64x4_8_1-2", "resnext_8_1-2", "mobilenetv2_100"]').replace(
        'blocks = ["basicblock"]', 'blocks = ["resnext"]\nmobilenetv2_percents = [50, 100, 140]'
    )
    space = parse_space(text, "tiny.toml")
    codes = {s: len(brute_force_codes(space.modular, s)) for s in (2, 3)}
    tail = "+fpn_2-4_32+rpn+rcnn_64+96x96"
    # ResNeXt of two cardinalities and two bases, and three MobileNetV2s; two pyramid and two head widths
    assert space.modular_size() == (2 * sum(codes.values()) * 2 + 3) * 2 * 2
    for yes in ("mobilenetv2_50", "mobilenetv2_140", "resnext64x4_12_12-1", "resnext_8_11-2-2"):
        assert space.contains(Architecture.parse(yes + tail)), yes
    for no in ("mobilenetv2_75", "resnext32x8_12_12-1", "basicblock_12_1-21-1"):
        assert not space.contains(Architecture.parse(no + tail)), no
    without = parse_space(text.replace(', "mobilenetv2_100"', ""), "tiny.toml")
    assert not without.contains(Architecture.parse("mobilenetv2_50" + tail)), "stage 1 has none to start from"


def test_contains() -> None:
    space = parse_space(MINIMAL, "tiny.toml")
    yes = "basicblock_12_11-2-21+fpn_2-4_48+rpn+rcnn_128+128x128"
    assert space.contains(Architecture.parse(yes))
    assert not space.contains_structural(Architecture.parse(yes))
    for no in (
        "basicblock_16_11-2-21+fpn_2-4_48+rpn+rcnn_128+128x128",  # base
        "basicblock_12_111-2-221+fpn_2-4_48+rpn+rcnn_128+128x128",  # doublings and depth
        "basicblock_12_11-2-21+fpn_2-5_48+rpn+rcnn_128+128x128",  # levels
        "basicblock_12_11-2-21+fpn_2-4_64+rpn+rcnn_128+128x128",  # pyramid width
        "basicblock_12_11-2-21+fpn_2-4_48+rpn+rcnn_256+128x128",  # head width
        "basicblock_12_11-2-21+fpn_2-4_48+rpn+cascade_2_64+128x128",  # kind of head
        "basicblock_12_11-2-21+fpn_2-4_48+norpn+retina_32_2+128x128",  # depth of head
        "bottleneck_12_11-2-21+fpn_2-4_48+rpn+rcnn_128+128x128",  # block
        "basicblock_12_11-2-21+fpn_2-4_48+garpn+rcnn_128+128x128",  # proposals
        "basicblock_12_11-2-21+fpn_2-4_48+rpn+rcnn_128+96x128",  # input
    ):
        assert not space.contains(Architecture.parse(no)), no


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "tiny"', 'name = "tiny"\nwidths = 3', r"widths: Extra inputs"),
        (
            '"basicblock_8_1-2-2", "basicblock_8_1-2"]',
            '"basicblock_8_1-3"]',
            r"tiny.toml: a backbone code is .* but got '1-3'",
        ),
        ('"basicblock_8_1-2-2", "basicblock_8_1-2"]', '"basicblock_8_1", "basicblock_8_1"]', r"listed once"),
        ('"c4", "fpn_2-4_32"', '"c5"', r"a neck is c4 or fpn"),
        ('"norpn", "rpn"', '"yesrpn"', r"must be one of norpn, rpn, garpn"),
        ('"rcnn_64", "retina_32_1"', '"mask_3"', r"a head is"),
        ('"96x96", "128x128"', '"96"', r"an input size is WIDTHxHEIGHT in pixels, but got '96'"),
        ("+96x96", "+96", r"an input size is WIDTHxHEIGHT"),
        ("bases = [8, 12]", "bases = [12, 8]", r"must ascend"),
        ("min_blocks = 3", "min_blocks = 9", r"lower bound must not exceed"),
        ("max_blocks = 5", "max_blocks = 3\nstage = 1", r"stage: Extra inputs"),
        ("stages = [2, 3]", "stages = [2, 6]", r"max_blocks must give every stage a block"),
        (
            "min_doublings = 1\nmax_doublings = 2",
            "min_doublings = 7\nmax_doublings = 8",
            r"min_doublings must not exceed",
        ),
        ("bases = [8, 12]\n", "", r"blocks that are evolved need bases"),
        ("stages = [2, 3]\n", "", r"modular\.stages: Field required"),
        ("[structural]", "[structural", r"must be TOML"),
    ],
)
def test_a_wrong_preset_is_one_line_with_the_rule(old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    with pytest.raises(SpaceError, match=message) as caught:
        parse_space(MINIMAL.replace(old, new), "tiny.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_a_space_written_as_toml_is_read_as_the_same_space(name: str, tmp_path: Path) -> None:
    file = tmp_path / "my-space.toml"
    file.write_text(space_toml(load_space(name)), encoding="utf-8")
    assert load_space(str(file)) == load_space(name)


def test_a_space_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(MINIMAL, encoding="utf-8")
    space = load_space(str(file))
    assert space == parse_space(MINIMAL, "tiny.toml")
    assert space.recipe == "small"
    file.write_text(MINIMAL.replace("max_blocks = 5", "depth = 5"), encoding="utf-8")
    with pytest.raises(SpaceError) as caught:
        load_space(str(file))
    assert str(caught.value) == f"{file}: modular.depth: Extra inputs are not permitted"


@pytest.mark.parametrize("name", ["missing.toml", "folder.toml", "binary.toml"])
def test_a_file_that_can_not_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SpaceError, match=rf"readable TOML, but got .*{name}"):
        load_space(str(tmp_path / name))


def test_a_space_is_frozen() -> None:
    space = load_space("nano")
    with pytest.raises(ValidationError, match="frozen"):
        space.name = "other"  # type: ignore[misc]
    assert Space.model_validate(space.model_dump()) == space


def test_head_widths_by_kind() -> None:
    widths = HeadWidths(rcnn=(64,), cascade=(96,), retina=(32,), fcos=(48,))
    for text, expected in (("rcnn_64", 64), ("cascade_2_64", 96)):
        head = Architecture.parse(f"basicblock_8_1-2-2+fpn_2-4_32+rpn+{text}+96x96").head
        assert widths.for_head(head) == (expected,)
    assert widths.for_head(RetinaSpec(64, 2)) == (32,)
    assert widths.for_head(FCOSSpec(64, 2)) == (48,)


def test_architectures_outside_the_language_are_refused() -> None:
    with pytest.raises(ArchitectureError):
        Architecture.parse("basicblock_8_1-2-2+c4+norpn+retina_32_1+96x96")
