"""The strategies: what they propose, from which parents, and that they end."""

from bisect import bisect
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from narrow_space import narrowed

from smnas.search.context import SearchContext
from smnas.search.strategies.base import SearchStage, Strategy
from smnas.search.strategies.by_name import STRATEGIES, UnknownStrategyError, get_strategy
from smnas.search.strategies.choices import DetectorChoices
from smnas.search.strategies.halving.halving import HalvingStage
from smnas.search.strategies.halving.rungs import rung_epochs
from smnas.search.strategies.random_search import random_search
from smnas.search.strategies.regularized_evolution import RegularizedEvolutionStage
from smnas.search.strategies.sm_nas import ModularStage, StructuralStage, latency_windows, modular_parents, sm_nas
from smnas.search.study.candidate import Candidate, Proposal
from smnas.search.study.history import History
from smnas.search.study.settings import DataFacts, SearchSettings, StageTrials
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space

NANO = load_space("nano")
CHOICES = DetectorChoices(NANO)
BASELINE = Candidate(
    0, NANO.baseline_architecture, "baseline", "baseline", None, "complete", 0, 3, latency_ms=10.0, score=0.3
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
        score=ap,
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
    stage = StructuralStage(CHOICES, trials=20, random_share=0.2)
    history = play(stage, [BASELINE], 20)
    assert [c.origin for c in history[1:]] == ["random"] * 4 + ["mutation"] * 16
    for i, candidate in enumerate(history[5:], start=5):
        assert candidate.parent in front_of(history[:i])
    assert len({c.architecture for c in history}) == 21
    assert all(NANO.contains_structural(c.architecture) for c in history)


def test_stage_2_evolves_several_spread_parents_in_turns() -> None:
    history = play(StructuralStage(CHOICES, 20, 0.2), [BASELINE], 20)
    roots = [str(c.architecture) for c in modular_parents(history, 4)]
    assert len(roots) == 4
    assert set(roots) <= front_of(history)
    full = play(ModularStage(CHOICES, 20, 0.2, parents=4), history, 20)
    borders = latency_windows([c for c in history if str(c.architecture) in roots])
    assert len(borders) == 3

    def window(architecture: str | None) -> int:
        return bisect(borders, next(c.point[1] for c in full if str(c.architecture) == architecture))

    assert sorted(window(root) for root in roots) == [0, 1, 2, 3], "one Pareto point in each window"
    sizes = Counter(window(c.parent) for c in full[21:])
    assert set(sizes.values()) == {5}, "each window gets its turns"
    for place, c in enumerate(full[21:], start=21):
        own = [d for d in full[21:place] if window(str(d.architecture)) == window(c.parent)]
        root = next(d for d in full if str(d.architecture) in roots and window(str(d.architecture)) == window(c.parent))
        assert c.origin == "random" or c.parent in front_of([root, *own]), "the front inside the window is evolved"
    origins = [c.origin for c in full[21:]]
    assert [i for i, origin in enumerate(origins) if origin == "random"] == [4, 9, 14, 19]
    assert all(c.parent in roots for c in full[21:] if c.origin == "random")
    assert len({c.architecture for c in full}) == len(full)
    assert all(NANO.contains_modular(c.architecture) for c in full[21:])


def test_stage_2_mutates_children_too_once_they_are_on_the_familys_front() -> None:
    history = play(StructuralStage(CHOICES, 5, 0.2), [BASELINE], 5)
    full = play(ModularStage(CHOICES, 40, 0.0, parents=1), history, 40)
    assert len({c.parent for c in full[6:]}) > 3


def test_stage_2_starts_within_the_latency_limit_where_it_can() -> None:
    history = play(StructuralStage(CHOICES, 20, 0.2), [BASELINE], 20)
    assert all(c.point[1] <= 8.0 for c in modular_parents(history, 4, 8.0))
    assert modular_parents(history, 4, 0.01) == modular_parents(history, 4), "nothing is within it"


def test_a_family_without_luck_passes_the_turn() -> None:
    stage = ModularStage(CHOICES, 40, 0.0, parents=2)
    history = play(StructuralStage(CHOICES, 20, 0.2), [BASELINE], 20)
    asked = Counter[str]()
    roots = {str(c.architecture) for c in modular_parents(history, 2)}
    for _ in range(10):
        proposal = stage.ask(history, np.random.default_rng([0, len(history)]))
        assert proposal is not None
        assert proposal.parent in roots
        asked[proposal.parent] += 1
        history.append(trained(len(history), proposal, "modular", state="pruned", score=None, reason="over the limit"))
    assert set(asked.values()) == {5}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"mae-det"}))  # which measures blocks
