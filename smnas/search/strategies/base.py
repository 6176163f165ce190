"""What a search strategy is: a row of stages, each of which proposes the next architecture.

A strategy is made from the :class:`~smnas.search.context.SearchContext`. A function that does it is enough::

    def cheapest_first(context: SearchContext) -> Strategy:
        return Strategy("cheapest-first", (CheapestFirst(context.choices, context.trials),))

A strategy with other needs than the defaults states them in a :class:`StrategyKind`.
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
        """The label of its trials; ``joint`` searches both spaces at once."""
        ...

    @property
    def trials(self) -> int:
        """Trial budget, in training runs of the full number of epochs; shorter runs count by their epochs.

        Pruned and failed trials do not count.
        """
        ...

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """The next architecture; None where the stage finds no more.

        It is none that ``history`` holds, unless a stopped training run resumes (a ``promotion``). A pure function of
        its arguments: a search that was killed and resumed proposes the same architectures. A history that is kept up
        to date (:class:`smnas.search.study.history.History`) is answered faster than a list of the same trials.
        """
        ...


@dataclass(frozen=True)
class Strategy:
    """A named row of stages, run one after the other."""

    name: str
    stages: tuple[SearchStage, ...]


@dataclass(frozen=True)
class StrategyKind:
    """How a strategy is made, and what it needs: known before the search is.

    Attributes:
        name: What ``--strategy`` takes, and ``settings.json`` keeps.
        make: Makes it, once the run folder exists and before the first trial. It may prepare: what takes long is kept
            in ``context.folder`` and found there by a search that resumes, and ``context.on_progress`` is called
            meanwhile.
        stops: It stops training runs and resumes some of them, so its scorer must be able to.
        takes_prior: It gains by a prior that orders its proposals; one with a model of its own does not.
        one_stage: All trials are modular.
    """

    name: str
    make: Callable[[SearchContext], Strategy]
    stops: bool = False
    takes_prior: bool = True
    one_stage: bool = False

    def split(self, structural: int, modular: int) -> StageTrials:
        """The trial budget of each stage, from the user's two numbers."""
        return StageTrials(
            structural=0 if self.one_stage else structural, modular=modular + structural * self.one_stage
        )


def first_unseen(draw: Callable[[], Architecture | None], seen: Set[Architecture]) -> Architecture | None:
    """The first of 200 draws that is one and not in ``seen``; None where there is none."""
    for _ in range(_TRIES):
        architecture = draw()
        if architecture is not None and architecture not in seen:
            return architecture
    return None
