"""Random search over the same two spaces: the control for every other strategy."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from smnas.search.strategies.base import Strategy, StrategyKind, first_unseen
from smnas.search.strategies.choices import Choices
from smnas.search.strategies.variation import random_design
from smnas.search.study.candidate import Candidate, Proposal
from smnas.search.study.history import History
from smnas.space.architecture import Architecture
from smnas.space.preset import SpaceError

__all__ = ["RANDOM", "RandomModularStage", "RandomStructuralStage", "random_search", "random_unseen_structure"]


def random_search(choices: Choices, *, structural_trials: int, modular_trials: int) -> Strategy:
    """The strategy ``random``: random structures, then random modular variants of random structures."""
    return Strategy(
        "random", (RandomStructuralStage(choices, structural_trials), RandomModularStage(choices, modular_trials))
    )


def random_unseen_structure(choices: Choices, seen: Set[Architecture], rng: np.random.Generator) -> Proposal | None:
    """A random structure that is not in ``seen``; None if all are."""
    if all(architecture in seen for architecture in choices.structures):
        return None
    drawn = first_unseen(partial(choices.random_structure, rng), seen)
    if drawn is None:
        # Almost all are seen: draws miss the rest, so it is listed instead.
        left = [architecture for architecture in choices.structures if architecture not in seen]
        drawn = left[int(rng.integers(len(left)))]
    return Proposal(drawn, "random")


@dataclass(frozen=True)
class RandomStructuralStage:
    """Random structures without repetition."""

    choices: Choices
    trials: int
    name: Literal["structural"] = "structural"

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategies.base.SearchStage`."""
        return random_unseen_structure(self.choices, History.of(history).seen, rng)


@dataclass(frozen=True)
class RandomModularStage:
    """Random modular variants of random structures."""

    choices: Choices
    trials: int
    name: Literal["modular"] = "modular"

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategies.base.SearchStage`."""
        try:
            architecture = first_unseen(partial(random_design, self.choices, rng), History.of(history).seen)
        except SpaceError:  # nothing valid is left
            return None
        return None if architecture is None else Proposal(architecture, "random")


RANDOM = StrategyKind(
    "random",
    lambda context: random_search(
        context.choices,
        structural_trials=context.settings.trials.structural,
        modular_trials=context.settings.trials.modular,
    ),
)
