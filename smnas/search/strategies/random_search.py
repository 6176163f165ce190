"""Random search over the same two spaces: the control for every other strategy."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial

import numpy as np

from smnas.search.strategies.base import Strategy, StrategyKind, first_unseen
from smnas.search.strategies.choices import Choices
from smnas.search.strategies.variation import random_unseen_design
from smnas.search.study.candidate import Candidate, Proposal, StageName
from smnas.search.study.history import History
from smnas.space.architecture import Architecture

__all__ = ["RANDOM", "random_search", "random_unseen_structure"]


def random_search(choices: Choices, *, structural_trials: int, modular_trials: int) -> Strategy:
    """The strategy ``random``: random structures, then random modular variants of random structures."""
    structural = RandomStage(choices, structural_trials, "structural", random_unseen_structure)
    modular = RandomStage(choices, modular_trials, "modular", random_unseen_design)
    return Strategy("random", (structural, modular))


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
class RandomStage:
    """Random designs without repetition, as ``draw`` proposes them."""

    choices: Choices
    trials: int
    name: StageName
    draw: Callable[[Choices, Set[Architecture], np.random.Generator], Proposal | None]

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategies.base.SearchStage`."""
        return self.draw(self.choices, History.of(history).seen, rng)


RANDOM = StrategyKind(
    "random",
    lambda context: random_search(
        context.choices,
        structural_trials=context.settings.trials.structural,
        modular_trials=context.settings.trials.modular,
    ),
)
