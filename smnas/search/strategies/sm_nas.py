"""SM-NAS's two stages (Yao et al., AAAI 2020, arXiv 1911.09929).

Stage 1 evolves combinations of modules; stage 2 starts from several of its Pareto points and evolves depth, widths and
stage layout inside the modules, each within its latency window. Both mutate without crossover, and draw a fraction of
candidates at random. The number of Pareto points, the borders of their windows and the even split of training runs
between them are choices of this project.
"""

import math
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np

from smnas.search.context import SearchContext
from smnas.search.pareto import as_points, non_dominated, spread
from smnas.search.strategies.base import Strategy, StrategyKind, first_unseen
from smnas.search.strategies.choices import Choices
from smnas.search.strategies.random_search import random_unseen_structure
from smnas.search.study.candidate import Candidate, Origin, Proposal, will_count
from smnas.search.study.history import History
from smnas.space.architecture import Architecture
from smnas.space.mutation import NoMoveError
from smnas.space.preset import SpaceError

__all__ = ["SM_NAS", "ModularStage", "StructuralStage", "latency_windows", "modular_parents", "sm_nas"]


_BEFORE_STAGE_2 = ("baseline", "warm", "structural")


def sm_nas(
    choices: Choices,
    *,
    structural_trials: int,
    modular_trials: int,
    random_share: float = 0.2,
    parents: int = 4,
    latency_limit_ms: float | None = None,
) -> Strategy:
    """The strategy ``sm-nas``.

    Args:
        choices: Search space.
        structural_trials: Training runs of stage 1.
        modular_trials: Training runs of stage 2.
        random_share: Fraction of random candidates in each stage.
        parents: Most Pareto points of stage 1 that stage 2 starts from.
        latency_limit_ms: Limits these points to this latency, unless none is within it.
    """
    return Strategy(
        "sm-nas",
        (
            StructuralStage(choices, structural_trials, random_share),
            ModularStage(choices, modular_trials, random_share, parents, latency_limit_ms),
        ),
    )


def _quota(trials: int, share: float) -> int:
    """Number of random candidates among ``trials``: every fifth one for a share of 0.2."""
    return math.floor(trials * share + 1e-9)  # 15 * 0.2 is a little more than 3, 10 * 0.7 a little less than 7


def _front(members: Sequence[Candidate]) -> list[Candidate]:
    mask = non_dominated(as_points([c.point for c in members]))
    return [c for c, on_front in zip(members, mask, strict=True) if on_front]


