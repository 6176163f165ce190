"""What a strategy knows of a space: how designs are drawn, varied, and written as genes.

Strategies see no detectors. A design is an opaque value that can be compared, hashed and printed, so that other
problems can be searched with the same strategies.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from smnas.space.architecture import Architecture
from smnas.space.encoding import Encoding, Gene
from smnas.space.mutation import mutate_modular, mutate_structural
from smnas.space.preset import Space
from smnas.space.sampling import sample_modular, sample_structural

__all__ = ["Choices", "DetectorChoices"]


class Choices(Protocol):
    """A space as a strategy sees it. Every draw is a pure function of its arguments and the generator."""

    @property
    def structures(self) -> Sequence[Architecture]:
        """Every design of the structural stage."""
        ...

    @property
    def genes(self) -> tuple[Gene, ...]:
        """What :meth:`encode` writes a design as."""
        ...

    def random_structure(self, rng: np.random.Generator) -> Architecture:
        """One of the structures; raises :class:`SpaceError` where there is none."""
        ...

    def random_variant(self, structure: Architecture, rng: np.random.Generator) -> Architecture:
        """A random design with this structure; raises :class:`SpaceError` where none may be proposed."""
        ...

    def mutated_structure(self, parent: Architecture, rng: np.random.Generator) -> Architecture:
        """A structure near this one; raises :class:`SpaceError` where there is none."""
        ...

    def mutated_variant(self, parent: Architecture, rng: np.random.Generator) -> Architecture:
        """A design near this one with the same structure; raises :class:`SpaceError` where there is none."""
        ...

    def encode(self, design: Architecture) -> tuple[int, ...]:
        """The genes of a design of either stage."""
        ...

    def decode(self, genes: Sequence[int]) -> Architecture | None:
        """The design of a row of genes, repaired to the space's rules; None where that is not possible."""
        ...

    def vector(self, design: Architecture) -> NDArray[np.float64]:
        """Features for models of AP and latency, roughly in 0..1 each."""
        ...


class DetectorChoices:
    """A space of detectors as strategies see it."""

    def __init__(self, space: Space) -> None:
        self._space = space

    @cached_property
    def _encoding(self) -> Encoding:
        return Encoding(self._space)

    @property
    def structures(self) -> Sequence[Architecture]:
        """See :class:`Choices`, also for the other members."""
        return self._space.structures

    @property
    def genes(self) -> tuple[Gene, ...]:  # noqa: D102
        return self._encoding.genes

    def random_structure(self, rng: np.random.Generator) -> Architecture:  # noqa: D102
        return sample_structural(self._space, rng)

    def random_variant(self, structure: Architecture, rng: np.random.Generator) -> Architecture:  # noqa: D102
        return sample_modular(self._space, structure, rng)

    def mutated_structure(self, parent: Architecture, rng: np.random.Generator) -> Architecture:  # noqa: D102
        return mutate_structural(self._space, parent, rng)

    def mutated_variant(self, parent: Architecture, rng: np.random.Generator) -> Architecture:  # noqa: D102
        return mutate_modular(self._space, parent, rng)

    def encode(self, design: Architecture) -> tuple[int, ...]:  # noqa: D102
        return self._encoding.encode(design)

    def decode(self, genes: Sequence[int]) -> Architecture | None:  # noqa: D102
        return self._encoding.decode(genes)

    def vector(self, design: Architecture) -> NDArray[np.float64]:  # noqa: D102
        return self._encoding.vector(design)
