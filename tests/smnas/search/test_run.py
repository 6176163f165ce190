"""The whole loop on a stand-in for training and measuring (``search_stub.py``)."""

import functools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import search_stub as stub

from profiler.errors import UserError
from smnas.scoring.entropy import detector_entropy
from smnas.scoring.entropy_scorer import EntropyScorer
from smnas.scoring.workers.processes import InProcess, Workers
from smnas.search.context import SearchContext
from smnas.search.pareto import as_points, non_dominated
from smnas.search.progress import SearchEvent
from smnas.search.ranking.ranking import Ranking, complete_ranking, read_ranking
from smnas.search.run import run_search
from smnas.search.strategies.by_name import STRATEGIES, get_strategy
from smnas.search.strategies.prior import PriorStage
from smnas.search.study.candidate import Candidate, Proposal, in_search
from smnas.search.study.optuna_study import Study
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import RunFolderError, SearchSettings, StageTrials
from smnas.space.architecture import Architecture
from smnas.space.partial_order import not_larger
from smnas.space.preset import Space, load_space

NANO = load_space("nano")


def search(folder: Path, settings: SearchSettings | None = None, space: Space = NANO, **parts: Any) -> Ranking:
    pool = parts.pop("scorers", None) or InProcess(parts.pop("scorer", None) or stub.StubScorer())
    latency, limit_s = parts.pop("latency", None) or stub.StubLatency(), parts.pop("time_limit_s", None)
    arguments = {"scorers": pool, "complexity": stub.complexity}
    context = SearchContext(folder, settings or stub.settings(), space, latency, limit_s)
    return run_search(context, **(arguments | parts))


def trials(folder: Path) -> list[Candidate]:
    with Study(folder) as study:
        return list(study.candidates)


@pytest.mark.slow
def test_a_search_trains_what_it_promises(tmp_path: Path) -> None:
    scorer = stub.StubScorer(diverge_share=0.1)
    settings = stub.settings(trials=StageTrials(structural=10, modular=10), top=3)
    ranking = search(tmp_path / "run", settings, scorer=scorer)
    history = trials(tmp_path / "run")
    stages = Counter((c.stage, c.state) for c in history)
    assert stages["baseline", "complete"] == 1
    assert stages["structural", "complete"] == 10
    assert stages["modular", "complete"] == 10
    assert stages["final", "complete"] == 8, "three candidates and the baseline with two seeds"
    assert stages["structural", "failed"] + stages["modular", "failed"] > 0
    order = [c.stage for c in history]
    assert order == sorted(order, key=["baseline", "structural", "modular", "final"].index)
    searched = [c.architecture for c in history if c.stage != "final"]
    assert len(set(searched)) == len(searched)
    assert len(scorer.calls) == len([c for c in history if c.state != "pruned"])
    assert all(c.reason for c in history if c.state in ("failed", "pruned"))
    for c in history:
        assert c.parameters == stub.complexity(c.architecture).parameters
        if c.state == "complete":
            folder = RunFolder("").training(c.architecture, c.seed, c.epochs)
            assert c.checkpoint == str(folder / "checkpoint.pt")
            assert (tmp_path / "run" / c.checkpoint).exists()
    assert [row.role for row in ranking.rows].count("baseline") == 1
    assert ranking.recommendation is not None
    assert ranking.recommendation.architecture == ranking.rows[0].architecture
    assert read_ranking(tmp_path / "run") == ranking


