"""NSGA-II (Deb et al., 2002) through optuna's own sampler, over a space's genes.

optuna keeps the population, selects by fronts and crowding, crosses and mutates; this module translates designs to its
parameters and back. The sampler replays the history in trial order, so that a proposal is a function of the history and
the generator.

Invalid crossovers are repaired by :mod:`smnas.space.encoding`; those beyond repair or already seen are drawn again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import NSGAIISampler
from optuna.trial import TrialState

from smnas.search.strategies.base import Strategy, StrategyKind
from smnas.search.strategies.choices import Choices
from smnas.search.strategies.variation import random_unseen_design
from smnas.search.study.candidate import Candidate, Proposal, StageName
from smnas.search.study.history import History
from smnas.search.study.storage import quiet_optuna
from smnas.space.architecture import Architecture

__all__ = ["NSGA2", "Nsga2Stage", "nsga2"]

_POPULATION = (8, 50)  # 50 is optuna's own
_TRIALS_PER_MEMBER = 5
_TRIES = 50


def nsga2(choices: Choices, trials: int) -> Strategy:
    """The strategy ``nsga2``: both spaces at once, with a population of a fifth of ``trials``, 8 to 50."""
    population = min(max(trials // _TRIALS_PER_MEMBER, _POPULATION[0]), _POPULATION[1])
    return Strategy("nsga2", (Nsga2Stage(choices, trials, population),))


@dataclass(eq=False)
class Nsga2Stage:
    """Random designs up to the size of the ``population``, then optuna's children."""

    choices: Choices
    trials: int
    population: int
    name: StageName = "joint"
    _study: optuna.Study | None = field(default=None, init=False)
    # Trials of the study, a cache: another history starts another study.
    _added: list[tuple[Architecture, tuple[float, float]]] = field(default_factory=list, init=False)

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategies.base.SearchStage`."""
        trials = History.of(history)
        seen = trials.seen
        known = [(c.architecture, c.point) for c in trials.whole]
        if len(known) >= self.population:
            study = self._tell(known)
            study.sampler = _sampler(self.population, int(rng.integers(2**31)))
            for _ in range(_TRIES):
                child = self._child(study)
                if child is not None and child not in seen:
                    return Proposal(child, "crossover")
        return random_unseen_design(self.choices, seen, rng)

    @property
    def _distributions(self) -> dict[str, BaseDistribution]:
        return {
            gene.name: IntDistribution(0, gene.size - 1)
            if gene.ordered
            else CategoricalDistribution(tuple(range(gene.size)))
            for gene in self.choices.genes
        }

    def _tell(self, known: list[tuple[Architecture, tuple[float, float]]]) -> optuna.Study:
        """The study of exactly ``known``, in this order."""
        if self._study is None or self._added != known[: len(self._added)]:
            with quiet_optuna():
                sampler = _sampler(self.population, 0)
                self._study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
            self._added = []
        distributions = self._distributions
        for design, point in known[len(self._added) :]:
            # `ask` and `tell` instead of `add_trial`: the sampler assigns the generation in `ask`.
            genes = dict(zip(distributions, self.choices.encode(design), strict=True))
            self._study.enqueue_trial(genes)
            self._study.tell(self._study.ask(distributions), point)
            self._added.append((design, point))
        return self._study

    def _child(self, study: optuna.Study) -> Architecture | None:
        trial = study.ask(self._distributions)
        study.tell(trial, state=TrialState.FAIL)  # if its design is trained, it comes back as a trial of its own
        return self.choices.decode([trial.params[gene.name] for gene in self.choices.genes])


def _sampler(population: int, seed: int) -> NSGAIISampler:
    with quiet_optuna():
        return NSGAIISampler(population_size=population, seed=seed)


NSGA2 = StrategyKind("nsga2", lambda context: nsga2(context.choices, context.trials))
