"""Fill a latency table: measure what it lacks; a failing workload does not stop the others."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NoReturn

import numpy as np
from torch import Tensor, nn

from profiler.backends.base import Backend, Session, check_precision
from profiler.measuring.drift import DriftWatch, reference_workload
from profiler.measuring.measured_row import Terms, Visits
from profiler.measuring.plan import Failure, Plan, plan_profile
from profiler.table.latency_table import LatencyTable, Row, Target
from profiler.timing.cold import as_cold, cold_key, flusher
from profiler.timing.conditions import read_versions
from profiler.timing.measurement import TimingSettings
from profiler.workload import Workload, random_inputs

__all__ = ["Caches", "ProfileReport", "ProfileSettings", "Progress", "measurement_target", "profile_workloads"]

_GROUP = 16
"""Blocks prepared together; whole networks are prepared singly, as several may not fit in memory."""

_WINDOW = 50_000_000
"""Total parameters of the workloads whose rounds are interleaved, all of them in memory at once."""

Caches = Literal["hot", "cold"]


@dataclass(frozen=True)
class ProfileSettings:
    """Settings of a profiling run.

    Attributes:
        precision: of weights and floating-point inputs.
        batch: images per run, recorded in the rows; the workloads define the shapes themselves.
        kind: whether the workloads are blocks (``part``) or whole networks.
        caches: ``cold`` flushes them before every run; those rows have their own keys, see :mod:`profiler.timing.cold`.
        rounds: per workload, apart in time; up to twice the number where they disagree.
        time_limit_s: start no further measurement after this long.
        reference_every: measurements between two readings of the reference workload; 0 disables it.
        retry_failed: measure remembered failures again.
    """

    precision: str = "fp32"
    batch: int = 1
    kind: Literal["part", "whole"] = "part"
    caches: Caches = "hot"
    timing: TimingSettings = field(default_factory=TimingSettings)
    rounds: int = 1
    time_limit_s: float | None = None
    reference_every: int = 10
    retry_failed: bool = False


@dataclass(frozen=True)
class Progress:
    """Progress of a profiling run.

    Attributes:
        done: workloads finished, those in the table included; of these ``cached`` were in the table, ``failed`` failed.
        total: number of different keys.
        name: of the last finished workload; empty at the start.
        seconds_left: estimated from those measured so far; ``None`` before the first.
    """

    done: int
    total: int
    cached: int
    failed: int
    name: str
    seconds_left: float | None


@dataclass(frozen=True)
class ProfileReport:
    """Summary of a profiling run.

    Attributes:
        measured: workloads measured in this run, failures included.
        cached: workloads found in the table, remembered failures included.
        failed: all workloads without a latency, from this run or before.
        unsteady: names of workloads measured now whose interval is wider than requested.
        drift: largest relative change of the reference workload from its first reading; ``None`` without a second one.
        disturbed: names of workloads measured now under load, throttling or changing clocks; their rows' conditions
            list the causes.
        left: names of workloads that the time limit left out, in scheduled order.
    """

    measured: int
    cached: int
    failed: tuple[Failure, ...]
    unsteady: tuple[str, ...]
    drift: float | None
    seconds: float
    disturbed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def measurement_target(backend: Backend, *, precision: str = "fp32", batch: int = 1) -> Target:
    """Return the target of a backend's measurements."""
    return Target(backend.device.name, backend.name, backend.version, precision, batch, backend.threads)


