"""Stopped training runs, limits and warm starts in the search's loop, on ``search_stub.py``'s stand-in."""

import math
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import search_stub as stub

from profiler.errors import UserError
from profiler.prediction.predict import Latency
from smnas.report.data import hypervolume_by_training
from smnas.report.page import render_report
from smnas.report.run_folder import read_run_folder
from smnas.scoring.base import Score
from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.drafts import check_size_limit
from smnas.search.progress import SearchEvent
from smnas.search.ranking.ranking import Ranking
from smnas.search.run import run_search
from smnas.search.strategies.base import Strategy, StrategyKind
from smnas.search.strategies.by_name import get_strategy
from smnas.search.study.candidate import Candidate
from smnas.search.study.optuna_study import Study, read_candidates
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import RunFolderError, SearchSettings, StageTrials, read_settings
from smnas.search.study.storage import storage_url, study_name
from smnas.search.study.warm_start import warm_candidates
from smnas.search.time_budget import Clock
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space
from smnas.space.sampling import sample_modular, sample_structural

NANO = load_space("nano")
SMALL = StageTrials(structural=4, modular=4)
HALVED = StageTrials(structural=3, modular=3)


def search(folder: Path, settings: SearchSettings, **parts: Any) -> Ranking:
    pool = InProcess(parts.pop("scorer", None) or stub.StubScorer())
    latency, limit_s = parts.pop("latency", None) or stub.StubLatency(), parts.pop("time_limit_s", None)
    arguments = {"scorers": pool, "complexity": stub.complexity}
    context = SearchContext(folder, settings, NANO, latency, limit_s)
    return run_search(context, **(arguments | parts))


def trials(folder: Path) -> list[Candidate]:
    return list(read_candidates(folder, read_settings(folder)))


def halving_settings(**changes: object) -> SearchSettings:
    values = {"strategy": "halving", "epochs": 9, "trials": HALVED, "final_epochs": 0, "generation": 2}
    return stub.settings(**(values | changes))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("halving") / "run"
    search(folder, halving_settings())
    return folder


@pytest.mark.slow
def test_halving_trains_every_epoch_once_and_spends_its_budget(halved: Path) -> None:
    history = trials(halved)
    for architecture in {c.architecture for c in history}:
        row = [c for c in history if c.architecture == architecture and c.state == "complete"]
        assert [c.start_epoch for c in row] == [0, *(c.reached_epoch for c in row[:-1])]
        assert len({RunFolder("").training(c.architecture, c.seed, c.epochs) for c in row}) == 1, (
            "one folder to go on in"
        )
    joint = [c for c in history if c.stage == "joint"]
    assert 6 * 9 <= sum(c.own_epochs for c in joint if c.state == "complete") < 8 * 9
    assert len({c.architecture for c in joint}) > 7
    assert any(c.origin == "promotion" and c.stop_epoch is None for c in joint)


@pytest.mark.slow
def test_a_training_that_was_begun_is_not_pruned_when_it_may_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: set[object] = set()

    def beaten_once_begun(architecture: object, *_: object) -> str | None:
        if architecture in begun:
            return "partial order: beaten meanwhile"
        begun.add(architecture)
        return None

    monkeypatch.setattr("smnas.search.drafts.why_beaten", beaten_once_begun)
    search(tmp_path, halving_settings())
    promoted = [c for c in trials(tmp_path) if c.origin == "promotion"]
    assert promoted
    assert {c.state for c in promoted} == {"complete"}


def test_only_whole_trainings_are_ranked_and_all_epochs_are_counted(halved: Path) -> None:
    history = trials(halved)
    run = read_run_folder(halved)
    whole = {str(c.architecture) for c in history if c.state == "complete" and c.stop_epoch is None}
    assert {row.architecture for row in run.ranking.rows} <= whole
    growth = hypervolume_by_training(run)
    assert growth is not None
    assert len(growth.training_runs) == len(whole)
    assert growth.epochs[-1] <= sum(c.own_epochs for c in history if c.state == "complete")
    assert growth.epochs[-1] > 9 * len(whole), "stopped training runs cost epochs, too"
    joint = [c for c in history if c.stage == "joint" and c.state == "complete"]
    began, spent = len({c.architecture for c in joint}), sum(c.own_epochs for c in joint)
    (note,) = (note for note in run.ranking.notes if note.startswith("The joint stage"))
    assert note.startswith(
        f"The joint stage began {began} candidates and trained {len(whole) - 1} of them to the end, in {spent} epochs: "
        f"{spent / 9:.1f} training runs' worth of 6 planned"
    )


