"""Small and large steps in the whole space, for strategies that search both stages at once."""

from collections.abc import Set
from functools import partial

import numpy as np

from smnas.search.strategies.base import first_unseen
from smnas.search.strategies.choices import Choices
from smnas.search.study.candidate import Proposal
from smnas.space.architecture import Architecture
from smnas.space.preset import SpaceError

__all__ = ["crossed", "mutated", "random_design", "random_unseen_design"]

_TRIES = 20
_REACH = 2  # largest step of an ordered gene
_MOST_GENES = 2


def random_design(choices: Choices, rng: np.random.Generator) -> Architecture:
    """A random variant of a random structure; raises :class:`SpaceError` if nothing may be proposed."""
    return choices.random_variant(choices.random_structure(rng), rng)


def random_unseen_design(
    choices: Choices, seen: Set[Architecture], rng: np.random.Generator, stop_epoch: int | None = None
) -> Proposal | None:
    """A random design that is not in ``seen``; None if nothing valid is left."""
    try:
        design = first_unseen(partial(random_design, choices, rng), seen)
    except SpaceError:
        return None
    return None if design is None else Proposal(design, "random", None, stop_epoch)


def mutated(choices: Choices, parent: Architecture, rng: np.random.Generator) -> Architecture | None:
    """A design near ``parent``: half of the time SM-NAS's move inside the modules, else one or two genes changed.

    An ordered gene moves by one or two, any other is redrawn. None if 20 tries change nothing.
    """
    for _ in range(_TRIES):
        if rng.random() < 0.5:
            try:
                child: Architecture | None = choices.mutated_variant(parent, rng)
            except SpaceError:
                continue
        else:
            child = choices.decode(_moved(choices, parent, rng))
        if child is not None and child != parent:
            return child
    return None


def _moved(choices: Choices, parent: Architecture, rng: np.random.Generator) -> list[int]:
    genes = list(choices.encode(parent))
    free = [place for place, gene in enumerate(choices.genes) if gene.size > 1]
    count = min(1 + int(rng.integers(_MOST_GENES)), len(free))
    for place in rng.choice(free, size=count, replace=False).tolist() if free else ():
        gene = choices.genes[place]
        if gene.ordered:
            step = int(rng.integers(1, _REACH + 1)) * (1 if rng.random() < 0.5 else -1)
            genes[place] = min(max(genes[place] + step, 0), gene.size - 1)
        else:
            genes[place] = int(rng.integers(gene.size))
    return genes


def crossed(choices: Choices, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture | None:
    """Uniform crossover of two parents' genes; None if repair fails or the child is a parent again."""
    from_b = rng.random(len(choices.genes)) < 0.5
    genes = [y if other else x for x, y, other in zip(choices.encode(a), choices.encode(b), from_b, strict=True)]
    child = choices.decode(genes)
    return None if child in (None, a, b) else child
