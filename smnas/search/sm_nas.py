"""SM-NAS's two stages (Yao et al., AAAI 2020, arXiv 1911.09929).

Stage 1 evolves combinations of modules; stage 2 starts from several of its Pareto points and evolves the depth, the
widths and the stage layout inside the modules. Mutation only, no crossover, and a share of random candidates in both.
How many Pareto points stage 2 starts from, and that its trainings are shared out evenly between them, are choices of
this project.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from smnas.search.candidate import Candidate, Origin, Proposal, in_search, will_count
from smnas.search.pareto import as_points, non_dominated, spread
from smnas.search.strategy import Strategy, first_unseen, seen_architectures
from smnas.space.architecture import Architecture
from smnas.space.mutation import NoMoveError, mutate_modular, mutate_structural
from smnas.space.preset import Space, SpaceError
from smnas.space.sampling import sample_modular, sample_structural

__all__ = ["ModularStage", "StructuralStage", "modular_parents", "sm_nas"]


def sm_nas(
    space: Space,
    *,
    structural_trials: int,
    modular_trials: int,
    random_share: float = 0.2,
    parents: int = 4,
    latency_limit_ms: float | None = None,
) -> Strategy:
    """The strategy ``sm-nas``.

    Args:
        space: Where both stages search.
        structural_trials: Candidates that stage 1 trains.
        modular_trials: Candidates that stage 2 trains.
        random_share: Share of random candidates in each stage.
        parents: Pareto points of stage 1 that stage 2 starts from, at most.
        latency_limit_ms: Stage 2 starts from points within this latency only, where there are any.
    """
    return Strategy(
        "sm-nas",
        (
            StructuralStage(space, structural_trials, random_share),
            ModularStage(space, modular_trials, random_share, parents, latency_limit_ms),
        ),
    )


def _quota(trials: int, share: float) -> int:
    """How many of ``trials`` are random: every fifth one for a share of 0.2."""
    return math.floor(trials * share + 1e-9)  # 15 * 0.2 is a little more than 3, 10 * 0.7 a little less than 7


def _randoms(members: Sequence[Candidate]) -> int:
    return sum(c.origin == "random" and will_count(c) for c in members)


def _front(members: Sequence[Candidate]) -> list[Candidate]:
    mask = non_dominated(as_points([c.point for c in members]))
    return [c for c, on_front in zip(members, mask, strict=True) if on_front]


@dataclass(frozen=True)
class StructuralStage:
    """Stage 1: the random share first, as material for a front, then mutations of the front's members."""

    space: Space
    trials: int
    random_share: float
    name: Literal["structural"] = "structural"

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategy.SearchStage`."""
        seen = seen_architectures(history)
        front = _front([c for c in history if in_search(c) and c.stage in ("baseline", "structural")])
        randoms = _randoms([c for c in history if c.stage == "structural"])
        if front and randoms >= _quota(self.trials, self.random_share):
            for index in rng.permutation(len(front)).tolist():
                parent = front[index]
                try:
                    child = first_unseen(partial(mutate_structural, self.space, parent.architecture, rng), seen)
                except NoMoveError:
                    continue
                if child is not None:
                    return Proposal(child, "mutation", str(parent.architecture))
        return _random_structure(self.space, seen, rng)


def _random_structure(space: Space, seen: set[Architecture], rng: np.random.Generator) -> Proposal | None:
    if all(architecture in seen for architecture in space.structures):
        return None
    child = first_unseen(partial(sample_structural, space, rng), seen)
    if child is None:
        # Almost everything was looked at: draws miss what is left, so it is listed instead.
        left = [architecture for architecture in space.structures if architecture not in seen]
        child = left[int(rng.integers(len(left)))]
    return Proposal(child, "random")


def modular_parents(
    history: Sequence[Candidate], count: int, latency_limit_ms: float | None = None
) -> tuple[Candidate, ...]:
    """The Pareto points of stage 1 and the baseline that stage 2 evolves, spread by hypervolume contribution.

    Points over the latency limit are left out unless nothing is within it.
    """
    known = [c for c in history if in_search(c) and c.stage in ("baseline", "structural")]
    within = [c for c in known if latency_limit_ms is None or c.point[1] <= latency_limit_ms]
    chosen_from = within or known
    return tuple(chosen_from[i] for i in spread(as_points([c.point for c in chosen_from]), count))


@dataclass(frozen=True)
class ModularStage:
    """Stage 2: a family for each Pareto point of stage 1, evolved in turns.

    The family with the fewest trained candidates is next. A random candidate (every fifth, for a share of 0.2) varies
    the family's parent at random; the others mutate a member of the family's own front.
    """

    space: Space
    trials: int
    random_share: float
    parents: int
    latency_limit_ms: float | None = None
    name: Literal["modular"] = "modular"

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategy.SearchStage`."""
        seen = seen_architectures(history)
        families = self._families(history)
        # Trained members first; of equals the family that was asked least, so that one whose candidates are all over
        # the latency limit does not keep the turn.
        order = sorted(families, key=lambda f: (sum(will_count(c) for c in f[1:]), len(f)))
        own = [c for c in history if c.stage == "modular"]
        trained = sum(will_count(c) for c in own)
        origin: Origin = "random" if _randoms(own) < _quota(trained + 1, self.random_share) else "mutation"
        for family in order:
            proposal = self._child(family, origin, seen, rng)
            if proposal is not None:
                return proposal
        return None

    def _families(self, history: Sequence[Candidate]) -> list[list[Candidate]]:
        """For each parent: the parent, then all its descendants that were looked at."""
        families = [[root] for root in modular_parents(history, self.parents, self.latency_limit_ms)]
        home = {str(family[0].architecture): family for family in families}
        for candidate in history:
            if candidate.stage == "modular" and candidate.parent in home:
                home[candidate.parent].append(candidate)
                home[str(candidate.architecture)] = home[candidate.parent]
        return families

    def _child(
        self, family: Sequence[Candidate], origin: Origin, seen: set[Architecture], rng: np.random.Generator
    ) -> Proposal | None:
        root = family[0]
        if origin == "random":
            parents = [root]
        else:
            members = _front([root, *(c for c in family[1:] if in_search(c))])
            parents = [members[i] for i in rng.permutation(len(members)).tolist()]
        for parent in parents:
            move = sample_modular if origin == "random" else mutate_modular
            try:
                child = first_unseen(partial(move, self.space, parent.architecture, rng), seen)
            except SpaceError:
                continue
            if child is not None:
                return Proposal(child, origin, str(parent.architecture))
        return None