def test_asking_is_a_pure_function_of_history_and_generator(name: str) -> None:
    strategy = made(search_settings(strategy=name))
    assert strategy.name == name
    two_stages = [("structural", 6), ("modular", 7)]
    expected = two_stages if name in ("sm-nas", "random") else [("joint", 13)]
    assert [(stage.name, stage.trials) for stage in strategy.stages] == expected
    history = [BASELINE]
    for stage in strategy.stages:
        history = play(stage, history, stage.trials)
        snapshot = list(history)
        for seed in range(5):
            answers = {
                str(stage.ask(h, np.random.default_rng([seed, 99]))) for h in (history, History(history), history)
            }
            assert len(answers) == 1
        assert history == snapshot


def stages_played(name: str, count: int, **changes: object) -> list[Candidate]:
    strategy = made(search_settings(strategy=name, **changes))
    return play(strategy.stages[0], [BASELINE], count)


def test_nsga2_crosses_and_mutates_the_genes_of_its_elite() -> None:
    history = stages_played("nsga2", 60)
    first = [c for c in history[1:] if c.origin == "random"]
    children = [c for c in history[1:] if c.origin == "crossover"]
    assert len(first) >= 7, "a population of eight with the baseline"
    assert len(children) > 45
    assert len({c.architecture for c in history}) == len(history)
    assert all(NANO.contains(c.architecture) for c in history)
    # A child's genes come from the population but for about one mutation: hardly any is new to everybody before it.
    new = 0
    for child in children:
        before = [CHOICES.encode(c.architecture) for c in history[: child.number]]
        genes = CHOICES.encode(child.architecture)
        new += sum(all(other[place] != gene for other in before) for place, gene in enumerate(genes))
    assert new / len(children) < 2


def test_nsga2_gives_a_resumed_search_the_same_children() -> None:
    history = stages_played("nsga2", 20)
    fresh = made(search_settings(strategy="nsga2")).stages[0]
    used = made(search_settings(strategy="nsga2")).stages[0]
    for end in (12, 20, 15):  # also back in time, as after another history
        expected = used.ask(history[:end], np.random.default_rng(end))
        assert fresh.ask(history[:end], np.random.default_rng(end)) == expected
        fresh = made(search_settings(strategy="nsga2")).stages[0]


def test_regularized_evolution_lets_the_oldest_die() -> None:
    stage = RegularizedEvolutionStage(CHOICES, trials=60, population=10, sample=3)
    history = play(stage, [BASELINE], 60)
    assert [c.origin for c in history[1:]] == ["random"] * 9 + ["mutation"] * 51
    names = [str(c.architecture) for c in history]
    for number, candidate in enumerate(history[10:], start=10):
        assert candidate.parent is not None
        assert number - 10 <= names.index(candidate.parent) < number, "older parents are dead, however good"


def halved(trials: int, epochs: int = 9) -> list[Candidate]:
    """A played halving search in which AP grows with the epochs."""
    stage = HalvingStage(CHOICES, trials, rung_epochs(epochs))
    history = [replace(BASELINE, epochs=epochs)]
    while sum(c.own_epochs for c in history[1:]) < trials * epochs:
        proposal = stage.ask(history, np.random.default_rng([0, len(history)]))
        assert proposal is not None
        before = [c for c in history if c.architecture == proposal.architecture]
        candidate = trained(len(history), proposal, "joint", epochs=epochs, stop_epoch=proposal.stop_epoch)
        candidate = replace(candidate, start_epoch=before[-1].reached_epoch if before else 0)
        history.append(replace(candidate, score=candidate.point[0] * candidate.reached_epoch / epochs))
    return history


