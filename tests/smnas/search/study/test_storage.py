"""Where a study is kept: any file name, a folder that moves, a database that is locked or can not be written."""

import shutil
import tempfile
from pathlib import Path

import search_stub as stub
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.ranking.ranking import Ranking
from smnas.search.run import run_search
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import SearchSettings, StageTrials, read_settings
from smnas.space.preset import load_space

NANO = load_space("nano")
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=30).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 120
)


def few(**changes: object) -> SearchSettings:
    return stub.settings(**({"trials": StageTrials(structural=1, modular=0), "final_epochs": 0} | changes))  # type: ignore[no-any-return]


def search(folder: Path, conditions: SearchSettings, scorer: stub.StubScorer | None = None) -> Ranking:
    context = SearchContext(folder, conditions, NANO, stub.StubLatency())
    return run_search(context, scorers=InProcess(scorer or stub.StubScorer()), complexity=stub.complexity)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(NAMES)
@example("run?1")
@example("a%41#{0}&b=c")
@example(":memory:")
@example("file:run?mode=memory")
@example("[1-9]\n'\";*")
def test_any_name_of_a_folder_holds_a_study_of_its_own(name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / f"{name}{end}" for end in ("", "2")]
        for seed, folder in enumerate(folders):
            scorer = stub.StubScorer()
            search(folder, few(seed=seed), scorer)
            assert len(scorer.calls) == 2, "the baseline and one candidate"
            assert RunFolder(folder).study.is_file()
            assert {c.seed for c in read_candidates(folder, read_settings(folder))} == {seed}
        assert sorted(Path(place).iterdir()) == sorted(folders), "nothing is written beside them"
        moved = folders[0].rename(folders[0].with_name("moved"))
        again = stub.StubScorer()
        search(moved, few(seed=0), again)
        assert again.calls == []
        shutil.rmtree(moved)
