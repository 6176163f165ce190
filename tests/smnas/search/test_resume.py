"""SIGKILL at random moments, many times: nothing finished is lost or repeated, and the end is the unkilled run's."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import search_stub as stub

from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.ranking.ranking import read_ranking
from smnas.search.run import run_search
from smnas.search.study.optuna_study import Study, read_candidates
from smnas.search.study.settings import StageTrials
from smnas.space.preset import load_space

SCRIPT = (
    next(folder for folder in Path(__file__).parents if folder.name == "tests") / "stand_ins" / "search_kill_script.py"
)
KILLS = 12


def run(folder: Path, kills: int) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(kills), "7"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


@pytest.mark.slow
def test_a_search_survives_being_killed_at_random_moments(tmp_path: Path) -> None:
    run(tmp_path / "whole", 0)
    report = run(tmp_path / "killed", KILLS)
    snapshots, final = report["snapshots"], report["final"]
    assert isinstance(snapshots, list)
    assert isinstance(final, dict)
    assert report["killed"] >= 10, "most kills must hit a search that runs"  # type: ignore[operator]
    assert len({len(snapshot) for snapshot in snapshots}) >= 5, "the kills must hit different moments"

    for snapshot in snapshots:
        for number, trial in snapshot.items():
            assert final[number] == trial, "a finished trial is never touched again: same values, same end time"

    with Study(tmp_path / "whole") as study:
        whole = list(study.candidates)
    with Study(tmp_path / "killed") as study:
        killed = list(study.candidates)
    assert len(final) == len(killed)
    # `seconds` of a failed trial is wall time; everything else is equal, trial by trial.
    assert [(c.number, c.architecture, c.stage, c.state, c.score, c.latency_ms, c.seed) for c in killed] == [
        (c.number, c.architecture, c.stage, c.state, c.score, c.latency_ms, c.seed) for c in whole
    ]
    trained = Counter((c.architecture, c.seed, c.epochs) for c in killed if c.state == "complete")
    assert set(trained.values()) == {1}
    assert read_ranking(tmp_path / "killed") == read_ranking(tmp_path / "whole")


class Killed(BaseException):
    """Nothing that a search may catch."""


@pytest.mark.slow
@pytest.mark.parametrize("call", [8, 9])
def test_a_generation_that_was_not_full_stays_so_when_a_kill_hits_it_after_a_failure(tmp_path: Path, call: int) -> None:
    """Of a stage's last two candidates the first one fails: what takes its place is proposed after both, as ever."""
    space = load_space("nano")
    settings = stub.settings(generation=4, trials=StageTrials(structural=3, modular=3), final_epochs=0)

    def search(folder: Path, raises: dict[int, BaseException]) -> list[tuple[object, ...]]:
        scorer = stub.StubScorer(diverge_share=0.4, raises=raises)
        run_search(
            SearchContext(folder, settings, space, stub.StubLatency()),
            scorers=InProcess(scorer),
            complexity=stub.complexity,
        )
        return [(c.number, c.architecture, c.state, c.score, c.generation) for c in read_candidates(folder, settings)]

    with pytest.raises(Killed):
        search(tmp_path / "killed", {call: Killed()})
    assert search(tmp_path / "killed", {}) == search(tmp_path / "whole", {})
