"""What a scorer prepares is made once, survives a kill, and is read by every process that scores."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import preparing_scorer
import pytest
import search_stub as stub
from preparing_scorer import STEPS, Make, Preparing

from profiler.errors import UserError
from smnas.scoring.workers.processes import InProcess, ScorerNotMadeError, ScorerPool, Workers
from smnas.search.context import SearchContext
from smnas.search.ranking.ranking import Ranking
from smnas.search.run import run_search
from smnas.search.study.optuna_study import read_candidates
from smnas.space.preset import load_space

SETTINGS = preparing_scorer.settings()
STEPS_WRITTEN = "".join(f"{step}\n" for step in range(STEPS))


def search(folder: Path, pool: ScorerPool, on_progress: Any = None) -> Ranking:
    context = SearchContext(
        folder, SETTINGS, load_space("nano"), stub.StubLatency(), on_progress=on_progress or (lambda text, done: None)
    )
    trainers = InProcess(stub.StubScorer())
    return run_search(context, scorers=pool, trainers=trainers, complexity=stub.complexity)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ranking]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    told: list[tuple[str, float | None]] = []
    ranking = search(folder, InProcess(Preparing()), lambda text, done: told.append((text, done)))
    assert told == [(f"step {step}", step / STEPS) for step in range(STEPS)]
    return folder, ranking


def test_scores_are_kept_by_their_metric_and_only_final_ap_is_ranked(whole: tuple[Path, Ranking]) -> None:
    folder, ranking = whole
    candidates = read_candidates(folder, SETTINGS)
    searched = [c for c in candidates if c.stage != "final" and c.state == "complete"]
    assert len(searched) == 6
    assert all((c.metric, c.score) == ("shared score", stub.load_of(c.architecture)) for c in searched)
    assert {c.metric for c in candidates if c.stage == "final"} == {"AP"}
    assert {row.stage for row in ranking.rows} == {"final"}
    assert ranking.notes[0] == (
        "Candidates were scored by shared score, without training. Only what the final phase trained has an AP and is "
        "ranked."
    )


@pytest.mark.slow
def test_a_kill_while_preparing_is_resumed(tmp_path: Path, whole: tuple[Path, Ranking]) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, str(preparing_scorer.__file__), str(folder), "3"]
    assert subprocess.run(command, check=False).returncode == 1
    assert (folder / "shared.txt").read_text() == "0\n1\n2\n"
    steps: list[str] = []
    assert search(folder, InProcess(Preparing()), lambda text, _: steps.append(text)) == whole[1]
    assert steps == ["step 3", "step 4"]
    assert (folder / "shared.txt").read_text() == STEPS_WRITTEN


@pytest.mark.slow
def test_workers_prepare_once_and_all_of_them_read_it(tmp_path: Path, whole: tuple[Path, Ranking]) -> None:
    folder, steps = tmp_path / "run", list[str]()
    with Workers(Make(), 2) as pool:
        assert search(folder, pool, lambda text, _: steps.append(text)) == whole[1]
    assert steps == [f"step {step}" for step in range(STEPS)], "the second worker has nothing to tell"
    assert (folder / "shared.txt").read_text() == STEPS_WRITTEN
    assert len(set((folder / "prepared-by").read_text().split())) == 2
    assert read_candidates(folder, SETTINGS) == read_candidates(whole[0], SETTINGS)


@pytest.mark.slow
def test_a_worker_that_always_dies_while_it_prepares_ends_the_search(tmp_path: Path) -> None:
    with (
        Workers(Make(dies_at=1), 2) as pool,
        pytest.raises(ScorerNotMadeError, match="the worker that prepares died 2 times, with exit code 1"),
    ):
        search(tmp_path / "run", pool)
    (tmp_path / "run" / "alive").touch()
    with Workers(Make(dies_at=1), 2) as pool:
        assert search(tmp_path / "run", pool).recommendation is not None
    assert (tmp_path / "run" / "shared.txt").read_text() == STEPS_WRITTEN


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_what_can_not_be_prepared_is_the_users_error(tmp_path: Path, workers: int) -> None:
    pool = Workers(Make(refuses=True), workers) if workers else InProcess(Preparing(refuses=True))
    try:
        with pytest.raises(UserError, match="weights must be there"):
            search(tmp_path / "run", pool)
    finally:
        if isinstance(pool, Workers):
            pool.close()
