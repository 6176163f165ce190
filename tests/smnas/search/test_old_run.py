"""A run folder that an earlier version began, and left in its third generation, is read, resumed and reported.

``old_run`` holds a search by entropy on the stand-ins, from before candidates had a metric.
"""

import shutil
from pathlib import Path

import optuna
import pytest
import search_stub as stub

from smnas.report.page import render_report
from smnas.report.run_folder import read_run_folder
from smnas.scoring.entropy import detector_entropy
from smnas.scoring.entropy_scorer import EntropyScorer
from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.ranking.ranking import Ranking
from smnas.search.run import run_search
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.settings import SearchSettings, read_settings
from smnas.space.preset import load_space


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "old_run", tmp_path / "old"))


def search(folder: Path, settings: SearchSettings) -> Ranking:
    return run_search(
        SearchContext(folder, settings, load_space("nano"), stub.StubLatency()),
        scorers=InProcess(EntropyScorer()),
        trainers=InProcess(stub.StubScorer()),
        complexity=stub.complexity,
    )


def test_it_is_read_and_reported(old_run: Path) -> None:
    settings = read_settings(old_run)
    assert (settings.metric, settings.trains) == ("entropy", False)
    candidates = read_candidates(old_run, settings)
    assert {c.metric for c in candidates} == {"entropy"}
    complete = [c for c in candidates if c.state == "complete"]
    assert [c.score for c in complete] == [detector_entropy(c.architecture) for c in complete]
    page = render_report(read_run_folder(old_run))
    assert "Candidates by entropy" in page
    assert "No recommendation yet" in page


@pytest.mark.slow
def test_it_is_resumed_and_ends_as_one_of_today(old_run: Path, tmp_path: Path) -> None:
    settings = read_settings(old_run)
    began = [c for c in read_candidates(old_run, settings) if c.state != "running"]
    assert search(old_run, settings) == search(tmp_path / "new", settings)
    ended = read_candidates(old_run, settings)
    assert ended[: len(began)] == tuple(began)
    assert ended == read_candidates(tmp_path / "new", settings)
    assert {c.metric for c in ended if c.stage == "final"} == {"AP"}
    storage = optuna.storages.RDBStorage(f"sqlite:///{old_run / 'study.db'}")
    assert optuna.load_study(study_name="smnas", storage=storage).metric_names == ["entropy", "latency (ms)"]
    storage.remove_session()
    storage.engine.dispose()
