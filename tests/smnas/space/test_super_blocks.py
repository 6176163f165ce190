"""Super-block backbones as arrays: MAE-DET's moves keep their bounds, change what they say, and reach every block."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas.space.architecture import Architecture, parse_backbone
from smnas.space.families.super_blocks import (
    MoveBounds,
    SuperBlockPopulation,
    SuperBlockSpec,
    mutate_super_blocks,
    seed_like,
)
from smnas.space.mutation import mutate_modular
from smnas.space.preset import load_space
from smnas.space.sampling import sample_modular

R50 = parse_backbone("k1kxk1_64_256b64k3r3-512b128k3r4-1024b256k3r6-2048b512k3r3")
SIX = parse_backbone("k1kxk1_64_256b64k3r1-512b64k3r1-768b128k3r1.1024b128k3r1-2048b256k3r1")
assert isinstance(R50, SuperBlockSpec)
assert isinstance(SIX, SuperBlockSpec)


def walked(seed: int, spec: SuperBlockSpec = SIX, count: int = 64, moves: int = 30) -> SuperBlockPopulation:
    return mutate_super_blocks(
        SuperBlockPopulation.copies(spec, count), MoveBounds(), np.random.default_rng(seed), moves
    )[0]


def test_a_backbone_is_the_same_as_array_and_as_value() -> None:
    population = SuperBlockPopulation.of([SIX]).joined(walked(0, count=3))
    assert population.spec(0) == SIX
    assert SuperBlockPopulation.of([population.spec(row) for row in range(4)]).genes.tolist() == (
        population.genes.tolist()
    )
    with pytest.raises(ValueError, match="one layout"):
        population.joined(SuperBlockPopulation.copies(R50, 1))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_moves_keep_the_published_bounds(seed: int) -> None:
    population = walked(seed)
    for row in range(len(population)):
        spec = population.spec(row)  # the language's own rules hold: multiples of 8, kernels of 3 and 5
        read = spec.stem
        # 91 layers over 3 convolutions a bottleneck and the 4 blocks that are neither the stem nor the first
        for block, most in zip(spec.super_blocks, (3, 7, 7, 7, 7), strict=True):
            assert read <= block.out <= 4 * read
            assert block.out <= 2048
            assert block.out / 10 <= block.width <= block.out
            assert 1 <= block.repeats <= most
            read = block.out


def test_one_move_changes_one_number_by_a_published_step() -> None:
    # Wide bounds everywhere, so that nothing needs to be brought back: out 4 in is only reached by 1.5 * 1.5 > 2
    seed = parse_backbone("k1kxk1_200_400b200k3r3-800b400k3r4-1600b800k3r4")
    assert isinstance(seed, SuperBlockSpec)
    parents = SuperBlockPopulation.copies(seed, 4000)
    children, moved = mutate_super_blocks(
        parents, MoveBounds(layers=901, max_channels=4096), np.random.default_rng(0), 1
    )
    changed = (children.genes != parents.genes).sum(axis=1)
    assert set(changed.tolist()) == {0, 1}, "a first super-block of 3 can not grow"
    assert (moved.sum(axis=1) == changed).all()
    assert set((children.stem / 200).tolist()) == {1.0, 1.52, 1.24, 0.8, 0.6, 0.52}, "300, 250, 100 to multiples of 8"
    assert set((children.out[:, 1] / 800).tolist()) == {1.0, 1.5, 1.25, 0.8, 0.6, 0.5}
    assert set((children.width[:, 2] / 800).tolist()) == {1.0, 1.5, 1.25, 0.8, 0.6, 0.5}
    assert set((children.repeats[:, 1] - 4).tolist()) == {-2, -1, 0, 1, 2}
    assert set((children.repeats[:, 0] - 3).tolist()) == {-2, -1, 0}
    assert set(children.kernel[:, 0].tolist()) == {3, 5}
    # the stem and every block are drawn equally often: a quarter each, of which a twelfth of block 1's can not grow
    assert moved[:, [0, 2, 3]].mean(axis=0) == pytest.approx(0.25, abs=0.03)


def test_kernels_shrink_to_the_map() -> None:
    # C5 of 128 pixels is a 4x4 map, C4 one of 8x8, which holds a 5x5 kernel one and a half times
    bounds = MoveBounds(image=(160, 128))
    assert bounds.max_kernels((1, 1, 2, 1)).tolist() == [5, 5, 5, 5, 3]
    children, _ = mutate_super_blocks(SuperBlockPopulation.copies(SIX, 500), bounds, np.random.default_rng(0), moves=20)
    assert (children.kernel[:, 3] == 5).any()
    assert (children.kernel[:, 4] == 3).all()


def test_the_modular_space_evolves_super_blocks() -> None:
    nano = load_space("nano")
    parent = Architecture.parse("k1kxk1_16_64b16k3r1-128b32k3r1-128b32k3r1+fpn_2-4_48+rpn+rcnn_128+128x128")
    assert nano.contains_modular(parent)
    assert not nano.contains_structural(parent), "stage 1 does not choose them"
    rng = np.random.default_rng(0)
    for _ in range(30):
        for child in (mutate_modular(nano, parent, rng), sample_modular(nano, parent, rng)):
            assert nano.contains_modular(child)
            assert isinstance(child.backbone, SuperBlockSpec)
            assert 1 + 3 * child.backbone.depth <= nano.modular.super_block_layers
            assert (child.neck.low, child.rpn, child.input_width) == (2, parent.rpn, 128)  # type: ignore[union-attr]
    deep = str(parent).replace("32k3r1+", "32k3r20+")
    assert not nano.contains_modular(Architecture.parse(deep)), "61 layers are more than the preset evolves"


def test_a_seed_is_rounded_to_what_the_language_can_write() -> None:
    assert str(seed_like(20, (36, 84), (9, 3), (2, 1))) == "k1kxk1_24_40b8k3r2-88b8k3r1"


def test_channels_that_are_no_multiples_of_8_move_to_such_ones() -> None:
    spec = parse_backbone("k1kxk1_80_156b80k3r1-608b88k5r2-912b220k5r3.912b226k3r1-2034b240k5r1")
    assert isinstance(spec, SuperBlockSpec)
    bounds = MoveBounds(layers=91)
    assert bounds.contains(spec)
    parents = SuperBlockPopulation.copies(spec, 500)
    children, _ = mutate_super_blocks(parents, bounds, np.random.default_rng(0))
    for mine, before in ((children.out, parents.out), (children.width, parents.width)):
        assert (mine != before).any()
        assert ((mine % 8 == 0) | (mine == before) | (mine == children.out)).all()
    assert all(bounds.contains(child) for child in map(children.spec, range(500)) if 1 + 3 * child.depth <= 91)
