"""A search over detectors that were trained before: AP and latency come from a table that ``trained_table.py`` made.

Strategies propose from the whole space; a proposal becomes the row of the table whose features are nearest, so every
strategy sees the same few hundred detectors. What the loop prunes by the partial order is pruned here too.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smnas.search.pareto import as_points, hypervolume, reference_point
from smnas.search.pruning import why_beaten
from smnas.search.strategies.choices import DetectorChoices
from smnas.search.study.candidate import Candidate
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space

MARGIN = 0.01  # the loop's own


class TableChoices:
    """The rows of a table as strategies see a space."""

    def __init__(self, rows: Sequence[Architecture], preset: str) -> None:
        space = load_space(preset)
        self._whole = DetectorChoices(space)
        self._rows = list(rows)
        self._vectors = np.array([self._whole.vector(a) for a in rows])
        self._scale = np.where(self._vectors.std(axis=0) > 0, self._vectors.std(axis=0), 1.0)
        self.structures = [a for a in rows if space.contains_structural(a)]
        self.genes = self._whole.genes
        self.encode, self.vector = self._whole.encode, self._whole.vector

    def _nearest(self, architecture: Architecture, but: Architecture | None = None) -> Architecture:
        distances = (((self._vectors - self.vector(architecture)) / self._scale) ** 2).sum(axis=1)
        order = np.argsort(distances, kind="stable")
        found: Architecture = next(self._rows[i] for i in order if self._rows[i] != but)
        return found

    def random_structure(self, rng: np.random.Generator) -> Architecture:
        return self.structures[int(rng.integers(len(self.structures)))]

    def random_variant(self, structure: Architecture, rng: np.random.Generator) -> Architecture:
        return self._rows[int(rng.integers(len(self._rows)))]  # evenly over the rows, as a random search would be

    def mutated_structure(self, parent: Architecture, rng: np.random.Generator) -> Architecture:
        child = self._whole.mutated_structure(parent, rng)
        distances = [(((self.vector(a) - self.vector(child)) / self._scale) ** 2).sum() for a in self.structures]
        return self.structures[int(np.argmin(distances))]

    def mutated_variant(self, parent: Architecture, rng: np.random.Generator) -> Architecture:
        return self._nearest(self._whole.mutated_variant(parent, rng), parent)

    def decode(self, genes: Sequence[int]) -> Architecture | None:
        architecture = self._whole.decode(genes)
        return None if architecture is None else self._nearest(architecture)


class TabulatedProblem:
    """One table as a search."""

    def __init__(self, path: Path) -> None:
        table = json.loads(path.read_text(encoding="utf-8"))
        self.name = path.stem
        self.epochs = int(table["epochs"])
        self._rows = {Architecture.parse(row["architecture"]): row for row in table["rows"] if row["reason"] is None}
        self.choices = TableChoices(list(self._rows), table["preset"])
        self.baseline = load_space(table["preset"]).baseline_architecture
        points = as_points([(self.true_ap(a), self.latency_ms(a)) for a in self._rows])
        self.reference = reference_point(points)
        self.best_hypervolume = hypervolume(points, self.reference)

    def __len__(self) -> int:
        return len(self._rows)

    def with_foresight(self) -> np.ndarray:
        """Fraction of the best hypervolume after each run of an oracle.

        It trains the baseline first, as any search does, and then always the detector that adds most.
        """
        points = as_points([(self.true_ap(a), self.latency_ms(a)) for a in self._rows])
        taken = [list(self._rows).index(self.baseline)]
        shares = [hypervolume(points[taken], self.reference) / self.best_hypervolume]
        while shares[-1] < 1.0 - 1e-9:
            volumes = [hypervolume(points[[*taken, i]], self.reference) for i in range(len(points))]
            taken.append(int(np.argmax(volumes)))
            shares.append(max(volumes) / self.best_hypervolume)
        return np.array(shares)

    def latency_ms(self, design: Architecture) -> float:
        return float(self._rows[design]["latency_ms"])

    def true_ap(self, design: Architecture) -> float:
        return float(self._rows[design]["ap"][str(self.epochs)])

    def ap(self, design: Architecture, epoch: int, seed: int) -> float:
        return float(self._rows[design]["ap"][str(epoch)])  # one run each: all strategies see the same noise

    def may_skip(self, design: Any, latency_ms: float, trained: Sequence[Candidate]) -> bool:
        return why_beaten(design, latency_ms, trained, MARGIN) is not None
