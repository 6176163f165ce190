"""The zero-shot search: published budgets kept, the published figure reached, reproducible, and its Pareto form."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from smnas.models.backbones.by_family import build_backbone
from smnas.scoring.entropy import backbone_entropy
from smnas.search.pareto import non_dominated
from smnas.search.strategies.mae_det.maximum_entropy import Budget, EntropySearch, maximum_entropy_search
from smnas.space.architecture import parse_backbone
from smnas.space.convolutions import layers, multiply_adds, parameters
from smnas.space.families.super_blocks import SuperBlockPopulation, SuperBlockSpec
from smnas.space.preset import SpaceError

R50 = parse_backbone("k1kxk1_64_256b64k3r3-512b128k3r4-1024b256k3r6-2048b512k3r3")
assert isinstance(R50, SuperBlockSpec)
PUBLISHED = Budget(multiply_adds=18.8e9, layers=91)


@pytest.fixture(scope="module")
def found():  # type: ignore[no-untyped-def]
    return maximum_entropy_search(R50, EntropySearch(PUBLISHED), np.random.default_rng(0))


@pytest.mark.slow
def test_the_published_budgets_give_the_published_score_or_more(found) -> None:  # type: ignore[no-untyped-def]
    winner = found.spec()
    assert found.entropy[0] >= 1760
    # the values that the search kept are those of the backbone by other means
    convolutions = winner.convolutions()
    assert backbone_entropy(winner) == pytest.approx(found.entropy[0], abs=1e-9)
    assert multiply_adds(convolutions, 480, 480) == found.cost.multiply_adds[0] <= 18.8e9
    assert layers(convolutions) == found.cost.layers[0] <= 91
    with torch.device("meta"):
        backbone = build_backbone(winner)
    with FlopCounterMode(display=False) as counter:
        backbone(torch.empty(1, 3, 480, 480, dtype=torch.uint8, device="meta"))
    assert counter.get_total_flops() == 2 * found.cost.multiply_adds[0]
    assert sum(p.numel() for p in backbone.parameters()) == found.cost.parameters[0] == parameters(convolutions)


def test_the_whole_population_is_distinct_sorted_and_within_the_budgets(found) -> None:  # type: ignore[no-untyped-def]
    assert len(found.backbones) == 256
    assert len(np.unique(found.backbones.genes, axis=0)) == 256
    assert (np.diff(found.entropy) <= 0).all()
    assert (found.cost.multiply_adds <= 18.8e9).all()
    assert (found.cost.layers <= 91).all()
    assert (np.diff(found.best) >= 0).all(), "the best is never lost"


def test_every_block_of_the_winner_has_moved_the_last_one_too(found) -> None:  # type: ignore[no-untyped-def]
    assert found.moved[0].all()
    winner = found.spec()
    assert winner.stem != R50.stem
    assert all(a != b for a, b in zip(winner.super_blocks, R50.super_blocks, strict=True))


@pytest.mark.slow
def test_a_seed_is_a_result(found) -> None:  # type: ignore[no-untyped-def]
    again = maximum_entropy_search(R50, EntropySearch(PUBLISHED), np.random.default_rng(0))
    assert (again.backbones.genes == found.backbones.genes).all()
    assert again.best == found.best
    other = maximum_entropy_search(R50, EntropySearch(PUBLISHED, steps=5000), np.random.default_rng(1))
    assert (other.backbones.genes != found.backbones.genes).any()


def test_a_seed_that_breaks_the_budget_is_only_a_start() -> None:
    tight = Budget(multiply_adds=2e9, parameters=5e6, layers=40)
    found = maximum_entropy_search(R50, EntropySearch(tight, steps=20_000), np.random.default_rng(0))
    assert (found.cost.multiply_adds <= 2e9).all()
    assert (found.cost.parameters <= 5e6).all()
    assert (found.cost.layers <= 40).all()
    with pytest.raises(SpaceError, match="must find a backbone within"):
        maximum_entropy_search(R50, EntropySearch(Budget(layers=3), steps=500), np.random.default_rng(0))


def toy_latency(backbones: SuperBlockPopulation) -> np.ndarray:
    return 0.01 * (backbones.out * backbones.repeats).sum(axis=1) + 0.05 * backbones.kernel.sum(axis=1)


def test_a_latency_budget_is_kept() -> None:
    search = EntropySearch(Budget(layers=91, latency_ms=60.0), steps=20_000)
    found = maximum_entropy_search(R50, search, np.random.default_rng(0), toy_latency)
    assert found.latency_ms is not None
    assert found.latency_ms == pytest.approx(toy_latency(found.backbones))
    assert found.latency_ms.max() <= 60.0
    with pytest.raises(ValueError, match="needs a prediction"):
        maximum_entropy_search(R50, search, np.random.default_rng(0))


@pytest.mark.slow
def test_the_pareto_form_spreads_over_latency_and_ends_where_the_other_does() -> None:
    budget = Budget(layers=91, latency_ms=120.0)
    single, pareto = (
        maximum_entropy_search(
            R50, EntropySearch(budget, steps=60_000, pareto=mode), np.random.default_rng(0), toy_latency
        )
        for mode in (False, True)
    )
    assert pareto.latency_ms is not None
    assert single.latency_ms is not None
    front = non_dominated(np.column_stack((pareto.entropy, pareto.latency_ms)))
    assert front.sum() > 100
    assert np.ptp(pareto.latency_ms[front]) > 3 * np.ptp(single.latency_ms)
    assert pareto.entropy[0] == pytest.approx(single.entropy[0], rel=0.02)
    cheap = maximum_entropy_search(
        R50, EntropySearch(Budget(layers=91, latency_ms=40.0), steps=60_000), np.random.default_rng(0), toy_latency
    )
    within = pareto.entropy[pareto.latency_ms <= 40.0].max()
    assert within == pytest.approx(cheap.entropy[0], rel=0.05), "one run holds what a search for each budget finds"
