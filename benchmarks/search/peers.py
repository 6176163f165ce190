"""Do optuna's samplers find as much hypervolume in as many epochs as our strategies?

Plays ``GPSampler``, multivariate ``TPESampler`` and ``NSGAIISampler`` in the loop of ``search_quality.py`` on problems
that no strategy was written with. Their study holds latency and AP of completed runs. A sampler that proposes trained
designs five times in a row gets a random one. With two objectives DTLZ5 has the objectives of DTLZ2, which was used
while our strategies were written, with other learning curves.

    python -m benchmarks.search.peers --seeds 10 --trials 60 --keep
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.search.problems.analytic import LEVELS, VARIABLES
from benchmarks.search.problems.problem import Problem
from benchmarks.search.search_quality import STRATEGIES, answer_for, make, show
from smnas.search.strategies.base import Strategy
from smnas.search.strategies.variation import random_design
from smnas.search.study.candidate import Candidate, Proposal, StageName
from smnas.search.study.history import History

SPACE: dict[str, BaseDistribution] = {f"x{i}": IntDistribution(0, LEVELS - 1) for i in range(VARIABLES)}
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "optuna-gp": lambda seed: GPSampler(seed=seed),
    "optuna-tpe": lambda seed: TPESampler(seed=seed, multivariate=True, constant_liar=True),
    "optuna-nsga2": lambda seed: NSGAIISampler(seed=seed),
}


class SamplerStage:
    """An optuna study that gets the finished trials and proposes the next one."""

    name: StageName = "joint"

    def __init__(self, problem: Problem, trials: int, make_sampler: Callable[[int], BaseSampler]) -> None:
        self.trials = trials
        self._problem, self._make_sampler = problem, make_sampler
        self._study: optuna.Study | None = None
        self._open: dict[Any, optuna.Trial] = {}

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategies.base.SearchStage`."""
        study = self._study
        if study is None:
            sampler = self._make_sampler(int(rng.integers(2**31)))
            self._study = study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
            self._open[self._problem.baseline] = self._trial(study, self._problem.baseline)
        for candidate in history:
            if candidate.state == "complete" and candidate.architecture in self._open:
                study.tell(self._open.pop(candidate.architecture), candidate.point)
        seen = History.of(history).seen
        for attempt in range(6):
            trial = self._trial(study, random_design(self._problem.choices, rng) if attempt == 5 else None)
            design: Any = tuple(trial.params[name] for name in SPACE)
            if design not in seen:
                self._open[design] = trial
                return Proposal(design, "random")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return None

    def _trial(self, study: optuna.Study, design: Any) -> optuna.Trial:
        """The next trial: of this design, or of the sampler's."""
        if design is not None:
            study.enqueue_trial(dict(zip(SPACE, design, strict=True)))
        return study.ask(SPACE)


def make_any(name: str, problem: Problem, trials: int) -> Strategy:
    """A sampler of optuna or a strategy of this project."""
    if name not in SAMPLERS:
        return make(name, problem, trials)
    return Strategy(name, (SamplerStage(problem, trials, SAMPLERS[name]),))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--problems", default="zdt2,dtlz5", help="names, joined by commas")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=60, help="completed training runs, baseline aside")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep an answer for each problem")
    args = parser.parse_args()
    for name in args.problems.split(","):
        answer = answer_for(name, args.trials, args.seeds, args.workers, make_any, (*SAMPLERS, *STRATEGIES))
        if args.keep:
            keep_answer(f"peers-{name}", __doc__, answer)
        show(answer)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    main()