def test_halving_trains_no_epoch_twice_and_promotes_the_best_of_their_band() -> None:
    history = halved(20)
    by_design: dict[Architecture, list[Candidate]] = {}
    for c in history[1:]:
        by_design.setdefault(c.architecture, []).append(c)
    for row in by_design.values():
        assert [c.start_epoch for c in row] == [0, *(c.reached_epoch for c in row[:-1])]
        assert [c.origin == "promotion" for c in row] == [False] + [True] * (len(row) - 1)
    stopped = [row for row in by_design.values() if row[0].stop_epoch == 3]
    assert len(stopped) > 10, "more designs than whole training runs would allow"
    whole = [row for row in by_design.values() if row[-1].stop_epoch is None]
    assert len(whole) >= 4

    # Who went on had more AP for its latency than who did not: AP is linear in latency but for a bounded rest.
    def rest(row: list[Candidate]) -> float:
        ap, latency = points(row[0].architecture)
        return ap - 0.2 - 0.01 * latency

    on = [rest(row) for row in stopped if len(row) > 1]
    off = [rest(row) for row in stopped if len(row) == 1]
    assert not off or np.mean(on) > np.mean(off)


@pytest.mark.parametrize(("trials", "epochs"), [(1, 9), (2, 9), (3, 12), (2, 27)])
def test_halving_ends_some_trainings_of_the_smallest_budget(trials: int, epochs: int) -> None:
    history = halved(trials, epochs)
    assert any(c.stop_epoch is None for c in history[1:])
    assert sum(c.own_epochs for c in history[1:]) < (trials + 1) * epochs


@pytest.mark.slow
def test_a_surrogate_search_trains_to_the_end_only() -> None:
    history = stages_played("surrogate", 25)
    assert {c.stop_epoch for c in history} == {None}
    assert {c.origin for c in history[1:6]} == {"random"}, "half of 13 training runs, with the baseline"
    assert "mutation" in {c.origin for c in history}
    trained_before = {str(c.architecture) for c in history}
    assert all(c.parent is None or c.parent in trained_before for c in history), "a parent is one that was trained"


def test_random_search_never_looks_at_the_history_but_for_repetitions() -> None:
    strategy = random_search(CHOICES, structural_trials=10, modular_trials=10)
    history = [BASELINE]
    for stage in strategy.stages:
        history = play(stage, history, stage.trials)
    assert {c.origin for c in history[1:]} == {"random"}
    assert len({c.architecture for c in history}) == 21
    assert all(NANO.contains(c.architecture) for c in history)


def test_exhausted_spaces_end_the_stages() -> None:
    text = "basicblock_8_1-2-2+fpn_2-4_32+rpn+rcnn_64+96x96"
    parts = {"backbones": ["basicblock_8_1-2-2"], "necks": ["fpn_2-4_32"], "rpns": ["rpn"], "heads": ["rcnn_64"]}
    space = narrowed(NANO, text, {"stages": (3,)}, **parts)
    three, tiny = set(space.structures), DetectorChoices(space)
    assert len(three) == 3
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
        assert strategy.stages[1].ask(history, np.random.default_rng(0)) is None, "nothing is evolved"


def test_the_last_unseen_structure_is_found() -> None:
    seen = [trained(i, Proposal(a, "random"), "structural", state="pruned") for i, a in enumerate(NANO.structures[1:])]
    at_random = random_search(CHOICES, structural_trials=10, modular_trials=0)
    for stage in (StructuralStage(CHOICES, 10, 0.2), at_random.stages[0]):
        proposal = stage.ask(seen, np.random.default_rng(0))
        assert proposal is not None
        assert proposal.architecture == NANO.structures[0]


def test_an_unknown_strategy_lists_the_known_ones() -> None:
    with pytest.raises(UnknownStrategyError, match=f"one of {', '.join(STRATEGIES)}, but got 'best'"):
        get_strategy("best")


def made(settings: SearchSettings) -> Strategy:
    return get_strategy(settings.strategy).make(SearchContext(Path(), settings, NANO))


def search_settings(**changes: object) -> SearchSettings:
    return SearchSettings(
        smnas="0.1.0",
        preset="nano",
        data=DataFacts(root="x", classes=("a",), train_images=1, val_images=1),
        device="cpu",
        backend="onnxruntime",
        precision="fp32",
        recipe={},
        epochs=3,
        scorer="stub",
        trials=StageTrials(structural=6, modular=7),
        **changes,  # type: ignore[arg-type]
    )
