"""The strategies: what they propose, from which parents, and that they end."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from smnas.search.candidate import Candidate, Proposal
from smnas.search.finalists import finalists
from smnas.search.random_search import random_search
from smnas.search.settings import DataFacts, SearchSettings, StageTrials
from smnas.search.sm_nas import ModularStage, StructuralStage, modular_parents, sm_nas
from smnas.search.strategies import STRATEGIES, UnknownStrategyError, get_strategy
from smnas.search.strategy import SearchStage
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space

NANO = load_space("nano")
BASELINE = Candidate(
    0, NANO.baseline_architecture, "baseline", "baseline", None, "complete", 0, 3, latency_ms=10.0, ap=0.3
)


def points(architecture: Architecture) -> tuple[float, float]:
    """A fixed AP and latency for any architecture."""
    number = int(architecture.id, 16)
    latency = 2.0 + number % 997 / 50
    return 0.2 + 0.01 * latency + (number % 13) / 200, latency


def trained(number: int, proposal: Proposal, stage: str, **changes: object) -> Candidate:
    ap, latency = points(proposal.architecture)
    candidate = Candidate(
        number,
        proposal.architecture,
        stage,  # type: ignore[arg-type]
        proposal.origin,
        proposal.parent,
        "complete",
        0,
        3,
        latency_ms=latency,
        ap=ap,
    )
    return replace(candidate, **changes)  # type: ignore[arg-type]


def play(stage: SearchStage, history: list[Candidate], count: int, seed: int = 0) -> list[Candidate]:
    """Ask ``count`` times and take every proposal as trained."""
    history = list(history)
    for _ in range(count):
        proposal = stage.ask(history, np.random.default_rng([seed, len(history)]))
        assert proposal is not None
        history.append(trained(len(history), proposal, stage.name))
    return history


def front_of(history: list[Candidate]) -> set[str]:
    return {
        str(c.architecture)
        for c in history
        if not any(d.point[0] >= c.point[0] and d.point[1] <= c.point[1] and d.point != c.point for d in history)
    }


def test_stage_1_draws_its_random_share_and_then_mutates_the_front() -> None:
    stage = StructuralStage(NANO, trials=20, random_share=0.2)
    history = play(stage, [BASELINE], 20)
    assert [c.origin for c in history[1:]] == ["random"] * 4 + ["mutation"] * 16
    for i, candidate in enumerate(history[5:], start=5):
        assert candidate.parent in front_of(history[:i])
    assert len({c.architecture for c in history}) == 21
    assert all(NANO.contains_structural(c.architecture) for c in history)


def test_stage_2_evolves_several_spread_parents_in_turns() -> None:
    history = play(StructuralStage(NANO, 20, 0.2), [BASELINE], 20)
    roots = [str(c.architecture) for c in modular_parents(history, 4)]
    assert len(roots) == 4
    assert set(roots) <= front_of(history)
    full = play(ModularStage(NANO, 20, 0.2, parents=4), history, 20)
    family = {root: root for root in roots}
    for candidate in full[21:]:
        assert candidate.parent in family
        family[str(candidate.architecture)] = family[candidate.parent]
    sizes = Counter(family[str(c.architecture)] for c in full[21:])
    assert set(sizes.values()) == {5}
    origins = [c.origin for c in full[21:]]
    assert [i for i, origin in enumerate(origins) if origin == "random"] == [4, 9, 14, 19]
    assert all(c.parent in roots for c in full[21:] if c.origin == "random")
    assert len({c.architecture for c in full}) == len(full)
    assert all(NANO.contains_modular(c.architecture) for c in full[21:])


def test_stage_2_mutates_children_too_once_they_are_on_the_familys_front() -> None:
    history = play(StructuralStage(NANO, 5, 0.2), [BASELINE], 5)
    full = play(ModularStage(NANO, 40, 0.0, parents=1), history, 40)
    assert len({c.parent for c in full[6:]}) > 3


def test_stage_2_starts_within_the_latency_limit_where_it_can() -> None:
    history = play(StructuralStage(NANO, 20, 0.2), [BASELINE], 20)
    assert all(c.point[1] <= 8.0 for c in modular_parents(history, 4, 8.0))
    assert modular_parents(history, 4, 0.01) == modular_parents(history, 4), "nothing is within it"


def test_a_family_without_luck_passes_the_turn() -> None:
    stage = ModularStage(NANO, 40, 0.0, parents=2)
    history = play(StructuralStage(NANO, 20, 0.2), [BASELINE], 20)
    asked = Counter[str]()
    roots = {str(c.architecture) for c in modular_parents(history, 2)}
    for _ in range(10):
        proposal = stage.ask(history, np.random.default_rng([0, len(history)]))
        assert proposal is not None
        assert proposal.parent in roots
        asked[proposal.parent] += 1
        history.append(trained(len(history), proposal, "modular", state="pruned", ap=None, reason="over the limit"))
    assert set(asked.values()) == {5}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_asking_is_a_pure_function_of_history_and_generator(name: str) -> None:
    strategy = get_strategy(NANO, search_settings(strategy=name))
    assert strategy.name == name
    assert [(stage.name, stage.trials) for stage in strategy.stages] == [("structural", 6), ("modular", 7)]
    history = [BASELINE]
    for stage in strategy.stages:
        history = play(stage, history, stage.trials)
        snapshot = list(history)
        for seed in range(5):
            answers = {str(stage.ask(history, np.random.default_rng([seed, 99]))) for _ in range(3)}
            assert len(answers) == 1
        assert history == snapshot


def test_random_search_never_looks_at_the_history_but_for_repetitions() -> None:
    strategy = random_search(NANO, structural_trials=10, modular_trials=10)
    history = [BASELINE]
    for stage in strategy.stages:
        history = play(stage, history, stage.trials)
    assert {c.origin for c in history[1:]} == {"random"}
    assert len({c.architecture for c in history}) == 21
    assert all(NANO.contains(c.architecture) for c in history)


def test_exhausted_spaces_end_the_stages() -> None:
    three = set(NANO.structures[:3])
    tiny = NANO.restricted(lambda a: a in three)
    for strategy in (
        sm_nas(tiny, structural_trials=9, modular_trials=9),
        random_search(tiny, structural_trials=9, modular_trials=9),
    ):
        history = [BASELINE]
        proposed = []
        for _ in range(4):
            proposal = strategy.stages[0].ask(history, np.random.default_rng(len(history)))
            if proposal is None:
                break
            proposed.append(proposal.architecture)
            history.append(trained(len(history), proposal, "structural"))
        assert set(proposed) == three
        assert strategy.stages[0].ask(history, np.random.default_rng(0)) is None
        assert strategy.stages[1].ask(history, np.random.default_rng(0)) is None, "the predicate refuses every variant"


def test_the_last_unseen_structure_is_found() -> None:
    seen = [trained(i, Proposal(a, "random"), "structural", state="pruned") for i, a in enumerate(NANO.structures[1:])]
    proposal = StructuralStage(NANO, 10, 0.2).ask(seen, np.random.default_rng(0))
    assert proposal is not None
    assert proposal.architecture == NANO.structures[0]


def test_an_unknown_strategy_lists_the_known_ones() -> None:
    with pytest.raises(UnknownStrategyError, match="one of sm-nas, random, but got 'best'"):
        get_strategy(NANO, search_settings(strategy="best"))


def search_settings(**changes: object) -> SearchSettings:
    return SearchSettings(
        smnas="0.1.0",
        preset="nano",
        data=DataFacts(root="x", classes=("a",), train_images=1, val_images=1),
        device="cpu",
        backend="onnxruntime",
        precision="float32",
        recipe={},
        epochs=3,
        scorer="stub",
        trials=StageTrials(structural=6, modular=7),
        **changes,  # type: ignore[arg-type]
    )


def row(number: int, ap: float | None, latency: float, stage: str = "structural", state: str = "complete") -> Candidate:
    proposal = Proposal(NANO.structures[number], "random")
    return trained(number, proposal, stage, state=state, ap=ap, latency_ms=latency)


def test_finalists_are_the_baseline_and_the_best_of_the_front_that_may_win() -> None:
    history = [
        row(0, 0.30, 5.0, "baseline"),
        row(1, 0.20, 1.0),
        row(2, 0.25, 2.0),
        row(3, 0.35, 4.0),
        row(4, 0.50, 9.0),  # on the front, slower than the baseline
        row(5, 0.34, 4.5),  # behind the front
        row(6, 0.90, 1.0, "final"),
        row(7, None, 1.0, state="failed"),
    ]
    numbers = [c.number for c in finalists(history, 3, None)]
    assert numbers == [0, 3, 2, 1]
    assert [c.number for c in finalists(history, 5, None)] == [0, 3, 2, 1, 4, 5]
    assert [c.number for c in finalists(history, 2, 10.0)] == [0, 4, 3], "the limit counts, not the baseline"
    assert [c.number for c in finalists(history[1:], 1, None)] == [4], "no baseline: everything may win"
    assert finalists([], 3, None) == ()