def profile_workloads(
    workloads: Sequence[Workload],
    table: LatencyTable,
    backend: Backend,
    *,
    rng: np.random.Generator,
    settings: ProfileSettings | None = None,
    value: Mapping[str, float] | None = None,
    reference: Workload | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ProfileReport:
    """Measure the workloads that the table lacks, the most valuable first, in random order among equals.

    Every result is committed before the next workload starts, or with several rounds once these agree, so an
    interrupted run resumes. A workload that fails (to export, build or run, or for memory) becomes a row with its
    reason.

    Args:
        workloads: several may share a key; missing ones need real weights.
        table: filled in.
        backend: with its device.
        rng: draws the order.
        settings: the defaults if ``None``.
        value: of knowing each workload's latency, by key; 0 where absent.
        reference: timed before, between and after the others; :func:`profiler.measuring.drift.reference_workload` if
            ``None``.
        on_progress: called at the start and after every measurement.

    Raises:
        UserError: the backend does not run the precision, or caches of unknown size are to be flushed.
    """
    settings = settings or ProfileSettings()
    check_precision(backend, settings.precision)
    start = time.monotonic()
    if settings.caches == "cold":
        workloads = [as_cold(workload) for workload in workloads]
        value = {cold_key(key): amount for key, amount in (value or {}).items()}
    target = measurement_target(backend, precision=settings.precision, batch=settings.batch)
    plan = plan_profile(workloads, table.current(target), rng=rng, value=value, retry_failed=settings.retry_failed)
    rows: list[Row] = []

    def in_time() -> bool:
        return settings.time_limit_s is None or time.monotonic() - start < settings.time_limit_s

    def report_progress() -> None:
        if on_progress is not None:
            on_progress(progress_of(plan, rows, time.monotonic() - start))

    report_progress()
    if not plan.schedule:
        return report_of(plan, rows, None, time.monotonic() - start)
    terms = _terms(target, settings, backend)
    drift: DriftWatch | None = None
    if settings.reference_every:
        drift = DriftWatch(
            reference or reference_workload(), backend, settings.precision, settings.timing, settings.reference_every
        )
    for visits in _settled(plan, backend, settings, terms, drift, rng, in_time):
        rows.append(table.add(visits.row()))
        report_progress()
    if drift is not None:
        drift.finish()
    return report_of(plan, rows, drift.largest if drift is not None else None, time.monotonic() - start)


def _settled(
    plan: Plan,
    backend: Backend,
    settings: ProfileSettings,
    terms: Terms,
    drift: DriftWatch | None,
    rng: np.random.Generator,
    in_time: Callable[[], bool],
) -> Iterator[Visits]:
    """Visit the scheduled workloads round after round, in a new order each, and yield each once it is settled.

    When the time is up, the unsettled ones follow with the rounds that they have.
    """
    waiting: list[Visits] = []

    def visit(visits: Visits) -> Iterator[Visits]:
        visits.measure(drift)
        if visits.settled:
            waiting.remove(visits)
            yield visits
        if drift is not None:
            drift.count()

    def revisit() -> Iterator[Visits]:
        while waiting:
            pass_of = [waiting[int(index)] for index in rng.permutation(len(waiting))]
            for visits in pass_of:
                if not in_time():
                    return
                yield from visit(visits)

    group_size = 1 if settings.kind == "whole" else _GROUP
    for workload, open_session in _prepared(plan.schedule, backend, settings.precision, group_size, in_time):
        if not in_time():
            break
        waiting.append(Visits(workload, open_session, terms))
        yield from visit(waiting[-1])
        if sum(visits.workload.parameters for visits in waiting) > _WINDOW:
            yield from revisit()
    yield from revisit()
    yield from waiting


def progress_of(plan: Plan, rows: Sequence[Row], elapsed_s: float) -> Progress:
    """Return the progress ``elapsed_s`` seconds after the start, with these rows of a plan measured."""
    left = len(plan.schedule) - len(rows)
    return Progress(
        done=plan.cached + len(rows),
        total=plan.cached + len(plan.schedule),
        cached=plan.cached,
        failed=len(plan.failed) + sum(row.status == "failed" for row in rows),
        name=rows[-1].name if rows else "",
        seconds_left=elapsed_s / len(rows) * left if rows else None if left else 0.0,
    )


def report_of(plan: Plan, rows: Sequence[Row], drift: float | None, seconds: float) -> ProfileReport:
    """Return the report of a run that measured some rows of a plan."""
    measured = {row.key for row in rows}
    return ProfileReport(
        measured=len(rows),
        cached=plan.cached,
        failed=(*plan.failed, *(Failure(row.key, row.name, row.reason) for row in rows if row.status == "failed")),
        unsteady=tuple(row.name for row in rows if row.status == "ok" and row.stop_reason != "converged"),
        drift=drift,
        seconds=seconds,
        disturbed=tuple(row.name for row in rows if row.conditions.get("disturbances")),
        left=tuple(workload.name for workload in plan.schedule if workload.key not in measured),
    )


def _terms(target: Target, settings: ProfileSettings, backend: Backend) -> Terms:
    conditions: dict[str, Any] = {"versions": read_versions(), "caches": settings.caches}
    flush: Callable[[], None] | None = None
    if settings.caches == "cold":
        flush, conditions["flushed_bytes"] = flusher(backend.device)
    return Terms(target, settings.kind, settings.timing, backend.device, conditions, flush, settings.rounds)


def _prepared(
    workloads: Sequence[Workload], backend: Backend, precision: str, group_size: int, in_time: Callable[[], bool]
) -> Iterator[tuple[Workload, Callable[[], Session]]]:
    """Yield each workload with a function that returns its session or raises the reason for having none."""
    for start in range(0, len(workloads), group_size):
        if not in_time():
            return
        group = workloads[start : start + group_size]
        items: list[tuple[nn.Module, tuple[Tensor, ...]]] = []
        refused: dict[int, Callable[[], Session]] = {}
        for index, workload in enumerate(group):
            try:
                items.append((workload.module, random_inputs(workload.inputs)))
            except Exception as error:  # noqa: BLE001 - inputs too large for memory are this workload's failure
                refused[index] = partial(_raise, error)
        prepared = iter(backend.prepare_many(items, precision))
        for index, workload in enumerate(group):
            yield workload, refused.get(index) or next(prepared)


def _raise(error: Exception) -> NoReturn:
    raise error
