"""Searches whose every proposal and whose ranking are kept: run by ``search/golden/test_golden.py``.

    python tests/stand_ins/golden_search.py CASE... --record

writes them anew, for a change that is meant to change them; without ``--record`` it prints them.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import search_stub as stub
from lawful_latency import LawfulLatency

from smnas.scoring.by_name import ScorerOnDevices
from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.method import choose_method
from smnas.search.run import run_search
from smnas.search.strategies.mae_det import zero_shot
from smnas.search.study.candidate import Candidate
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.settings import StageTrials
from smnas.space.preset import load_space

FOLDER = Path(__file__).parents[1] / "smnas" / "search" / "golden"


def _trials(structural: int, modular: int) -> StageTrials:
    return StageTrials(structural=structural, modular=modular)


_WHOLE = {"trials": _trials(8, 8), "epochs": 9, "final_epochs": 18, "generation": 2, "seed": 3}
CASES: dict[str, dict[str, Any]] = {
    **{
        name: {"strategy": name, **_WHOLE}
        for name in ("sm-nas", "halving", "surrogate", "nsga2", "regularized-evolution", "random")
    },
    "sm-nas-prior": {"strategy": "sm-nas", "prior": "entropy", "latency_ms": 30.0, "trials": _trials(6, 6)},
    "sm-nas-small": {"strategy": "sm-nas", "preset": "small", "trials": _trials(6, 6), "generation": 2},
    "sm-nas-entropy": {"strategy": "sm-nas", "scorer": "entropy", "trials": _trials(6, 6)},
    "mae-det": {"strategy": "mae-det", "scorer": "entropy", "trials": _trials(0, 12)},
}


def play(case: str) -> dict[str, Any]:
    """Run a search and describe it, a line a trial and a line a row of the ranking."""
    changes = dict(CASES[case])
    trainer = stub.StubScorer(diverge_share=0.1)
    method = choose_method(changes.pop("strategy"), changes.pop("scorer", None) or trainer, changes.pop("prior", None))
    stages = changes.pop("trials")
    settings = stub.settings(**changes, **method.settings(stages.structural, stages.modular))
    quick = settings.scorer != trainer.name
    profiler = LawfulLatency() if case == "mae-det" else None
    predict = stub.StubLatency() if profiler is None else profiler.measure_and_predict
    with TemporaryDirectory() as folder, patch.object(zero_shot, "_STEPS", 3000):
        run = Path(folder) / "run"
        ranking = run_search(
            SearchContext(run, settings, load_space(settings.preset), predict, profiler=profiler),
            scorers=InProcess(ScorerOnDevices(settings.scorer, run, None, ("cpu",))(0))
            if quick
            else InProcess(trainer),  # type: ignore[arg-type]
            trainers=InProcess(trainer),
            complexity=stub.complexity,
        )
        candidates = read_candidates(run, settings)
    numbers = {str(c.architecture): c.number for c in reversed(candidates)}
    assert ranking.recommendation is not None
    return {
        "trials": [_trial(c, numbers) for c in candidates],
        "ranking": [
            f"{row.rank} {row.role} {row.stage} front={row.on_front} AP {row.ap!r} search AP {row.search_ap!r} "
            f"{row.predicted_latency_ms!r} ms {row.architecture}"
            for row in ranking.rows
        ],
        "recommendation": ranking.recommendation.reason,
    }


def _trial(c: Candidate, numbers: dict[str, int]) -> str:
    """In words; a parent by its number, a reason by its first two words."""
    parent = "" if c.parent is None else f" of {numbers[c.parent]}"
    reason = "" if c.reason is None else f" ({' '.join(c.reason.split()[:2])})"
    return (
        f"{c.number} {c.stage} {c.origin}{parent} {c.state}{reason} seed {c.seed} generation {c.generation} "
        f"epochs {c.start_epoch}-{c.reached_epoch}/{c.epochs} score {c.score!r} {c.latency_ms!r} ms {c.architecture}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--record", action="store_true", help="write what is expected from now on")
    args = parser.parse_args()
    for case in args.cases:
        text = json.dumps(play(case), indent=1) + "\n"
        if args.record:
            (FOLDER / f"{case}.json").write_text(text)
        else:
            print(text)  # noqa: T201


if __name__ == "__main__":
    main()
