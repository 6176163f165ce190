"""Search strategies: a sequence of stages, each of which proposes the next architecture.

A strategy is made from the :class:`~smnas.search.context.SearchContext`. A function is enough::

    def cheapest_first(context: SearchContext) -> Strategy:
        return Strategy("cheapest-first", (CheapestFirst(context.choices, context.trials),))

Needs other than the defaults are stated in a :class:`StrategyKind`.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from smnas.search.context import SearchContext
from smnas.search.study.candidate import Candidate, Proposal, StageName
from smnas.search.study.settings import StageTrials
from smnas.space.architecture import Architecture

__all__ = ["SearchStage", "Strategy", "StrategyKind", "first_unseen"]

_TRIES = 200


class SearchStage(Protocol):
    """One stage of a strategy."""

    @property
    def name(self) -> StageName:
        """Label of its trials; ``joint`` searches both spaces at once."""

    @property
    def trials(self) -> int:
        """Trial budget in full-length training runs: partial ones count by epochs, pruned and failed ones do not."""

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """The next architecture; None if the stage finds no more.

        It is new to ``history``, unless a stopped training run resumes (a ``promotion``). A pure function of its
        arguments, so that a search that was killed and resumes proposes the same architectures. A
        :class:`smnas.search.study.history.History` is faster than a list of the same trials.
        """


@dataclass(frozen=True)
class Strategy:
    """A named sequence of stages, run one after the other."""

    name: str
    stages: tuple[SearchStage, ...]


@dataclass(frozen=True)
class StrategyKind:
    """Constructor and needs of a strategy, known before the search is.

    Attributes:
        name: Value of ``--strategy``, kept in ``settings.json``.
        make: Makes it, once the run folder exists and before the first trial. Expensive preparation is kept in
            ``context.folder`` for a search that resumes, and reported to ``context.on_progress``.
        stops: It stops training runs and resumes some of them, so its scorer must be able to.
        takes_prior: It gains by a prior on its proposals; one with a model of its own does not.
        one_stage: All trials are modular.
        measures: It measures blocks itself, so the device must be in this machine.
    """

    name: str
    make: Callable[[SearchContext], Strategy]
    stops: bool = False
    takes_prior: bool = True
    one_stage: bool = False
    measures: bool = False

    def split(self, structural: int, modular: int) -> StageTrials:
        """Trial budget of each stage, from the user's two numbers."""
        return StageTrials(
            structural=0 if self.one_stage else structural, modular=modular + structural * self.one_stage
        )


def first_unseen(draw: Callable[[], Architecture | None], seen: Set[Architecture]) -> Architecture | None:
    """First of 200 draws that is neither None nor in ``seen``; None if there is none."""
    for _ in range(_TRIES):
        architecture = draw()
        if architecture is not None and architecture not in seen:
            return architecture
    return None
