"""Genes and back: every architecture of a space survives, and every row of genes that decodes is in the space."""

from pathlib import Path

import numpy as np
import pytest

from smnas.space.architecture import Architecture, FCOSSpec, RPNKind
from smnas.space.encoding import Encoding
from smnas.space.preset import SpaceError, load_space, space_toml
from smnas.space.sampling import sample_modular, sample_structural

PRESETS = ["nano", "small", "paper"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_architectures_of_both_stages_survive(name: str) -> None:
    space = load_space(name)
    encoding = Encoding(space)
    rng = np.random.default_rng(0)
    drawn = [sample_structural(space, rng) for _ in range(200)]
    for architecture in [space.baseline_architecture, *drawn, *(sample_modular(space, a, rng) for a in drawn)]:
        genes = encoding.encode(architecture)
        assert all(0 <= value < gene.size for value, gene in zip(genes, encoding.genes, strict=True))
        assert encoding.decode(genes) == architecture


@pytest.mark.parametrize("name", PRESETS)
def test_any_genes_are_repaired_into_the_space(name: str) -> None:
    space = load_space(name)
    encoding = Encoding(space)
    rng = np.random.default_rng(1)
    sizes = [gene.size for gene in encoding.genes]
    for _ in range(300):
        architecture = encoding.decode(rng.integers(sizes).tolist())
        assert architecture is not None
        assert space.contains(architecture)
        assert encoding.decode(encoding.encode(architecture)) == architecture


def test_what_fits_is_kept_and_what_does_not_changes_least() -> None:
    space = load_space("nano")
    encoding = Encoding(space)
    good = Architecture.parse("basicblock_16_1-21-21+fpn_2-4_48+rpn+rcnn_128+128x128")
    genes = list(encoding.encode(good))
    names = [gene.name for gene in encoding.genes]
    dense = encoding.encode(Architecture.parse("basicblock_16_1-21-21+fpn_2-4_48+norpn+fcos_64_1+128x128"))
    genes[names.index("head")] = dense[names.index("head")]  # a dense head that has proposals
    repaired = encoding.decode(genes)
    assert repaired is not None
    assert repaired.backbone == good.backbone
    assert repaired.neck == good.neck
    one_stage = isinstance(repaired.head, FCOSSpec)
    assert one_stage == (repaired.rpn is RPNKind.NONE), "either the head gave way or the proposals, not both"


def test_blocks_and_doublings_are_brought_inside_the_bounds() -> None:
    space = load_space("nano")
    encoding = Encoding(space)
    names = [gene.name for gene in encoding.genes]
    genes = list(encoding.encode(Architecture.parse("basicblock_16_1-2-2+fpn_2-4_48+rpn+rcnn_128+128x128")))
    for stage in (1, 2, 3):
        genes[names.index(f"stage{stage}_blocks")] = encoding.genes[names.index(f"stage{stage}_blocks")].size - 1
    for place in (1, 2, 3):
        genes[names.index(f"doubling{place}")] = 0  # thrice the same block: one doubling of the two that must be
    child = encoding.decode(genes)
    assert child is not None
    assert str(child.backbone) == "basicblock_16_211-211-1111"


def test_a_space_in_which_nothing_fits_together_has_no_genes() -> None:
    space = load_space("nano")
    space.__dict__["structures"] = ()
    with pytest.raises(SpaceError, match="at least one architecture"):
        Encoding(space)


def test_vectors_tell_designs_apart_and_are_finite() -> None:
    space = load_space("small")
    encoding = Encoding(space)
    rng = np.random.default_rng(2)
    drawn = {sample_modular(space, sample_structural(space, rng), rng) for _ in range(100)}
    vectors = np.array([encoding.vector(a) for a in drawn])
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors, axis=0)) == len(drawn)


def test_super_blocks_of_ones_own_space_are_encoded_by_their_layout(tmp_path: Path) -> None:
    listed = "k1kxk1_16_32b16k3r1-64b16k3r1-128b32k3r1"
    file = tmp_path / "mine.toml"
    file.write_text(space_toml(load_space("nano")).replace('"inverted_16_1-21-21"', f'"{listed}"'))
    space, rng = load_space(str(file)), np.random.default_rng(0)
    encoding = Encoding(space)
    parent = Architecture.parse(f"{listed}+fpn_2-4_48+rpn+rcnn_128+128x128")
    assert encoding.decode(encoding.encode(parent)) == parent
    child = sample_modular(space, parent, rng)
    assert child.backbone != parent.backbone
    decoded = encoding.decode(encoding.encode(child))
    assert decoded is not None
    assert decoded.backbone == parent.backbone
    assert (encoding.vector(child) != encoding.vector(parent)).any()
