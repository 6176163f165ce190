"""Regularized evolution (Real et al., AAAI 2019, arXiv 1802.01548), for two objectives.

The population is the most recently trained designs: the oldest dies, however good it is. A tournament chooses the
parent, whose mutation is trained next; there is no crossover. In the paper the highest accuracy wins; here a design
that no other one of the tournament dominates in (AP, latency), a random one of several. Sizes that scale with the trial
budget are this project's choice, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from smnas.search.pareto import as_points, non_dominated
from smnas.search.strategies.base import Strategy, StrategyKind, first_unseen
from smnas.search.strategies.choices import Choices
from smnas.search.strategies.variation import mutated, random_unseen_design
from smnas.search.study.candidate import Candidate, Proposal, StageName
from smnas.search.study.history import History

__all__ = ["REGULARIZED_EVOLUTION", "RegularizedEvolutionStage", "regularized_evolution"]

_POPULATION = (8, 100)
_TRIALS_PER_MEMBER = 5
_TOURNAMENT_SHARE = 0.25


def regularized_evolution(choices: Choices, trials: int) -> Strategy:
    """The strategy ``regularized-evolution``: both spaces at once.

    The population is a fifth of ``trials``, 8 to 100 (the paper: 100 of 20,000), a tournament a quarter of it, as
    there.
    """
    population = min(max(trials // _TRIALS_PER_MEMBER, _POPULATION[0]), _POPULATION[1])
    sample = max(2, round(population * _TOURNAMENT_SHARE))
    return Strategy("regularized-evolution", (RegularizedEvolutionStage(choices, trials, population, sample),))


@dataclass(frozen=True)
class RegularizedEvolutionStage:
    """Random designs until the population is full, then mutations of tournament winners."""

    choices: Choices
    trials: int
    population: int
    sample: int
    name: StageName = "joint"

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategies.base.SearchStage`."""
        trials = History.of(history)
        seen, alive = trials.seen, trials.whole[-self.population :]
        if len(alive) == self.population:
            members = [alive[i] for i in rng.choice(len(alive), size=self.sample, replace=False).tolist()]
            best = np.flatnonzero(non_dominated(as_points([c.point for c in members])))
            if len(best):
                parent = members[int(rng.choice(best))].architecture
                child = first_unseen(partial(mutated, self.choices, parent, rng), seen)
                if child is not None:
                    return Proposal(child, "mutation", str(parent))
        return random_unseen_design(self.choices, seen, rng)


REGULARIZED_EVOLUTION = StrategyKind(
    "regularized-evolution", lambda context: regularized_evolution(context.choices, context.trials)
)
