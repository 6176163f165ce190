"""What a search strategy is: a row of stages, each of which can be asked for the next architecture."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from smnas.search.study.candidate import Candidate, Proposal, StageName
from smnas.space.architecture import Architecture

__all__ = ["SearchStage", "Strategy", "first_unseen"]

_TRIES = 200


class SearchStage(Protocol):
    """One stage of a strategy."""

    @property
    def name(self) -> StageName:
        """What its trials are labelled with; ``joint`` searches both spaces at once."""
        ...

    @property
    def trials(self) -> int:
        """How many training runs of the whole budget, or as many epochs in shorter ones, it may spend.

        Pruned and failed ones do not count.
        """
        ...

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """The next architecture; None where the stage finds no more.

        It is none that ``history`` holds, unless a stopped training is to go on (a ``promotion``). A pure function of
        its arguments: a search that was killed and resumed proposes the same architectures. A history that is kept up
        to date (:class:`smnas.search.study.history.History`) is answered faster than a list of the same trials.
        """
        ...


@dataclass(frozen=True)
class Strategy:
    """A named row of stages, run one after the other."""

    name: str
    stages: tuple[SearchStage, ...]


def first_unseen(draw: Callable[[], Architecture | None], seen: Set[Architecture]) -> Architecture | None:
    """The first of 200 draws that is one and not in ``seen``; None where there is none."""
    for _ in range(_TRIES):
        architecture = draw()
        if architecture is not None and architecture not in seen:
            return architecture
    return None
