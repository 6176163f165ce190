"""Plan of a profiling run: what is cached, what failed before, and what to measure in which order.

Pure functions: nothing is measured or written here.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from profiler.table.latency_table import LatencyTable, Row, Target, Trouble
from profiler.workload import Workload

__all__ = ["Failure", "Plan", "missing", "plan_profile"]

WorkloadT = TypeVar("WorkloadT", bound=Workload)


@dataclass(frozen=True)
class Failure:
    """A workload without a latency, and the reason."""

    key: str
    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Plan of a profiling run.

    Attributes:
        cached: number of workloads in the table, remembered failures included.
        failed: remembered failures that are not measured again.
    """

    schedule: tuple[Workload, ...]
    cached: int
    failed: tuple[Failure, ...]


def plan_profile(
    workloads: Sequence[Workload],
    known: Mapping[str, Row],
    *,
    rng: np.random.Generator,
    value: Mapping[str, float] | None = None,
    refresh: Container[Trouble] = (),
) -> Plan:
    """Decide what to measure and in which order: the most valuable first, random order among equals.

    Args:
        workloads: several may share a key; missing ones need real weights.
        known: current rows of the target, by key.
        rng: draws the order, which keeps slow drift from biasing one kind of block.
        value: of knowing each workload's latency, by key; 0 where absent.
        refresh: measure rows of this trouble again.

    Raises:
        ValueError: a workload to measure is on ``meta``.
    """
    to_measure = _missing(workloads, known, refresh)
    weightless = next((workload.name for workload in to_measure if workload.is_meta), None)
    if weightless is not None:
        raise ValueError(f"a workload must have real weights to be measured, but {weightless} is on meta")
    schedule = [to_measure[int(index)] for index in rng.permutation(len(to_measure))]
    schedule.sort(key=lambda workload: -(value or {}).get(workload.key, 0.0))
    measured = {workload.key for workload in to_measure}
    cached = {workload.key for workload in workloads} - measured
    failed = [
        Failure(key, row.name, row.reason) for key, row in known.items() if row.status == "failed" and key in cached
    ]
    return Plan(tuple(schedule), len(cached), tuple(failed))


def missing(workloads: Iterable[WorkloadT], table: LatencyTable, target: Target) -> tuple[WorkloadT, ...]:
    """Find the workloads that a table lacks for a target, one per key, in the given order.

    Only keys are compared, so the workloads may be on ``meta``: give real weights to the result and pass it to
    :func:`profiler.measuring.profile.profile_workloads`.
    """
    return _missing(workloads, table.current(target), refresh=())


def _missing(
    workloads: Iterable[WorkloadT], known: Mapping[str, Row], refresh: Container[Trouble]
) -> tuple[WorkloadT, ...]:
    unknown: dict[str, WorkloadT] = {}
    for workload in workloads:
        row = known.get(workload.key)
        if row is None or (row.trouble is not None and row.trouble in refresh):
            unknown.setdefault(workload.key, workload)
    return tuple(unknown.values())