def test_a_halving_search_in_which_everything_fails_says_so(tmp_path: Path) -> None:
    ranking = search(tmp_path, halving_settings(), scorer=stub.StubScorer(diverge_share=1.1))
    assert ranking.recommendation is None
    failed = sum(c.stage == "joint" for c in trials(tmp_path))
    assert ranking.notes[1] == (
        "The joint stage began 0 candidates and trained 0 of them to the end, in 0 epochs: 0.0 training runs' "
        f"worth of 6 planned; {failed} were proposed ({failed} failed)."
    )
    page = render_report(read_run_folder(tmp_path))
    assert "The search has ended, and nothing that it trained has an AP" in page
    assert "No recommendation yet" not in page


@pytest.mark.slow
def test_an_interrupted_halving_search_ends_as_an_uninterrupted_one(tmp_path: Path, halved: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, halving_settings(), scorer=stub.StubScorer(raises={8: KeyboardInterrupt()}))
    search(tmp_path, halving_settings())
    assert trials(tmp_path) == trials(halved)


def test_stopping_needs_a_scorer_that_trains(tmp_path: Path) -> None:
    class Whole:
        name = "whole"

        def score(self, architecture, *, seed, epochs, out_dir, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
            result: Score = stub.StubScorer().score(architecture, seed=seed, epochs=epochs, out_dir=out_dir)
            return result

    with pytest.raises(UserError, match="need a scorer that trains, but got 'whole'"):
        search(tmp_path, halving_settings(), scorer=Whole())


@pytest.mark.slow
def test_nothing_larger_than_the_limit_is_trained(tmp_path: Path) -> None:
    limit = stub.complexity(NANO.baseline_architecture).parameters
    ranking = search(tmp_path, stub.settings(max_parameters=limit, trials=SMALL, partial_order=False, final_epochs=0))
    history = trials(tmp_path)
    pruned = [c for c in history if c.state == "pruned"]
    assert pruned
    assert all(c.parameters > limit for c in pruned)  # type: ignore[operator]
    assert all(c.latency_ms is None for c in pruned), "the size is checked before any block is measured"
    assert all(c.parameters <= limit for c in history if c.state == "complete")  # type: ignore[operator]
    assert "over the limit of parameters: " in str(pruned[0].reason)
    assert any("over the limit of parameters" in note for note in ranking.notes)


def test_limits_that_nothing_keeps_end_without_a_recommendation(tmp_path: Path) -> None:
    few = StageTrials(structural=1, modular=0)
    over: tuple[dict[str, object], ...] = ({"latency_ms": 0.01}, {"max_parameters": 10})
    for number, limits in enumerate(over):
        latency = stub.StubLatency()
        ranking = search(
            tmp_path / str(number), stub.settings(**(limits | {"trials": few, "final_epochs": 0})), latency=latency
        )
        assert ranking.recommendation is None
        assert [row.role for row in ranking.rows] == ["baseline"], "trained, as the reference"
        assert any(note.startswith("Nothing is recommended: no trained detector is") for note in ranking.notes)
        page = render_report(read_run_folder(tmp_path / str(number)))
        assert "none of its detectors is one to deploy" in page
    assert set(latency.asked) == {str(NANO.baseline_architecture)}


def test_what_is_too_large_has_no_latency_measured_for_any_strategy(tmp_path: Path) -> None:
    limit = stub.complexity(NANO.baseline_architecture).parameters // 3
    fits = [stub.complexity(a).parameters <= limit for a in NANO.structures]
    small, large = (NANO.structures[fits.index(fit)] for fit in (True, False))
    latency, few = stub.StubLatency(), StageTrials(structural=2, modular=0)

    def make(context: SearchContext) -> Strategy:
        assert context.known_ms(small, math.inf) == latency(small).ms
        assert context.known_ms(large, math.inf) is None
        return get_strategy("random").make(context)

    settings = stub.settings(max_parameters=limit, final_epochs=0, trials=few, latency_ms=50.0, prior="entropy")
    search(tmp_path, settings, latency=latency, strategy=StrategyKind("asking", make))
    measured = {Architecture.parse(text) for text in latency.asked} - {NANO.baseline_architecture, small}
    assert measured
    assert all(stub.complexity(a).parameters <= limit for a in measured)


def size(a: Architecture) -> int:
    """Parameters in the manner of the stand-in, whatever the input."""
    return stub.complexity(replace(a, input_width=128, input_height=128)).parameters


def test_a_size_that_no_detector_keeps_is_refused_and_others_are_not() -> None:
    rng = np.random.default_rng(1)
    drawn = [sample_modular(NANO, sample_structural(NANO, rng), rng) for _ in range(500)]
    smallest = min(map(size, (*drawn, *NANO.structures)))
    check_size_limit(NANO, smallest, size)
    for most in (1, smallest // 2):
        with pytest.raises(UserError, match="must allow a detector of nano, of which the smallest found has"):
            check_size_limit(NANO, most, size)
    calls: list[Architecture] = []
    check_size_limit(NANO, size(NANO.baseline_architecture), lambda a: calls.append(a) or size(a))  # type: ignore[func-returns-value]
    assert calls == [NANO.baseline_architecture], "the common case costs one look"


@pytest.mark.slow
def test_a_time_limit_stops_proposing_and_a_rerun_goes_on(tmp_path: Path) -> None:
    settings = stub.settings(trials=SMALL, generation=2)
    events: list[SearchEvent] = []
    ranking = search(tmp_path, settings, time_limit_s=1e-6, on_event=events.append)
    assert Counter(c.stage for c in trials(tmp_path)) == {"baseline": 1, "final": 2}, "the final phase is not left out"
    assert any("Proposing stopped at the time limit" in note for note in ranking.notes)
    whole = search(tmp_path, settings)
    counts = Counter(c.stage for c in trials(tmp_path) if c.state == "complete")
    assert (counts["structural"], counts["modular"]) == (4, 4)
    assert not any("time limit" in note for note in whole.notes)


def test_a_clock_keeps_time_for_a_training_and_the_final_phase_and_shares_the_rest() -> None:
    seconds = 0.0
    settings = stub.settings(top=2, final_epochs=6, final_seeds=2)  # 6 training runs of 6 epochs to come
    clock = Clock(100.0, settings, at_once=2, now=lambda: seconds)
    architecture = NANO.baseline_architecture
    done = Candidate(0, architecture, "baseline", "baseline", None, "complete", 0, 3, score=0.3, seconds=6.0)
    # 2 s an epoch: the final phase takes 6 * 6 * 2 / 2 = 36 s, and what is proposed now 3 * 2 = 6 s.
    found = []
    for seconds in (25.0, 27.0, 57.0, 59.0):  # noqa: B007  the clock reads it
        found.append((clock.is_up(0.5, [done]), clock.is_up(1.0, [done])))
    assert found == [(False, False), (True, False), (True, False), (True, True)]
    assert Clock(100.0, settings, 2, now=lambda: 0.0).notes == ()
    # More workers than training runs to come help no further: one after the other nothing, all at once 6 * 2 = 12 s.
    seconds = 0.0
    many = Clock(100.0, settings, at_once=60, now=lambda: seconds)
    found = []
    for seconds in (81.0, 83.0):  # noqa: B007  the clock reads it
        found.append(many.is_up(1.0, [done]))
    assert found == [False, True]
    # A generation of five on two workers is three training runs one after the other.
    seconds = 0.0
    five = Clock(100.0, settings.model_copy(update={"generation": 5}), at_once=2, now=lambda: seconds)
    found = []
    for seconds in (45.0, 47.0):  # noqa: B007  the clock reads it
        found.append(five.is_up(1.0, [done]))
    assert found == [False, True]


@pytest.mark.slow
def test_a_warm_start_trains_nothing_twice(tmp_path: Path) -> None:
    first = tmp_path / "first"
    search(first, stub.settings(trials=SMALL, final_epochs=0))
    settings = stub.settings(trials=SMALL, final_epochs=0, seed=7, warm_start=(str(first),))
    scorer = stub.StubScorer()
    search(tmp_path / "second", settings, scorer=scorer)
    history = trials(tmp_path / "second")
    counts = Counter((c.stage, c.state) for c in history)
    assert (counts["warm", "complete"], counts["structural", "complete"], counts["modular", "complete"]) == (8, 4, 4)
    assert len(scorer.calls) == 8, "neither the baseline nor what the first run trained"
    known = {c.architecture: c.score for c in trials(first)}
    for c in history:
        if c.stage in ("baseline", "warm"):
            assert known[c.architecture] == c.score
            assert (tmp_path / "second" / str(c.checkpoint)).is_file()
            assert c.own_epochs == 0
        else:
            assert c.architecture not in known
    again = stub.StubScorer()
    search(tmp_path / "second", settings, scorer=again)
    assert again.calls == []


@pytest.mark.slow
def test_a_warm_start_is_made_once_whatever_becomes_of_the_other_run(tmp_path: Path) -> None:
    first, few = tmp_path / "first", StageTrials(structural=2, modular=0)
    search(first, stub.settings(trials=few, final_epochs=0))
    settings = stub.settings(trials=SMALL, final_epochs=0, seed=7, warm_start=(str(first),))
    search(tmp_path / "whole", settings)
    for name in ("grown", "gone"):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / name, settings, scorer=stub.StubScorer(raises={3: KeyboardInterrupt()}))
    with Study(first) as study:
        fresh = next(a for a in NANO.structures[::-1] if a not in study.candidates.seen)
        study.add(replace(study.candidates[1], number=len(study.candidates), architecture=fresh))
    search(tmp_path / "grown", settings)
    shutil.rmtree(first)
    search(tmp_path / "gone", settings)
    for name in ("grown", "gone"):
        assert trials(tmp_path / name) == trials(tmp_path / "whole")


@pytest.mark.slow
def test_a_warm_start_takes_whole_trainings_alone(tmp_path: Path) -> None:
    first = tmp_path / "first"
    limit = int(0.7 * stub.complexity(NANO.baseline_architecture).parameters)
    conditions = {"trials": SMALL, "max_parameters": limit, "partial_order": False}
    search(first, stub.settings(**conditions), scorer=stub.StubScorer(diverge_share=0.3))
    there = trials(first)
    assert {c.state for c in there} == {"complete", "failed", "pruned"}
    settings = stub.settings(trials=SMALL, final_epochs=0, warm_start=(str(first),))
    taken = [candidate for candidate, _ in warm_candidates(settings, NANO)]
    whole = [c for c in there if c.state == "complete" and c.stage != "final"]
    assert [(c.architecture, c.score) for c in taken] == [(c.architecture, c.score) for c in whole]


def test_a_warm_start_needs_the_same_conditions(tmp_path: Path) -> None:
    search(tmp_path / "first", stub.settings(trials=StageTrials(structural=1, modular=0), final_epochs=0))
    settings = stub.settings(trials=SMALL, epochs=5, warm_start=(str(tmp_path / "first"),))
    with pytest.raises(RunFolderError, match="differs in epochs"):
        search(tmp_path / "second", settings)
    with pytest.raises(RunFolderError, match="has none"):
        search(tmp_path / "third", stub.settings(warm_start=(str(tmp_path / "nowhere"),)))


def test_storage_urls_hold_no_password_and_studies_are_named_after_their_folder(tmp_path: Path) -> None:
    assert storage_url("postgresql://me@host/db").database == "db"
    for url in ("postgresql://me:secret@host/db", "postgresql://me@host/db?sslmode=require&password=secret"):
        with pytest.raises(RunFolderError, match="must not hold a password") as caught:
            storage_url(url)
        assert "secret" not in str(caught.value)
    with pytest.raises(RunFolderError, match="a storage is a database URL"):
        storage_url("not a url")
    assert study_name(tmp_path, None) == "smnas"
    names = {study_name(tmp_path / name, "postgresql://me@host/db") for name in ("a", "b")}
    assert len(names) == 2
    with pytest.raises(RunFolderError, match="must be a database for the study"):
        Study(tmp_path, "sqlite:////nowhere/at/all.db")


@pytest.mark.parametrize(
    ("url", "module", "fix"),
    [
        ("postgresql://me@host/db", "psycopg", ": pip install 'smnas[postgresql]'"),
        ("mysql+pymysql://me@host/db", "pymysql", ""),
    ],
)
def test_a_driver_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, module: str, fix: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    with pytest.raises(RunFolderError) as caught:
        Study(tmp_path, url)
    assert str(caught.value) == f"a database needs its driver, but {module} is not installed{fix}"


@pytest.mark.slow
@pytest.mark.parametrize(("time_limit_s", "least", "most"), [(None, 60, 70), (10.0, 2, 25)])
def test_a_larger_search_samples_latencies_within_a_tenth_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_limit_s: float | None, least: int, most: int
) -> None:
    latency = stub.StubLatency()
    at_first: list[int] = []
    now = [0.0]
    if time_limit_s is not None:
        monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def slowly(a: Architecture) -> Latency:
        now[0] += 0.05  # a second holds 20
        return latency(a)

    def watch(event: SearchEvent) -> None:
        if event.stage == "joint" and not at_first:
            at_first.append(len(latency.asked))

    settings = halving_settings(trials=StageTrials(structural=20, modular=20))
    search(tmp_path, settings, latency=slowly, time_limit_s=time_limit_s, on_event=watch)
    assert least <= at_first[0] <= most