@dataclass(frozen=True)
class StructuralStage:
    """Stage 1: the random share first, as material for a front, then mutations of the front's members."""

    choices: Choices
    trials: int
    random_share: float
    name: Literal["structural"] = "structural"

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategies.base.SearchStage`."""
        trials = History.of(history)
        seen = trials.seen
        front = _front([c for c in trials.whole if c.stage in _BEFORE_STAGE_2])
        if front and trials.tally("structural").random >= _quota(self.trials, self.random_share):
            for index in rng.permutation(len(front)).tolist():
                parent = front[index]
                try:
                    child = first_unseen(partial(self.choices.mutated_structure, parent.architecture, rng), seen)
                except NoMoveError:
                    continue
                if child is not None:
                    return Proposal(child, "mutation", str(parent.architecture))
        return random_unseen_structure(self.choices, seen, rng)


def modular_parents(
    history: Sequence[Candidate], count: int, latency_limit_ms: float | None = None
) -> tuple[Candidate, ...]:
    """Pareto points of stage 1 and the baseline that stage 2 evolves, spread by hypervolume contribution.

    Points over the latency limit are left out unless nothing is within it.
    """
    known = [c for c in History.of(history).whole if c.stage in _BEFORE_STAGE_2]
    within = [c for c in known if latency_limit_ms is None or c.point[1] <= latency_limit_ms]
    chosen_from = within or known
    return tuple(chosen_from[i] for i in spread(as_points([c.point for c in chosen_from]), count))


def latency_windows(parents: Sequence[Candidate]) -> tuple[float, ...]:
    """Upper borders of stage 2's windows, ascending: geometric means of neighbouring parents' latencies.

    The first window begins at 0 and the last one is open, so there is one border fewer than parents.
    """
    latencies = sorted(c.point[1] for c in parents)
    return tuple(math.sqrt(a * b) for a, b in pairwise(latencies))


@dataclass(frozen=True)
class _Family:
    """A window of stage 2: its Pareto point of stage 1, and the trials of stage 2 inside the window."""

    root: Candidate
    members: list[Candidate]
    asked: int
    trained: int


@dataclass
class ModularStage:
    """Stage 2: a latency window around each Pareto point of stage 1, evolved in turns.

    The window whose parents had the fewest trained children is next. A random candidate (every fifth, for a share of
    0.2) varies the window's Pareto point of stage 1 at random; the others mutate a member of the window's own front. A
    child that misses its window joins the one that it falls into.

    The last Pareto points of stage 1 are cached.
    """

    choices: Choices
    trials: int
    random_share: float
    parents: int
    latency_limit_ms: float | None = None
    name: Literal["modular"] = "modular"
    _last_roots: tuple[list[Candidate], tuple[Candidate, ...]] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def ask(self, history: Sequence[Candidate], rng: np.random.Generator) -> Proposal | None:
        """See :class:`smnas.search.strategies.base.SearchStage`."""
        trials = History.of(history)
        own = trials.tally("modular")
        origin: Origin = "random" if own.random < _quota(own.training_runs + 1, self.random_share) else "mutation"
        # Fewest trained children first, then fewest proposals, so that a window whose candidates are all over the
        # latency limit does not keep the turn.
        for family in sorted(self._families(trials), key=lambda f: (f.trained, f.asked)):
            proposal = self._child(family, origin, trials.seen, rng)
            if proposal is not None:
                return proposal
        return None

    def _families(self, trials: History) -> list[_Family]:
        """Windows in the order in which their Pareto points were chosen."""
        roots = self._roots([c for c in trials.whole if c.stage in _BEFORE_STAGE_2])
        borders = latency_windows(roots)
        own = [c for c in trials if c.stage == "modular"]
        # Parents lie in the window that proposes, so a child's parent identifies its window.
        latency_ms = {str(c.architecture): c.point[1] for c in trials.whole}
        asked: Counter[int] = Counter()
        trained: Counter[int] = Counter()
        for counts, members in ((asked, own), (trained, [c for c in own if will_count(c)])):
            for parent, children in Counter(c.parent for c in members).items():
                if parent is not None:
                    counts[bisect(borders, latency_ms[parent])] += children
        inside: dict[int, list[Candidate]] = defaultdict(list)
        for c in trials.whole:
            if c.stage == "modular":
                inside[bisect(borders, c.point[1])].append(c)
        places = [bisect(borders, root.point[1]) for root in roots]
        return [_Family(root, inside[at], asked[at], trained[at]) for root, at in zip(roots, places, strict=True)]

    def _roots(self, known: list[Candidate]) -> tuple[Candidate, ...]:
        """Parents from the training runs before this stage, cached as those no longer change."""
        if self._last_roots is None or self._last_roots[0] != known:
            self._last_roots = known, modular_parents(known, self.parents, self.latency_limit_ms)
        return self._last_roots[1]

    def _child(
        self, family: _Family, origin: Origin, seen: Set[Architecture], rng: np.random.Generator
    ) -> Proposal | None:
        if origin == "random":
            parents = [family.root]
        else:
            members = _front([family.root, *family.members])
            parents = [members[i] for i in rng.permutation(len(members)).tolist()]
        for parent in parents:
            move = self.choices.random_variant if origin == "random" else self.choices.mutated_variant
            try:
                child = first_unseen(partial(move, parent.architecture, rng), seen)
            except SpaceError:
                continue
            if child is not None:
                return Proposal(child, origin, str(parent.architecture))
        return None


def _make(context: SearchContext) -> Strategy:
    settings = context.settings
    return sm_nas(
        context.choices,
        structural_trials=settings.trials.structural,
        modular_trials=settings.trials.modular,
        random_share=settings.random_share,
        parents=settings.parents,
        latency_limit_ms=context.settings.slowest_ms,
    )


SM_NAS = StrategyKind("sm-nas", _make)
