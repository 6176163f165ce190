"""Importance of choices: how much of the variance of AP and of latency each explains alone."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from smnas.report.run_folder import RunFolder
from smnas.scoring.base import AP
from smnas.search.study.candidate import in_search
from smnas.search.study.parameters import parameters_of

__all__ = ["Importance", "explained", "importances"]

_LEAST_TRIALS = 10
_GROUPS = 3  # numbers are grouped by thirds


@dataclass(frozen=True)
class Importance:
    """Fractions of the variance of AP and of log latency that a choice explains alone, 0 to 1."""

    choice: str
    ap: float
    latency: float


def importances(run: RunFolder) -> tuple[Importance, ...]:
    """Choices that every trained detector has, most important first; empty with fewer than ten detectors.

    Correlated choices are confounded: where wide backbones came with large inputs, both explain the same.
    """
    trials = [t for t in run.trials if in_search(t) and t.metric == AP]
    if len(trials) < _LEAST_TRIALS:
        return ()
    parameters = [parameters_of(t.architecture) for t in trials]
    ap = [t.point[0] for t in trials]
    latency = np.log([t.point[1] for t in trials]).tolist()
    found = []
    for choice in parameters[0]:
        if not all(choice in row for row in parameters):
            continue
        groups = _grouped([row[choice] for row in parameters])
        if len(set(groups)) > 1:
            found.append(Importance(choice, explained(groups, ap), explained(groups, latency)))
    return tuple(sorted(found, key=lambda i: (-max(i.ap, i.latency), i.choice)))


def _grouped(values: Sequence[str | int]) -> list[Hashable]:
    if all(isinstance(value, int) for value in values) and len(set(values)) > _GROUPS:
        numbers = np.array(values, dtype=np.float64)
        edges = np.unique(np.quantile(numbers, np.arange(1, _GROUPS) / _GROUPS))
        return np.searchsorted(edges, numbers, side="right").tolist()  # type: ignore[no-any-return]
    return list(values)


def explained(groups: Sequence[Hashable], values: Sequence[float]) -> float:
    """Adjusted fraction of the variance between the groups: about 0 for random groups."""
    by_group: dict[Hashable, list[float]] = defaultdict(list)
    for group, value in zip(groups, values, strict=True):
        by_group[group].append(value)
    count, kinds = len(values), len(by_group)
    total = float(np.var(values)) * count
    if not total or count <= kinds:
        return 0.0
    within = sum(float(np.var(members)) * len(members) for members in by_group.values())
    return max(0.0, 1.0 - within / total * (count - 1) / (count - kinds))
