"""Pre-screening of proposals by a training-free score: of a few only the highest one is evaluated.

It orders proposals and never judges results. Entropy is close to a depth count, so proposals over the latency limit are
set aside first, or the deepest would always win.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from smnas.search.strategies.base import SearchStage, Strategy
from smnas.search.study.candidate import Candidate, Proposal, StageName
from smnas.space.architecture import Architecture

__all__ = ["PriorStage", "with_prior"]


@dataclass(frozen=True)
class PriorStage:
    """A stage that proposes the best of several of another stage's proposals.

    Attributes:
        stage: Source of the proposals.
        prior: Training-free score of an architecture; greater is better.
        fits: Whether an architecture is fast enough to be trained.
        draws: Proposals to choose from.
        name, trials: Those of ``stage``.
    """

    stage: SearchStage
    prior: Callable[[Architecture], float]
    fits: Callable[[Architecture], bool]
    draws: int
    name: StageName
    trials: int

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategies.base.SearchStage`. Ties go to the first proposal."""
        drawn: dict[Architecture, Proposal] = {}
        for _ in range(self.draws):
            proposal = self.stage.ask(history, rng)
            if proposal is None:
                break
            if proposal.origin == "promotion":
                return proposal  # a run that resumes was chosen by its results
            drawn.setdefault(proposal.architecture, proposal)
        fitting = [proposal for proposal in drawn.values() if self.fits(proposal.architecture)]
        return max(
            fitting or list(drawn.values()), key=lambda proposal: self.prior(proposal.architecture), default=None
        )


def with_prior(
    strategy: Strategy, prior: Callable[[Architecture], float], fits: Callable[[Architecture], bool], draws: int
) -> Strategy:
    """Put a prior in front of every stage."""
    stages = tuple(PriorStage(stage, prior, fits, draws, stage.name, stage.trials) for stage in strategy.stages)
    return Strategy(strategy.name, stages)
