"""mbconv: its strings, moves, genes, sizes and partial order, and the example space in a search."""

from itertools import combinations_with_replacement, product
from pathlib import Path

import numpy as np
import pytest
import search_stub as stub
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.run import run_search
from smnas.search.study.settings import StageTrials
from smnas.space.architecture import Architecture, ArchitectureError, parse_backbone
from smnas.space.convolutions import layers, multiply_adds, parameters
from smnas.space.encoding import Encoding
from smnas.space.families.mbconv import MBConvSpec, MBConvStage
from smnas.space.mutation import mutate_modular
from smnas.space.preset import SpaceError, load_space, parse_space, space_toml
from smnas.space.sampling import sample_modular, sample_structural

EXAMPLE = Path(__file__).parents[4] / "docs" / "examples" / "mbconv.toml"
SPACE = load_space(str(EXAMPLE))
FRAME = "+fpn_2-4_32+rpn+rcnn_64+96x96"

layer = st.tuples(st.sampled_from((3, 5, 7)), st.integers(1, 9))
stages = st.builds(
    MBConvStage, st.integers(4, 1024).map(lambda n: 2 * n), st.lists(layer, min_size=1, max_size=8).map(tuple)
)
backbones = st.builds(
    MBConvSpec, st.integers(4, 256).map(lambda n: 2 * n), st.lists(stages, min_size=1, max_size=4).map(tuple)
)
# few choices, so that comparable pairs are common
small = st.builds(
    MBConvStage,
    st.sampled_from((8, 16)),
    st.lists(st.tuples(st.sampled_from((3, 5)), st.sampled_from((1, 3))), min_size=1, max_size=2).map(tuple),
)
comparable = st.builds(MBConvSpec, st.sampled_from((8, 16)), st.tuples(small, small))


