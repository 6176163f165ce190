"""optuna-dashboard reads a search's study: both objectives by name, every trial, the choices, and the same front."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
import search_stub as stub

from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.pareto import as_points, non_dominated
from smnas.search.run import run_search
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.settings import StageTrials
from smnas.space.preset import load_space

dashboard = pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard: pip install 'smnas[dashboard]'")


def get(app: Any, path: str) -> Any:
    environment: dict[str, Any] = {"PATH_INFO": path, "wsgi.input": BytesIO()}
    setup_testing_defaults(environment)
    status: list[str] = []
    body = b"".join(app(environment, lambda line, _headers, _error=None: status.append(line)))
    assert status == ["200 OK"], body
    return json.loads(body)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the dashboard's own
@pytest.mark.parametrize("metric", ["AP", "entropy"])
def test_the_dashboard_shows_both_objectives_and_the_front(tmp_path: Path, metric: str) -> None:
    settings = stub.settings(metric=metric, trials=StageTrials(structural=8, modular=4), final_epochs=0)
    pool = InProcess(stub.StubScorer(diverge_share=0.2))
    run_search(
        SearchContext(tmp_path, settings, load_space("nano"), stub.StubLatency()),
        scorers=pool,
        complexity=stub.complexity,
    )
    app = dashboard.wsgi(f"sqlite:///{tmp_path / 'study.db'}")
    (summary,) = get(app, "/api/studies")["study_summaries"]
    assert (summary["study_name"], summary["directions"]) == ("smnas", ["maximize", "minimize"])
    study = get(app, f"/api/studies/{summary['study_id']}")
    candidates = read_candidates(tmp_path, settings)
    complete = [c for c in candidates if c.state == "complete"]
    assert study["objective_names"] == [metric, "latency (ms)"]
    assert [trial["number"] for trial in study["trials"]] == [c.number for c in candidates]
    assert {"Complete", "Fail"} <= {trial["state"] for trial in study["trials"]}
    values = {trial["number"]: tuple(trial["values"]) for trial in study["trials"] if trial["state"] == "Complete"}
    assert values == {c.number: c.point for c in complete}
    front = non_dominated(as_points([c.point for c in complete]))
    best = {trial["number"] for trial in study["best_trials"]}
    assert best == {c.number for c, on_front in zip(complete, front, strict=True) if on_front}
    choices = {choice["name"] for choice in study["intersection_search_space"]}
    assert {"block", "neck", "head", "head_width", "input_width"} <= choices
