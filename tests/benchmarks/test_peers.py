"""Samplers of optuna in the loop of the strategies."""

from typing import Any

import numpy as np
import pytest

from benchmarks.search.peers import SAMPLERS, SamplerStage, make_any
from benchmarks.search.problems.problem import play
from benchmarks.search.search_quality import load
from smnas.search.study.candidate import Candidate, Origin, StageName
from smnas.search.study.history import History

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.mark.parametrize("name", ["optuna-nsga2", "optuna-tpe"])
def test_a_sampler_spends_the_budget_on_different_designs(name: str) -> None:
    played = play(lambda problem, trials: make_any(name, problem, trials), load("zdt2"), 8, 0)
    again = play(lambda problem, trials: make_any(name, problem, trials), load("zdt2"), 8, 0)
    assert played.designs == 9  # the baseline's too
    assert played.epochs[-1] == 81
    assert played.share.tolist() == again.share.tolist()


def test_a_sampler_sees_finished_trials_and_proposes_no_design_twice() -> None:
    problem = load("zdt2")
    stage = SamplerStage(problem, 4, SAMPLERS["optuna-nsga2"])
    history = History()

    def finish(design: Any, stage_name: StageName, origin: Origin, score: float) -> None:
        number = len(history)
        history.append(
            Candidate(number, design, stage_name, origin, None, "complete", 0, 9, latency_ms=5.0, score=score)
        )

    finish(problem.baseline, "baseline", "baseline", 0.5)
    for number in range(1, 5):
        proposal = stage.ask(history, np.random.default_rng(number))
        assert proposal is not None
        assert proposal.architecture not in history.seen
        finish(proposal.architecture, "joint", "random", 0.1)
    assert stage._study is not None
    told = [trial.values for trial in stage._study.trials if trial.state.is_finished()]
    assert told == [[0.5, 5.0], *[[0.1, 5.0]] * 3]  # the last one is not reported yet