@given(backbones)
def test_strings_read_back_and_fit_a_file_name(spec: MBConvSpec) -> None:
    assert parse_backbone(str(spec)) == spec
    assert len(f"{spec}+fpn_2-6_1024c+garpn+cascade_3_4096+4096x4096.onnx") <= 255


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mbconv_16_24", "an mbconv stage is"),
        ("mbconv_16_24k3e6.i", "an mbconv stage is"),
        ("mbconv_16_24k4e6", "an mbconv kernel is 3, 5 or 7, but got 4"),
        ("mbconv_16_24k3e0", "an mbconv expansion is 1 to 9, but got 0"),
        ("mbconv_16_25k3e6", "stage's width is even and from 8 to 2048, but got 25"),
        ("mbconv_7_24k3e6", "an mbconv stem is even"),
        ("mbconv_16_" + "-".join(["8k3e6"] * 5), "one to four stages, but got 5"),
        ("mbconv_16_8" + ".".join(["k3e6"] * 33), "32 layers at most, but got 33"),
        ("mbconv_016_24k3e6", "written canonically"),
    ],
)
def test_what_is_no_mbconv_is_refused_with_the_rule(text: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Architecture.parse(text + FRAME.replace("2-4", "2-2"))


def test_costs_of_one_backbone_by_hand() -> None:
    convolutions = parse_backbone("mbconv_8_16k5e3.k3e1").convolutions()
    # stem; widen, 5x5 depthwise and narrow; 3x3 depthwise and narrow
    weights = [27 * 8, 8 * 24, 25 * 24, 24 * 16, 9 * 16, 16 * 16]
    assert parameters(convolutions) == sum(weights) + 2 * (8 + 24 + 24 + 16 + 16 + 16)
    assert layers(convolutions) == 6
    # on 32x32 pixels: the stem and the widening at 16x16, everything behind them at 8x8
    assert multiply_adds(convolutions, 32, 32) == 256 * sum(weights[:2]) + 64 * sum(weights[2:])


@pytest.mark.slow
@given(comparable, comparable)
@hypothesis_settings(max_examples=500)
def test_a_smaller_one_costs_no_more_and_both_ways_is_equal(a: MBConvSpec, b: MBConvSpec) -> None:
    assert a.not_larger(a)
    if a.not_larger(b):
        assert parameters(a.convolutions()) <= parameters(b.convolutions())
        assert multiply_adds(a.convolutions(), 96, 64) <= multiply_adds(b.convolutions(), 96, 64)
        assert layers(a.convolutions()) <= layers(b.convolutions())
        assert a == b or not b.not_larger(a)


@pytest.mark.slow
@given(comparable, comparable, comparable)
@hypothesis_settings(max_examples=500)
def test_the_partial_order_is_transitive(a: MBConvSpec, b: MBConvSpec, c: MBConvSpec) -> None:
    if a.not_larger(b) and b.not_larger(c):
        assert a.not_larger(c)


@pytest.mark.slow
def test_the_number_of_variants_is_that_of_a_list_of_all() -> None:
    bounds = SPACE.modular.model_copy(
        update={
            "stages": (2,),
            "mbconv_widths": (8, 16, 24),
            "mbconv_kernels": (3, 5),
            "mbconv_expansions": (3,),
            "mbconv_layers": 2,
        }
    )
    rows = [tuple(row) for depth in (1, 2) for row in product([(3, 3), (5, 3)], repeat=depth)]
    every = [
        MBConvSpec(8, (MBConvStage(first, a), MBConvStage(second, b)))
        for first, second in combinations_with_replacement((8, 16, 24), 2)
        for a, b in product(rows, repeat=2)
    ]
    assert len(set(every)) == MBConvSpec.count(bounds, every)
    assert all(spec.inside(bounds) and spec.evolves(bounds, every[:1]) for spec in every)
    assert MBConvSpec.count(bounds, []) == 0
    rng = np.random.default_rng(0)
    assert {every[0].sampled(bounds, rng) for _ in range(5000)} == set(every)
    reached, walker = set(), every[0]
    for _ in range(20000):
        walker = walker.mutated(bounds, rng) or walker
        reached.add(walker)
    assert reached == set(every)


def test_without_widths_nothing_moves_and_there_are_no_genes() -> None:
    spec = parse_backbone("mbconv_8_16k3e3-24k3e3-48k5e3")
    bounds = load_space("nano").modular
    assert spec.mutated(bounds, np.random.default_rng(0)) is spec
    assert spec.sampled(bounds, np.random.default_rng(0)) is spec
    assert MBConvSpec.count(bounds, [spec]) == 0
    assert not any(gene.name.startswith("mbconv") for gene in Encoding(load_space("nano")).genes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "mbconv_kernels = [3, 5, 7]",
            "mbconv_kernels = [3, 4]",
            r"modular\.mbconv_kernels\.1: Input should be 3, 5 or 7",
        ),
        ("[16, 24, 32, 48, 64, 96]", "[16, 24, 33]", r"modular\.mbconv_widths\.2: .* multiple of 2"),
        ("[16, 24, 32, 48, 64, 96]", "[24, 16]", r"must ascend"),
        ("mbconv_layers = 4", "mbconv_layers = 9", r"modular\.mbconv_layers: .* less than or equal to 8"),
        ("mbconv_layers = 4", "mbconv_depth = 4", r"modular\.mbconv_depth: Extra inputs"),
    ],
)
def test_wrong_bounds_are_one_line_with_the_key(old: str, new: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        parse_space(EXAMPLE.read_text(encoding="utf-8").replace(old, new), "mbconv.toml")


def test_the_example_space_survives_its_genes_and_its_own_toml() -> None:
    assert parse_space(space_toml(SPACE), "again.toml") == SPACE
    encoding, rng = Encoding(SPACE), np.random.default_rng(0)
    parent = sample_structural(SPACE, rng)
    for _ in range(100):
        parent = sample_structural(SPACE, rng)
        for child in (parent, sample_modular(SPACE, parent, rng), mutate_modular(SPACE, parent, rng)):
            assert SPACE.contains(child)
            assert encoding.decode(encoding.encode(child)) == child
            assert np.isfinite(encoding.vector(child)).all()
    sizes = [gene.size for gene in encoding.genes]
    for _ in range(200):
        repaired = encoding.decode(rng.integers(sizes).tolist())
        assert repaired is not None
        assert SPACE.contains(repaired)
        assert encoding.decode(encoding.encode(repaired)) == repaired


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["sm-nas", "halving", "nsga2"])
def test_the_example_space_is_searched(strategy: str, tmp_path: Path) -> None:
    settings = stub.settings(strategy=strategy, trials=StageTrials(structural=5, modular=5), epochs=3, final_epochs=0)
    context, pool = SearchContext(tmp_path, settings, SPACE, stub.StubLatency()), InProcess(stub.StubScorer())
    ranking = run_search(context, scorers=pool, trainers=pool, complexity=stub.complexity)
    found = [Architecture.parse(row.architecture) for row in ranking.rows if row.role == "candidate"]
    assert any(isinstance(a.backbone, MBConvSpec) and a.backbone not in SPACE.backbones for a in found)