@pytest.mark.slow
def test_final_trainings_use_the_front_more_epochs_and_other_seeds(tmp_path: Path) -> None:
    search(tmp_path, stub.settings(seed=5))
    history = trials(tmp_path)
    finals = [c for c in history if c.stage == "final"]
    assert {c.seed for c in history if c.stage != "final"} == {5}
    assert [c.seed for c in finals] == [5] * 3 + [6] * 3
    assert {c.epochs for c in finals} == {6}
    known = [c for c in history if in_search(c)]
    front = {
        str(c.architecture)
        for c, on in zip(known, non_dominated(as_points([c.point for c in known])), strict=True)
        if on
    }
    assert {str(c.architecture) for c in finals} - {NANO.baseline} <= front
    by_name = {str(c.architecture): c for c in known}
    assert all(c.latency_ms == by_name[str(c.architecture)].latency_ms for c in finals)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_search_and_another_seed_another(tmp_path: Path) -> None:
    def run(name: str, seed: int) -> list[str]:
        few = StageTrials(structural=3, modular=3)
        search(tmp_path / name, stub.settings(seed=seed, trials=few, final_epochs=0))
        return [str(c.architecture) for c in trials(tmp_path / name)]

    first = run("a", 0)
    assert run("b", 0) == first
    assert run("c", 1) != first


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("search") / "whole"
    search(folder)
    return folder


@pytest.mark.slow
def test_candidates_of_a_generation_are_proposed_from_the_same_results(tmp_path: Path) -> None:
    settings = stub.settings(generation=3, trials=StageTrials(structural=8, modular=7), final_epochs=0)
    scorer = stub.StubScorer(diverge_share=0.1)
    search(tmp_path, settings, scorer=scorer)
    history = trials(tmp_path)
    trained = [c for c in history if c.state in ("complete", "failed")]
    assert all(c.generation is None for c in history if c.state == "pruned")
    assert trained[0].generation == 0
    groups = [[c for c in trained if c.generation == n] for n in range(trained[-1].generation + 1)]  # type: ignore[operator]
    assert all(len({c.stage for c in group}) == 1 for group in groups)
    assert {len(group) for group in groups[1:]} <= {1, 2, 3}
    assert sum(len(group) == 3 for group in groups) >= 4, "only the last ones of a stage may be smaller"
    for c in trained:
        # Nobody's parent was trained in its own generation: its AP was not known yet.
        parents = [p for p in trained if str(p.architecture) == c.parent]
        assert all(p.generation < c.generation for p in parents)  # type: ignore[operator]
    done = Counter(c.stage for c in history if c.state == "complete")
    assert done == {"baseline": 1, "structural": 8, "modular": 7}


@pytest.mark.slow
def test_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    settings = stub.settings(generation=2, trials=StageTrials(structural=4, modular=3))
    alone = search(tmp_path / "alone", settings)
    with Workers(functools.partial(stub.make_scorer, 0.0), 2) as pool:
        at_once = search(tmp_path / "at-once", settings, scorers=pool)
    assert at_once == alone
    keys = [
        [(c.number, c.architecture, c.score, c.generation) for c in trials(tmp_path / n)] for n in ("alone", "at-once")
    ]
    assert keys[0] == keys[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"mae-det"}))  # which measures blocks
def test_every_proposal_follows_from_the_study_and_the_seed(tmp_path: Path, name: str) -> None:
    """A search is asked again, trial by trial, by stages that know nothing but what was known then."""
    few = StageTrials(structural=3, modular=4)
    settings = stub.settings(strategy=name, epochs=9, generation=3, trials=few, final_epochs=0, seed=11)
    search(tmp_path, settings, scorer=stub.StubScorer(diverge_share=0.15))
    history = trials(tmp_path)
    asked = 0
    for c in history[1:]:
        if c.generation is None:
            continue  # pruned or failed before its training
        # Its own generation was running when it was proposed.
        then = [
            replace(d, state="running", score=None) if d.generation == c.generation else d for d in history[: c.number]
        ]
        strategy = get_strategy(name).make(SearchContext(tmp_path, settings, NANO, stub.StubLatency()))
        (stage,) = (stage for stage in strategy.stages if stage.name == c.stage)
        proposal = stage.ask(then, np.random.default_rng([11, c.number]))
        assert proposal == Proposal(c.architecture, c.origin, c.parent, c.stop_epoch)
        asked += 1
    assert asked >= 7


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 4, 9, 15])
def test_an_interrupted_search_ends_as_an_uninterrupted_one(tmp_path: Path, uninterrupted: Path, call: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, scorer=stub.StubScorer(raises={call: KeyboardInterrupt()}))
    states = [c.state for c in trials(tmp_path)]
    assert states.count("running") >= 1
    scorer = stub.StubScorer()
    assert search(tmp_path, scorer=scorer) == read_ranking(uninterrupted)
    assert trials(tmp_path) == trials(uninterrupted)
    assert len(scorer.calls) == 17 - (call - 1), "nothing that was finished is scored again"


