"""MAE-DET's search (arXiv 2111.13336): evolution of super-block backbones by their entropy, without training.

The published loop mutates one random member a step, drops the child if it breaks a budget, and keeps the best 256
distinct backbones. Here a generation of children is made at once from the same population, as arrays, with parents
drawn with replacement: 100,000 steps are 390 generations of 256. There is no crossover.

The Pareto form keeps, instead of the best, the members of the front of entropy against latency and of the layers behind
it, less the most crowded ones of the last layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import moocore
import numpy as np
from numpy.typing import NDArray

from smnas.scoring.entropy import PUBLISHED, EntropyForm
from smnas.scoring.entropy_population import entropy_of
from smnas.space.families.super_blocks import MoveBounds, SuperBlockPopulation, SuperBlockSpec, mutate_super_blocks
from smnas.space.preset import SpaceError
from smnas.space.super_block_cost import PopulationCost, population_cost

__all__ = ["Budget", "EntropySearch", "Found", "maximum_entropy_search"]

Floats = NDArray[np.float64]
Latency = Callable[[SuperBlockPopulation], Floats]


@dataclass(frozen=True)
class Budget:
    """Cost limits of a backbone; None is no limit.

    Attributes:
        multiply_adds: Per image of the search's input size.
        layers: Convolutions, shortcuts excluded.
        latency_ms: As the search predicts it.
    """

    multiply_adds: float | None = None
    parameters: float | None = None
    layers: int | None = None
    latency_ms: float | None = None

    def excess(self, cost: PopulationCost, latency_ms: Floats | None) -> Floats:
        """Sum of relative excesses over the limits, ``(N,)``; 0 for a feasible backbone."""
        total = np.zeros(len(cost.layers))
        limits = (
            (self.multiply_adds, cost.multiply_adds),
            (self.parameters, cost.parameters),
            (self.layers, cost.layers),
            (self.latency_ms, latency_ms),
        )
        for limit, values in limits:
            if limit is not None and values is not None:
                total += np.maximum(values / limit - 1.0, 0.0)
        return total


@dataclass(frozen=True)
class EntropySearch:
    """Settings of a search.

    Attributes:
        budget: Limits of every member of the result.
        bounds: Limits of every move.
        size: Input (width, height) in pixels.
        stem_kernel: Side of the stem's convolution.
        steps: Number of children.
        population: Number of members.
        generation: Children made at once from one population.
        pareto: Keep the front of entropy against latency instead of the highest entropies.
    """

    budget: Budget
    bounds: MoveBounds = field(default_factory=MoveBounds)
    size: tuple[int, int] = (480, 480)
    form: EntropyForm = PUBLISHED
    stem_kernel: int = 3
    steps: int = 100_000
    population: int = 256
    generation: int = 256
    pareto: bool = False


@dataclass(frozen=True)
class Found:
    """A population; a search's last one has the highest entropy first, and every member keeps the budget.

    Attributes:
        backbones: N distinct ones.
        entropy: ``(N,)``.
        latency_ms: ``(N,)``; None without a predictor.
        moved: ``(N, 1 + B)``: blocks, the stem first, that a move has changed on the way from the seed.
        best: Highest entropy after every generation.
    """

    backbones: SuperBlockPopulation
    entropy: Floats
    cost: PopulationCost
    latency_ms: Floats | None
    moved: NDArray[np.bool_]
    excess: Floats
    best: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        backbones: SuperBlockPopulation,
        search: EntropySearch,
        latency: Latency | None,
        moved: NDArray[np.bool_] | None = None,
    ) -> "Found":
        """Score backbones; by default nothing has moved."""
        cost = population_cost(backbones, search.size, stem_kernel=search.stem_kernel)
        latency_ms = None if latency is None else latency(backbones)
        if moved is None:
            moved = np.zeros((len(backbones), 1 + backbones.out.shape[1]), dtype=np.bool_)
        entropy = entropy_of(backbones, search.form, stem_kernel=search.stem_kernel, size=search.size)
        return cls(backbones, entropy, cost, latency_ms, moved, search.budget.excess(cost, latency_ms))

    def spec(self, row: int = 0) -> SuperBlockSpec:
        """A backbone as a value, by default the one of the highest entropy."""
        return self.backbones.spec(row)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Found":
        """The members of these rows."""
        cost = PopulationCost(*(column[rows] for column in self.cost))
        latency_ms = None if self.latency_ms is None else self.latency_ms[rows]
        return Found(
            self.backbones.take(rows), self.entropy[rows], cost, latency_ms, self.moved[rows], self.excess[rows]
        )

    def joined(self, other: "Found") -> "Found":
        """Both populations, this one first."""
        latency_ms = None
        if self.latency_ms is not None and other.latency_ms is not None:
            latency_ms = np.concatenate((self.latency_ms, other.latency_ms))
        return Found(
            self.backbones.joined(other.backbones),
            np.concatenate((self.entropy, other.entropy)),
            PopulationCost(*map(np.concatenate, zip(self.cost, other.cost, strict=True))),
            latency_ms,
            np.concatenate((self.moved, other.moved)),
            np.concatenate((self.excess, other.excess)),
        )


def maximum_entropy_search(
    seed: SuperBlockSpec, search: EntropySearch, rng: np.random.Generator, latency: Latency | None = None
) -> Found:
    """Evolve copies of ``seed``.

    Args:
        seed: Ancestor of all members. It need not keep the budget: until a child does, the members nearest to it stay.
        search: Settings.
        rng: Source of all random numbers.
        latency: Predicts the latencies of N backbones in ms, ``(N,)``.

    Raises:
        SpaceError: no child kept the budget.
        ValueError: a latency limit or a Pareto search without ``latency``.
    """
    if latency is None and (search.pareto or search.budget.latency_ms is not None):
        raise ValueError("a search by latency needs a prediction of it")
    members = Found.of(SuperBlockPopulation.copies(seed, 1), search, latency)
    best: list[float] = []
    for first in range(0, search.steps, search.generation):
        count = min(search.generation, search.steps - first)
        rows = rng.integers(0, len(members.backbones), count)
        children, moved = mutate_super_blocks(members.backbones.take(rows), search.bounds, rng)
        born = Found.of(children, search, latency, members.moved[rows] | moved)
        members = _survivors(members.joined(born), search)
        best.append(float(members.entropy.max()) if not members.excess.any() else float("-inf"))
    if members.excess.any():
        raise SpaceError(f"a search must find a backbone within {search.budget}, but {search.steps} steps found none")
    return replace(members.take(np.argsort(-members.entropy, kind="stable")), best=tuple(best))


def _survivors(members: Found, search: EntropySearch) -> Found:
    """Surviving members; of equal backbones the older one. Infeasible ones are dropped unless none is feasible."""
    kept = members.excess == 0.0
    if not kept.any():
        return members.take(np.argsort(members.excess, kind="stable")[: search.population])
    members = members.take(kept)
    distinct = np.sort(np.unique(members.backbones.genes, axis=0, return_index=True)[1])
    if len(distinct) < len(members.entropy):
        members = members.take(distinct)
    if len(members.entropy) <= search.population:
        return members
    if search.pareto and members.latency_ms is not None:
        return members.take(_by_layers(members.entropy, members.latency_ms, search.population))
    return members.take(np.argsort(-members.entropy, kind="stable")[: search.population])


def _by_layers(entropy: Floats, latency_ms: Floats, count: int) -> NDArray[np.intp]:
    """Rows by front layer; of the layer that does not fit whole, the least crowded."""
    layers = moocore.pareto_rank(np.column_stack((-entropy, latency_ms)))
    crowding = np.zeros(len(entropy))
    for layer in np.unique(layers):
        rows = np.flatnonzero(layers == layer)
        crowding[rows] = _crowding(entropy[rows], latency_ms[rows])
    return np.lexsort((-crowding, layers))[:count]


def _crowding(entropy: Floats, latency_ms: Floats) -> Floats:
    """Crowding distance of each point in its layer (Deb et al., 2002); infinite at the ends."""
    total = np.zeros(len(entropy))
    for values in (entropy, latency_ms):
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        total[order[[0, -1]]] = np.inf
        if span > 0:
            total[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    return total
