"""Random designs whose latency is measured before any training: how fast designs of a space can be.

They spread the first designs over latency, train the latency model beside the trained designs, and bound the latency
that still counts.
"""

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from smnas.search.strategies.choices import Choices
from smnas.search.strategies.variation import random_design
from smnas.space import streams
from smnas.space.architecture import Architecture
from smnas.space.preset import SpaceError

__all__ = ["KnownLatency", "LatencySample"]

_BANDS = 6

KnownLatency = Callable[[Architecture], float | None]
"""Latency of a design in milliseconds; None if it does not run."""


@dataclass(frozen=True)
class LatencySample:
    """``n`` distinct designs and their latencies, ``(n,)``."""

    designs: tuple[Architecture, ...]
    latency_ms: NDArray[np.float64]

    @classmethod
    def draw(
        cls, choices: Choices, latency: KnownLatency, seed: int, draws: int, limit_ms: float | None = None
    ) -> Self:
        """The sample of a seed, without designs that do not run or exceed the limit."""
        rng = streams.latency_sample(seed)
        found: dict[Architecture, float] = {}
        try:
            drawn = dict.fromkeys(random_design(choices, rng) for _ in range(draws))
        except SpaceError:
            drawn = {}
        for design in drawn:
            ms = latency(design)
            if ms is not None and (limit_ms is None or ms <= limit_ms):
                found[design] = ms
        return cls(tuple(found), np.array(list(found.values()), dtype=np.float64))

    def away_from(
        self, latencies_ms: Iterable[float], seen: Set[Architecture], rng: np.random.Generator
    ) -> Architecture | None:
        """A design not in ``seen`` from the latency band that holds the fewest of ``latencies_ms``.

        There are six bands of equal width in log latency between the fastest and the slowest design. None if all are
        seen.
        """
        unseen = np.array([i for i, design in enumerate(self.designs) if design not in seen], dtype=np.int64)
        if not len(unseen):
            return None
        logs = np.log(self.latency_ms)
        edges = np.linspace(logs.min(), logs.max(), _BANDS + 1)[1:-1]
        held = np.bincount(np.searchsorted(edges, np.log(list(latencies_ms))), minlength=_BANDS)
        bands = np.searchsorted(edges, logs[unseen])
        fewest = np.unique(bands)[np.flatnonzero(held[np.unique(bands)] == held[bands].min())]
        here = unseen[bands == fewest[int(rng.integers(len(fewest)))]]
        return self.designs[int(here[int(rng.integers(len(here)))])]