def test_a_finished_search_is_not_run_again(uninterrupted: Path) -> None:
    before = read_ranking(uninterrupted)
    scorer, latency = stub.StubScorer(), stub.StubLatency()
    assert search(uninterrupted, scorer=scorer, latency=latency) == before
    assert scorer.calls == []
    assert latency.asked == []


def test_what_an_export_completed_survives_a_search_that_has_nothing_to_do(tmp_path: Path) -> None:
    settings = stub.settings(trials=StageTrials(structural=2, modular=1), final_epochs=0)
    best = search(tmp_path, settings).rows[0].architecture
    completed = complete_ranking(tmp_path, settings, {best: {"exported_ap": 0.5}}, ["exported"])
    assert search(tmp_path, settings) == completed == read_ranking(tmp_path)


@pytest.mark.slow
def test_over_the_latency_limit_nothing_is_trained(tmp_path: Path) -> None:
    settings = stub.settings(latency_ms=15.0, latency_tolerance=1.1, partial_order=False)
    ranking = search(tmp_path, settings)
    history = trials(tmp_path)
    for c in history[1:]:
        if c.stage != "final":
            assert (c.state == "pruned") == (c.point[1] > 15.0 * 1.1)
            assert c.state != "pruned" or (c.reason or "").startswith("over the latency limit: ")
    assert history[0].point[1] > 16.5, "the baseline is trained whatever its latency"
    assert history[0].state == "complete"
    assert sum(c.stage == "modular" and c.state == "complete" for c in history) == 5
    assert ranking.rows[0].predicted_latency_ms <= 15.0
    assert "within 15 ms" in ranking.recommendation.reason  # type: ignore[union-attr]
    assert any("over the latency limit" in note for note in ranking.notes)


@pytest.mark.slow
def test_an_impossible_limit_ends_with_a_note(tmp_path: Path) -> None:
    settings = stub.settings(latency_ms=0.5, trials=StageTrials(structural=1, modular=0), final_epochs=0)
    ranking = search(tmp_path, settings)
    assert [row.role for row in ranking.rows] == ["baseline"]
    notes = " ".join(ranking.notes)
    assert "The structural stage trained 0 of 1 planned candidates and ended: 30 were proposed" in notes
    assert "(30 over the latency limit)" in notes
    assert ranking.recommendation is None
    assert "Nothing is recommended: no trained detector is within 0.5 ms" in notes


@pytest.mark.slow
def test_partial_order_pruning_skips_only_what_is_beaten(tmp_path: Path) -> None:
    settings = stub.settings(
        trials=StageTrials(structural=5, modular=25), partial_order_margin=0.0, parents=1, final_epochs=0
    )
    ranking = search(tmp_path, settings)
    history = trials(tmp_path)
    skipped = [c for c in history if c.state == "pruned"]
    assert skipped
    for c in skipped:
        earlier = [k for k in history[: c.number] if in_search(k)]
        bound = min(k.point[0] for k in earlier if not_larger(c.architecture, k.architecture))
        assert any(k.point[1] < c.point[1] and k.point[0] >= bound for k in earlier)
    assert any(note.startswith("Partial order pruning assumes") for note in ranking.notes)
    few = {"partial_order": False, "trials": StageTrials(structural=2, modular=5)}
    unpruned = search(tmp_path / "off", settings.model_copy(update=few))
    assert not [c for c in trials(tmp_path / "off") if c.state == "pruned"]
    assert not any(note.startswith("Partial order pruning") for note in unpruned.notes)


