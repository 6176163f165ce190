"""ZDT, DTLZ and WFG functions (through pymoo) as searches: the first objective is latency, the second one AP's loss.

Ten variables on a grid of 24 levels. A structure sets every variable to one of three coarse levels, two variables a
module; a variant moves inside. Runs have learning curves: AP after some epochs is the end's, times a saturating
curve whose speed is the design's own, plus noise that shrinks with the epochs. How well a short training ranks is part
of the answer (``rank_correlations``).
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from pymoo.problems import get_problem  # type: ignore[import-untyped]

from smnas.search.pareto import hypervolume
from smnas.search.study.candidate import Candidate
from smnas.space.encoding import Gene

VARIABLES, LEVELS, COARSE = 10, 24, (4, 12, 20)
REACH = 6
SPEED_SPREAD, NOISE = 0.35, 0.01

Design = tuple[int, ...]


def random_number(*key: object) -> float:
    """A standard normal number that only the key decides."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=8).digest()
    return float(np.random.default_rng(int.from_bytes(digest, "big")).standard_normal())


class GridChoices:
    """The grid as strategies see it."""

    genes = tuple(Gene(f"x{i}", LEVELS, True) for i in range(VARIABLES))

    @cached_property
    def structures(self) -> Sequence[Design]:
        return list(itertools.product(COARSE, repeat=VARIABLES))

    def random_structure(self, rng: np.random.Generator) -> Design:
        return tuple(COARSE[i] for i in rng.integers(len(COARSE), size=VARIABLES).tolist())

    def random_variant(self, structure: Design, rng: np.random.Generator) -> Design:
        moved = np.array(structure) + rng.integers(-REACH, REACH + 1, size=VARIABLES)
        return tuple(np.clip(moved, 0, LEVELS - 1).tolist())

    def mutated_structure(self, parent: Design, rng: np.random.Generator) -> Design:
        # One or two of five modules, each of two variables, as in a detector.
        child = [min(COARSE, key=lambda level: abs(level - x)) for x in parent]
        for module in rng.choice(VARIABLES // 2, size=1 + int(rng.random() < 0.5), replace=False).tolist():
            for place in (2 * module, 2 * module + 1):
                child[place] = COARSE[int(rng.integers(len(COARSE)))]
        return tuple(child)

    def mutated_variant(self, parent: Design, rng: np.random.Generator) -> Design:
        child = list(parent)
        for place in rng.choice(VARIABLES, size=int(rng.integers(1, 4)), replace=False).tolist():
            step = int(rng.integers(1, 3)) * (1 if rng.random() < 0.5 else -1)
            child[place] = min(max(child[place] + step, 0), LEVELS - 1)
        return tuple(child)

    def encode(self, design: Design) -> Design:
        return design

    def decode(self, genes: Sequence[int]) -> Design:
        return tuple(genes)

    def vector(self, design: Design) -> np.ndarray:
        return np.array(design) / (LEVELS - 1)


class AnalyticProblem:
    """One of pymoo's two-objective problems."""

    def __init__(self, name: str, epochs: int = 9) -> None:
        self.name, self.epochs = name, epochs
        options = {} if name.startswith("zdt") else {"n_obj": 2}
        self._problem = get_problem(name, n_var=VARIABLES, **options)
        self.choices = GridChoices()
        self.baseline = (COARSE[1],) * VARIABLES
        rng = np.random.default_rng(0)
        drawn = [self.choices.random_variant(self.choices.random_structure(rng), rng) for _ in range(1000)]
        # What random designs reach is the scale: AP 0 is their worst, the reference a bad but not the worst one.
        losses = self._objectives(drawn)[:, 1]
        self._worst = float(losses.max())
        latencies = [self.latency_ms(design) for design in drawn]
        self.reference = (1.0 - float(np.quantile(losses, 0.9)) / self._worst, float(np.quantile(latencies, 0.98)))
        front = self._problem.pareto_front()
        best = np.column_stack([1.0 - front[:, 1] / self._worst, 1.0 + 9.0 * front[:, 0]])
        self.best_hypervolume = hypervolume(best, self.reference)

    def _objectives(self, designs: Sequence[Design]) -> np.ndarray:
        lowest, highest = self._problem.bounds()
        return np.asarray(self._problem.evaluate(lowest + (highest - lowest) * np.array(designs) / (LEVELS - 1)))

    def latency_ms(self, design: Design) -> float:
        return 1.0 + 9.0 * float(self._objectives([design])[0, 0])

    def true_ap(self, design: Design) -> float:
        return 1.0 - float(self._objectives([design])[0, 1]) / self._worst

    def ap(self, design: Design, epoch: int, seed: int) -> float:
        speed = math.exp(SPEED_SPREAD * random_number("speed", self.name, design))
        risen = 1.0 - math.exp(-4.0 * speed * epoch / self.epochs)
        whole = 1.0 - math.exp(-4.0 * speed)
        noise = NOISE * math.sqrt(self.epochs / epoch) * random_number("noise", self.name, design, seed, epoch)
        return self.true_ap(design) * risen / whole + noise

    def may_skip(self, design: Any, latency_ms: float, trained: Sequence[Candidate]) -> bool:
        return False  # there is no partial order over these designs
