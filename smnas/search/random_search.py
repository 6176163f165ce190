"""Random search over the same two spaces: the control that every other strategy is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from smnas.search.candidate import Candidate, Proposal
from smnas.search.strategy import Strategy, first_unseen, seen_architectures
from smnas.space.architecture import Architecture
from smnas.space.preset import Space, SpaceError
from smnas.space.sampling import sample_modular, sample_structural

__all__ = ["RandomModularStage", "RandomStructuralStage", "random_search"]


def random_search(space: Space, *, structural_trials: int, modular_trials: int) -> Strategy:
    """The strategy ``random``: random structures, then random modular variants of random structures."""
    return Strategy(
        "random", (RandomStructuralStage(space, structural_trials), RandomModularStage(space, modular_trials))
    )


@dataclass(frozen=True)
class RandomStructuralStage:
    """Structural choices drawn at random, without repetition."""

    space: Space
    trials: int
    name: Literal["structural"] = "structural"

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategy.SearchStage`."""
        seen = seen_architectures(history)
        if all(architecture in seen for architecture in self.space.structures):
            return None
        architecture = first_unseen(partial(sample_structural, self.space, rng), seen)
        return None if architecture is None else Proposal(architecture, "random")


@dataclass(frozen=True)
class RandomModularStage:
    """Random codes and widths for random structures."""

    space: Space
    trials: int
    name: Literal["modular"] = "modular"

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategy.SearchStage`."""

        def draw() -> Architecture:
            return sample_modular(self.space, sample_structural(self.space, rng), rng)

        try:
            architecture = first_unseen(draw, seen_architectures(history))
        except SpaceError:  # nothing that may be proposed is left
            return None
        return None if architecture is None else Proposal(architecture, "random")