def test_failures_are_stored_and_bounded(tmp_path: Path) -> None:
    settings = stub.settings(trials=StageTrials(structural=6, modular=6))
    ranking = search(tmp_path, settings, scorer=stub.StubScorer(diverge_share=1.0))
    history = trials(tmp_path)
    assert Counter(c.stage for c in history) == {"baseline": 1, "structural": 6}, "no front, so no stage 2"
    assert {c.reason for c in history} == {"the loss is not finite at step 17"}
    assert ranking.rows == ()
    assert ranking.recommendation is None
    assert ranking.notes[0].startswith("The baseline failed and is not in the ranking")
    assert json.loads((tmp_path / "ranking.json").read_text())["recommendation"] is None


@pytest.mark.slow
def test_what_can_not_be_measured_or_built_is_a_failed_trial(tmp_path: Path) -> None:
    settings = stub.settings(trials=StageTrials(structural=2, modular=0), final_epochs=0)
    search(tmp_path / "whole", settings)
    first = trials(tmp_path / "whole")[1].architecture

    def refuse(architecture: Architecture) -> Any:
        if architecture == first:
            raise UserError("guided anchoring is not built yet")
        return stub.complexity(architecture)

    scorer = stub.StubScorer()
    latency = stub.StubLatency(broken={str(a) for a in NANO.structures if a not in (first, NANO.baseline_architecture)})
    search(tmp_path / "cut", settings, scorer=scorer, latency=latency, complexity=refuse)
    history = trials(tmp_path / "cut")
    assert history[1].architecture == first
    assert [c.reason for c in history[1:]] == ["guided anchoring is not built yet"] + [
        "the backend refused the graph"
    ] * 4
    assert {c.state for c in history[1:]} == {"failed"}, "five failures end a stage of two"
    assert history[2].latency_ms is None
    assert len(scorer.calls) == 1, "only the baseline"


@pytest.mark.slow
def test_an_odd_error_is_stored_but_the_users_and_the_disks_stop_the_search(tmp_path: Path) -> None:
    settings = stub.settings(trials=StageTrials(structural=2, modular=0), final_epochs=0)
    scorer = stub.StubScorer(raises={2: ZeroDivisionError("division by zero"), 3: RuntimeError()})
    search(tmp_path / "odd", settings, scorer=scorer)
    assert [c.reason for c in trials(tmp_path / "odd")[1:3]] == [
        "unexpected ZeroDivisionError: division by zero",
        "unexpected RuntimeError: RuntimeError",
    ]
    for error in (UserError("the data set is gone"), OSError("no space left on device")):
        folder = tmp_path / type(error).__name__
        with pytest.raises(type(error)):
            search(folder, settings, scorer=stub.StubScorer(raises={2: error}))
        assert trials(folder)[-1].state == "running"
        search(folder, settings)
        assert [c.state for c in trials(folder)] == ["complete"] * 3


def test_a_score_that_is_not_a_number_is_a_failure(tmp_path: Path) -> None:
    class Hollow:
        name = "hollow"

        def score(self, architecture, *, seed, epochs, out_dir, on_progress=None):  # type: ignore[no-untyped-def]
            score = stub.StubScorer().score(architecture, seed=seed, epochs=epochs, out_dir=out_dir)
            return type(score)(float("nan"), score.metrics, score.seconds, score.epochs, None)

    search(tmp_path, stub.settings(trials=StageTrials(structural=1, modular=0)), scorer=Hollow())
    assert {c.reason for c in trials(tmp_path)} == {"the score is not finite: nan"}


