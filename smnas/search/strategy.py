"""What a search strategy is: a row of stages, each of which can be asked for the next architecture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from smnas.search.candidate import Candidate, Proposal
from smnas.space.architecture import Architecture

__all__ = ["SearchStage", "Strategy", "first_unseen", "seen_architectures"]

_TRIES = 200


class SearchStage(Protocol):
    """One stage of a strategy."""

    @property
    def name(self) -> Literal["structural", "modular"]:
        """What its trials are labelled with."""
        ...

    @property
    def trials(self) -> int:
        """How many candidates it is to train. Pruned and failed ones do not count."""
        ...

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """The next architecture, never one that ``history`` holds; None where the stage finds no more.

        A pure function of its arguments: a search that was killed and resumed proposes the same architectures.
        """
        ...


@dataclass(frozen=True)
class Strategy:
    """A named row of stages, run one after the other."""

    name: str
    stages: tuple[SearchStage, ...]


def seen_architectures(history: Sequence[Candidate]) -> set[Architecture]:
    """Every architecture that was looked at, trained or not."""
    return {candidate.architecture for candidate in history}


def first_unseen(draw: Callable[[], Architecture], seen: set[Architecture]) -> Architecture | None:
    """The first of 200 draws that is not in ``seen``; None where all are."""
    for _ in range(_TRIES):
        architecture = draw()
        if architecture not in seen:
            return architecture
    return None
