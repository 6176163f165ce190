"""Sampling and mutation: they stay inside the space, reach all of it, and are pure in their generator."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from narrow_space import narrowed

from smnas.space.architecture import Architecture, FPNSpec
from smnas.space.families.resnet import ResNetSpec, mutate_code, sample_code
from smnas.space.mutation import NoMoveError, mutate_modular, mutate_structural
from smnas.space.preset import ModularBounds, Space, SpaceError, load_space
from smnas.space.sampling import sample_modular, sample_structural

SPACES = {name: load_space(name) for name in ("nano", "small", "paper")}
seeds = st.integers(0, 2**32 - 1)
spaces = st.sampled_from(sorted(SPACES)).map(SPACES.__getitem__)


def structure(a: Architecture) -> tuple[object, ...]:
    """What stage 2 must not touch."""
    coded = isinstance(a.backbone, ResNetSpec)
    backbone = (a.backbone.block, a.backbone.paths, len(a.backbone.stages)) if coded else type(a.backbone)
    neck = (a.neck.low, a.neck.high, a.neck.extra) if isinstance(a.neck, FPNSpec) else a.neck
    head = str(a.head).replace(f"_{a.head.width}", "", 1)
    return backbone, neck, a.rpn, head, a.input_width, a.input_height


def parts(a: Architecture) -> tuple[object, ...]:
    return a.backbone, a.neck, a.rpn, a.head, (a.input_width, a.input_height)


@given(spaces, seeds)
def test_structural_moves_stay_inside_and_change_something(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parent = sample_structural(space, rng)
    child = mutate_structural(space, parent, rng)
    assert space.contains_structural(parent)
    assert space.contains_structural(child)
    assert child != parent
    # One or two choices plus the repair of a head that changes between one and two stages (neck and proposals).
    assert sum(x != y for x, y in zip(parts(parent), parts(child), strict=True)) <= 4


@given(spaces, seeds)
def test_modular_moves_keep_the_structure_and_the_bounds(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parent = sample_structural(space, rng)
    for child in (mutate_modular(space, parent, rng), sample_modular(space, parent, rng)):
        assert structure(child) == structure(parent)
        assert space.contains_modular(child)
        if isinstance(parent.backbone, ResNetSpec):
            assert child.backbone.inside(space.modular)
    assert mutate_modular(space, parent, rng) != parent


@given(spaces, seeds)
@settings(max_examples=30)
def test_the_same_generator_gives_the_same_architectures(space: Space, seed: int) -> None:
    def walk() -> list[Architecture]:
        rng = np.random.default_rng(seed)
        start = sample_structural(space, rng)
        return [
            start,
            mutate_structural(space, start, rng),
            mutate_modular(space, start, rng),
            sample_modular(space, start, rng),
        ]

    assert walk() == walk()


def test_base_moves_to_a_neighbour_about_half_of_the_time() -> None:
    space = SPACES["paper"]
    parent = space.baseline_architecture
    rng = np.random.default_rng(0)
    bases = Counter(mutate_modular(space, parent, rng).backbone.base for _ in range(2000))  # type: ignore[union-attr]
    assert set(bases) == {56, 64, 72}, "64 has the neighbours 56 and 72"
    # Children equal to their parent are drawn again, which lifts the share of moved bases a little above one half.
    assert 0.47 < (bases[56] + bases[72]) / 2000 < 0.60


def test_a_walk_of_modular_moves_reaches_every_code_of_a_small_space() -> None:
    space = SPACES["nano"]
    bounds = ModularBounds(
        blocks=("basicblock",), bases=(8,), stages=(3,), min_blocks=3, max_blocks=6, min_doublings=2, max_doublings=2
    )
    small = Space.model_validate(space.model_dump() | {"modular": bounds.model_dump()})
    current = Architecture.parse("basicblock_8_1-2-2+fpn_2-4_32+rpn+rcnn_64+96x96")
    rng = np.random.default_rng(1)
    seen = {current.backbone}
    for _ in range(6000):
        current = mutate_modular(small, current, rng)
        seen.add(current.backbone)
    assert len(seen) == bounds.code_count(3)


def test_structural_moves_reach_every_structure_of_nano() -> None:
    space = SPACES["nano"]
    rng = np.random.default_rng(2)
    current = space.baseline_architecture
    heads, backbones, necks = set(), set(), set()
    for _ in range(1500):
        current = mutate_structural(space, current, rng)
        heads.add(current.head)
        backbones.add(current.backbone)
        necks.add(current.neck)
    assert heads == set(space.heads)
    assert backbones == set(space.backbones)
    assert necks == set(space.necks)


@given(st.from_regex(r"[12]{1,6}(-[12]{1,6}){0,3}", fullmatch=True), seeds)
def test_code_edits_keep_doublings_and_borders(code: str, seed: int) -> None:
    edited = mutate_code(code, np.random.default_rng(seed))
    assert edited.count("2") == code.count("2")
    assert edited.count("-") == code.count("-")
    assert abs(len(edited) - len(code)) <= 3


@given(st.integers(1, 4), seeds)
def test_sampled_codes_are_inside_their_bounds(stages: int, seed: int) -> None:
    bounds = SPACES["nano"].modular.model_copy(update={"stages": (1, 2, 3, 4)})
    assert len(sample_code(bounds, stages, np.random.default_rng(seed)).split("-")) == stages
    assert bounds.contains_code(sample_code(bounds, stages, np.random.default_rng(seed)))


def test_sampled_codes_cover_every_depth_evenly() -> None:
    bounds = SPACES["paper"].modular
    rng = np.random.default_rng(0)
    depths = Counter(sample_code(bounds, 4, rng).replace("-", "").__len__() for _ in range(2900))
    assert set(depths) == set(range(5, 34))
    assert min(depths.values()) > 50  # 100 expected


def test_sampling_structures_is_even() -> None:
    text = "basicblock_8_1-2-2+c4+rpn+rcnn_64+96x96"
    space = narrowed(SPACES["nano"], text, backbones=["basicblock_8_1-2-2"], necks=["c4"])
    rng = np.random.default_rng(0)
    counts = Counter(sample_structural(space, rng) for _ in range(100 * space.structural_size()))
    assert len(counts) == space.structural_size()
    assert min(counts.values()) > 50


def test_a_mobilenet_moves_only_its_widths() -> None:
    space = SPACES["paper"]
    parent = Architecture.parse("mobilenetv2_100+fpn_2-6_256+rpn+rcnn_1024+800x600")
    rng = np.random.default_rng(0)
    children = {mutate_modular(space, parent, rng) for _ in range(200)}
    assert {child.backbone for child in children} == {parent.backbone}
    assert {child.neck.width for child in children} == {192, 256, 320}  # type: ignore[union-attr]
    assert {child.head.width for child in children} == {768, 1024}


def test_a_mobilenet_moves_to_a_neighbouring_width_where_a_preset_lists_them() -> None:
    space = SPACES["small"]
    parent = Architecture.parse("mobilenetv2_100+fpn_2-6_64+rpn+rcnn_512+512x512")
    rng = np.random.default_rng(0)
    moved = {str(mutate_modular(space, parent, rng).backbone) for _ in range(200)}
    assert moved == {"mobilenetv2_75", "mobilenetv2_100", "mobilenetv2_140"}
    drawn = {str(sample_modular(space, parent, rng).backbone) for _ in range(200)}
    assert drawn == {"mobilenetv2_50", "mobilenetv2_75", "mobilenetv2_100", "mobilenetv2_140"}


def test_moves_keep_a_cardinality() -> None:
    space = SPACES["small"]
    parent = Architecture.parse("resnext64x4_64_11-21-21-21+fpn_2-6_64+rpn+rcnn_512+512x512")
    rng = np.random.default_rng(0)
    for make in (mutate_modular, sample_modular):
        backbones = {make(space, parent, rng).backbone for _ in range(50)}
        assert len(backbones) > 20
        assert {b.paths for b in backbones if isinstance(b, ResNetSpec)} == {(64, 4)}


def test_no_way_out_is_an_error_and_not_a_loop() -> None:
    space = SPACES["nano"]
    backbone, neck, rpn, head, size = str(space.baseline_architecture).split("+")
    parts = {"backbones": [backbone], "necks": [neck], "rpns": [rpn], "heads": [head], "inputs": [size]}
    alone = narrowed(space, space.baseline, {"stages": (3,)}, **parts)
    only = alone.baseline_architecture
    assert alone.structures == (only,)
    rng = np.random.default_rng(0)
    with pytest.raises(NoMoveError, match="none does from"):
        mutate_structural(alone, only, rng)
    with pytest.raises(NoMoveError, match="tries from"):
        mutate_modular(alone, only, rng)
    assert sample_modular(alone, only, rng) == only
    nothing = load_space("nano")
    nothing.__dict__["structures"] = ()
    with pytest.raises(SpaceError, match="at least one architecture"):
        sample_structural(nothing, rng)
    with pytest.raises(SpaceError, match="number of stages"):
        sample_code(space.modular, 1, rng)