@pytest.mark.slow
def test_events_tell_how_far_it_is(tmp_path: Path) -> None:
    events: list[SearchEvent] = []
    search(tmp_path, on_event=events.append, scorer=stub.StubScorer(diverge_share=0.1))
    finished = [e for e in events if e.state != "running"]
    assert [e.number for e in finished] == list(range(len(trials(tmp_path))))
    done = [e for e in finished if e.state == "complete"]
    assert [e.trained for e in done] == list(range(1, 18))
    assert {e.total for e in done} == {17}
    assert events[0].state == "running"
    assert events[0].seconds_left is None
    # 10 training runs of 3 epochs and 6 of 6 are left after the baseline; the stub takes half a second an epoch.
    assert done[0].seconds_left == pytest.approx(10 * 1.5 + 6 * 3.0)
    assert done[-1].seconds_left == 0.0
    searched = [e for e in done if e.stage != "final"]
    assert [e.best_score for e in searched] == sorted(e.best_score for e in searched if e.best_score is not None)
    assert searched[-1].best_score == max(e.score for e in searched if e.score is not None)
    assert all(1 <= len(e.front) <= e.trained for e in done)
    assert all(e.reason for e in finished if e.state == "failed")


@pytest.mark.slow
def test_the_ranking_is_legible_on_the_way(tmp_path: Path) -> None:
    seen: list[tuple[str, ...]] = []

    def look(event: SearchEvent) -> None:
        if event.number == 2:
            seen.append(read_ranking(tmp_path).notes)

    final = search(tmp_path, on_event=look)
    assert "The search has not finished: this ranking is preliminary." in seen[0]
    assert not any("preliminary" in note for note in final.notes)


def test_other_settings_or_an_unknown_strategy_touch_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--strategy must be one of"):
        search(tmp_path / "new", stub.settings(strategy="magic"))
    assert not (tmp_path / "new").exists()
    search(tmp_path, stub.settings(trials=StageTrials(structural=1, modular=1)))
    before = (tmp_path / "ranking.json").read_bytes()
    with pytest.raises(RunFolderError, match=r"seed = 0"):
        search(tmp_path, stub.settings(trials=StageTrials(structural=1, modular=1), seed=1))
    assert (tmp_path / "ranking.json").read_bytes() == before


@pytest.mark.slow
def test_a_score_without_training_trains_the_best_only(tmp_path: Path) -> None:
    scorer, trainer = EntropyScorer(), stub.StubScorer()
    settings = stub.settings(
        scorer="entropy", metric="entropy", trains=False, partial_order=False, top=2, final_seeds=2
    )
    ranking = search(tmp_path / "run", settings, scorer=scorer, trainers=InProcess(trainer))
    history = trials(tmp_path / "run")
    searched = [c for c in history if in_search(c)]
    assert len(searched) == 11
    for c in searched:
        assert c.score == detector_entropy(c.architecture) == c.metrics["entropy"]
        assert (c.checkpoint, c.seconds) == (None, 0.0)
    assert len(trainer.calls) == 6, "the baseline and the best two, with two seeds"
    assert {epochs for _, _, epochs in trainer.calls} == {settings.final_epochs}
    # what is ranked has an AP, and the best of those that are as fast as the baseline by entropy is among them
    assert {row.architecture for row in ranking.rows} == {name for name, _, _ in trainer.calls}
    assert all(0 < row.ap < 1 for row in ranking.rows)
    baseline = next(c for c in searched if c.stage == "baseline")
    fast = [c for c in searched if c.point[1] <= baseline.point[1]]
    best = max(fast, key=lambda c: c.point[0])
    assert str(best.architecture) in {row.architecture for row in ranking.rows}
    assert any("without training" in note for note in ranking.notes)
    again = search(tmp_path / "run", settings, scorer=scorer, trainers=InProcess(trainer))
    assert again == ranking
    assert len(trainer.calls) == 6, "nothing is trained twice"


@pytest.mark.slow
def test_a_prior_orders_what_is_trained(tmp_path: Path) -> None:
    plain, ordered = (
        stub.settings(strategy="random", prior=prior, partial_order=False, trials=StageTrials(structural=12, modular=8))
        for prior in (None, "entropy")
    )
    means = []
    for name, settings in (("plain", plain), ("ordered", ordered)):
        search(tmp_path / name, settings)
        found = [c for c in trials(tmp_path / name) if c.stage in ("structural", "modular")]
        assert len(found) == 20
        means.append(sum(detector_entropy(c.architecture) for c in found) / len(found))
    assert means[1] > 1.2 * means[0], "the best of four by entropy"


