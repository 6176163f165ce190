"""A space as strategies see it: how designs are drawn, varied and encoded as genes.

A design is an opaque value that can be compared, hashed and printed, so that the same strategies can search other
problems.
"""

from collections.abc import Sequence
from functools import cached_property, partial
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
    """Interface of a space to strategies. Every draw is a pure function of its arguments and the generator."""

    @property
    def structures(self) -> Sequence[Architecture]:
        """All designs of the structural stage."""

    @property
    def genes(self) -> tuple[Gene, ...]:
        """Genes of :meth:`encode`."""

    def random_structure(self, rng: np.random.Generator) -> Architecture:
        """A random structure; raises :class:`SpaceError` if there is none."""

    def random_variant(self, structure: Architecture, rng: np.random.Generator) -> Architecture:
        """A random design of this structure; raises :class:`SpaceError` if none may be proposed."""

    def mutated_structure(self, parent: Architecture, rng: np.random.Generator) -> Architecture:
        """A structure near this one; raises :class:`SpaceError` if there is none."""

    def mutated_variant(self, parent: Architecture, rng: np.random.Generator) -> Architecture:
        """A design near this one with the same structure; raises :class:`SpaceError` if there is none."""

    def encode(self, design: Architecture) -> tuple[int, ...]:
        """Genes of a design of either stage."""

    def decode(self, genes: Sequence[int]) -> Architecture | None:
        """Design of these genes, repaired to the space's rules; None if that is impossible."""

    def vector(self, design: Architecture) -> NDArray[np.float64]:
        """Features for models of AP and latency, each roughly in 0..1."""


class DetectorChoices:
    """Choices of a space of detectors."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self.random_structure = partial(sample_structural, space)
        self.random_variant = partial(sample_modular, space)
        self.mutated_structure = partial(mutate_structural, space)
        self.mutated_variant = partial(mutate_modular, space)

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

    def encode(self, design: Architecture) -> tuple[int, ...]:  # noqa: D102
        return self._encoding.encode(design)

    def decode(self, genes: Sequence[int]) -> Architecture | None:  # noqa: D102
        return self._encoding.decode(genes)

    def vector(self, design: Architecture) -> NDArray[np.float64]:  # noqa: D102
        return self._encoding.vector(design)