@pytest.mark.slow
def test_a_prior_leaves_out_what_is_too_slow(tmp_path: Path) -> None:
    latency = stub.StubLatency()
    limit = float(np.median([latency(a).ms for a in NANO.structures[::20]]))
    pruned = []
    for prior in (None, "entropy"):
        settings = stub.settings(
            strategy="random",
            prior=prior,
            prior_draws=8,
            latency_ms=limit,
            latency_tolerance=1.0,
            partial_order=False,
            trials=StageTrials(structural=10, modular=0),
        )
        search(tmp_path / str(prior), settings, latency=latency)
        pruned.append(sum(c.state == "pruned" for c in trials(tmp_path / str(prior))))
    assert pruned[0] > 0, "about half of all structures are over the limit"
    assert pruned[1] == 0, "and one of eight never is"


def test_the_best_of_the_draws_is_proposed() -> None:
    row = list(NANO.structures[:6])

    class Listed:
        name, trials = "structural", 3

        def __init__(self) -> None:
            self.left = iter(row)

        def ask(self, history: Any, rng: Any) -> Proposal | None:
            following = next(self.left, None)
            return None if following is None else Proposal(following, "random")

    values = dict(zip(row, (3.0, 9.0, 5.0, 1.0, 2.0, 2.0), strict=True))
    stage = PriorStage(Listed(), values.__getitem__, lambda a: a != row[1], 4, "structural", 9)  # type: ignore[arg-type]
    asked = [stage.ask((), np.random.default_rng(0)) for _ in range(3)]
    assert [None if proposal is None else proposal.architecture for proposal in asked] == [row[2], row[4], None]


class EndsByItself(stub.StubScorer):
    """Final runs end after 7 or 8 epochs, have half the AP on held-out images, and hear of a time limit."""

    limits: list[float | None]

    def score_final(self, architecture, *, seed, epochs, out_dir, time_limit_s=None, on_progress=None):  # type: ignore[no-untyped-def]
        self.limits = [*getattr(self, "limits", []), time_limit_s]
        reached = 7 + len(self.limits) % 2
        found = self._score(architecture, seed, epochs, reached, out_dir)
        metrics = {**found.metrics, "ap": found.value / 2, "validation_ap": found.value}
        return replace(found, value=found.value / 2, metrics=metrics, stop_reason=f"AP rose until epoch {reached - 2}")


def test_final_runs_end_by_themselves_and_compare_although_their_epochs_differ(tmp_path: Path) -> None:
    scorer = EndsByItself()
    few = StageTrials(structural=3, modular=0)
    settings = stub.settings(trials=few, final_epochs=100, final_schedule="auto", top=2, final_seeds=1)
    ranking = search(tmp_path / "run", settings, scorer=scorer, time_limit_s=3600.0)
    finals = [row for row in ranking.rows if row.stage == "final"]
    assert {row.epochs for row in finals} == {7, 8}
    assert all(row.stop_reason == f"AP rose until epoch {row.epochs - 2}" for row in finals)
    assert all(row.validation_ap == pytest.approx(2 * row.ap) for row in finals)
    assert {row.stop_reason for row in ranking.rows if row.stage != "final"} <= {None}
    assert ranking.recommendation is not None
    assert "not comparable" not in ranking.recommendation.reason
    assert len(scorer.limits) == 3
    assert all(limit is not None and 0 < limit <= 1200 for limit in scorer.limits)
    assert [c.own_epochs for c in trials(tmp_path / "run") if c.stage == "final"] == [8, 7, 8]
    assert search(tmp_path / "run", settings, scorer=stub.StubScorer(raises={1: AssertionError()})) == ranking
