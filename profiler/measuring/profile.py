"""Fill a latency table: measure what it lacks; a failing workload does not stop the others."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NoReturn

import numpy as np
from torch import Tensor, nn

from profiler.backends.base import Backend, Session, check_precision
from profiler.errors import UserError
from profiler.measuring.drift import DriftWatch, reference_workload
from profiler.measuring.measured_row import Terms, Visits
from profiler.measuring.plan import Failure, Plan, plan_profile
from profiler.table.latency_table import LatencyTable, Row, Target, Trouble
from profiler.timing import DEFAULT_ROUNDS
from profiler.timing.cold import as_cold, cold_key, flusher
from profiler.timing.conditions import read_versions
from profiler.timing.measurement import TimingSettings
from profiler.workload import Workload, random_inputs

__all__ = ["Caches", "ProfileReport", "ProfileSettings", "Progress", "keep", "measurement_target", "profile_workloads"]

_GROUP = 16
"""Blocks prepared together; whole networks are prepared singly, as several may not fit in memory."""

_WINDOW = 500_000_000
"""Numbers in inputs, outputs and weights of the workloads whose sessions are open at once: 2 GB in fp32."""
_APART_S = 60.0
"""Time from one round of a workload to the next, filled by others: six rounds then span several bursts of a minute."""
_LEAST_APART = 0.5
"""Where there are no others left, a pass over the unsettled ones takes at least this fraction of the time limit of one
measurement (1 s by default): a lone workload's rounds escape bursts of a tenth of a second, and most of a second. They
do not escape longer ones; the spread of rounds shows those that begin or end between them."""

Caches = Literal["hot", "cold"]


@dataclass(frozen=True)
class ProfileSettings:
    """Settings of a profiling run.

    Attributes:
        precision: of weights and floating-point inputs.
        batch: images per run, recorded in the rows; the workloads define the shapes themselves.
        caches: ``cold`` flushes them before every run; those rows have their own keys, see :mod:`profiler.timing.cold`.
        rounds: per workload, apart in time and together as long as a single one; up to twice the number where they
            disagree.
        time_limit_s: start no further measurement after this long.
        reference_every: measurements between two readings of the reference workload; 0 disables it.
        refresh: measure rows of this trouble again: remembered failures, or those whose rounds disagree.
    """

    precision: str = "fp32"
    batch: int = 1
    caches: Caches = "hot"
    timing: TimingSettings = field(default_factory=TimingSettings)
    rounds: int = DEFAULT_ROUNDS
    time_limit_s: float | None = None
    reference_every: int = 10
    refresh: tuple[Trouble, ...] = ()

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"rounds >= 1 must hold, but got {self.rounds}")


@dataclass(frozen=True)
class Progress:
    """Progress of a profiling run.

    Attributes:
        done: workloads finished, those in the table included; of these ``cached`` were in the table, ``failed`` failed.
        total: number of different keys.
        name: of the workload measured last; empty at the start.
        seconds_left: estimated from the rounds so far; ``None`` before the first.
        fraction: done of all, rounds of unfinished workloads included.
    """

    done: int
    total: int
    cached: int
    failed: int
    name: str
    seconds_left: float | None
    fraction: float


@dataclass(frozen=True)
class ProfileReport:
    """Summary of a profiling run.

    Attributes:
        measured: workloads measured in this run, failures included.
        cached: workloads found in the table, remembered failures included.
        failed: all workloads without a latency, from this run or before.
        wide: names of workloads measured now whose interval is wider than requested.
        drift: largest relative change of the reference workload from its first reading; ``None`` without a second one.
        disturbed: names of workloads measured now under load, throttling or changing clocks; their rows' conditions
            list the causes.
        left: names of workloads that the time limit left out, in scheduled order.
    """

    measured: int
    cached: int
    failed: tuple[Failure, ...]
    wide: tuple[str, ...]
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
    networks: Sequence[Workload] = (),
    waiting: list[Visits] | None = None,
    more: bool = False,
    rng: np.random.Generator,
    settings: ProfileSettings | None = None,
    value: Mapping[str, float] | None = None,
    reference: Workload | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ProfileReport:
    """Measure the workloads that the table lacks, the most valuable first, in random order among equals.

    Every workload is measured in several rounds, between those of others. A result is committed once its rounds agree,
    so an interrupted run resumes. A workload that fails (to export, build or run, or for memory) becomes a row with its
    reason.

    Args:
        workloads: blocks; several may share a key; missing ones need real weights.
        table: filled in.
        backend: with its device.
        networks: whole networks, measured between the blocks.
        waiting: workloads of earlier calls whose rounds continue in this one.
        more: further calls follow with the same ``waiting``, where workloads with rounds to come then stay, unless the
            time is up.
        rng: draws the order.
        settings: the defaults if ``None``.
        value: of knowing each workload's latency, by key; 0 where absent.
        reference: timed before, between and after the others; :func:`profiler.measuring.drift.reference_workload` if
            ``None``.
        on_progress: called at the start and after every round.

    Raises:
        UserError: the backend does not run the precision, or caches of unknown size are to be flushed.
    """
    settings = settings or ProfileSettings()
    check_precision(backend, settings.precision)
    start = time.monotonic()
    if settings.caches == "cold":
        workloads, networks = ([as_cold(workload) for workload in some] for some in (workloads, networks))
        value = {cold_key(key): amount for key, amount in (value or {}).items()}
    target = measurement_target(backend, precision=settings.precision, batch=settings.batch)
    waiting = [] if waiting is None else waiting
    begun = {visits.workload.key for visits in waiting}
    new = [workload for workload in (*workloads, *networks) if workload.key not in begun]
    plan = plan_profile(new, table.current(target), rng=rng, value=value, refresh=settings.refresh)
    rows: list[Row] = []

    def in_time(reserved_s: float = 0.0) -> bool:
        return settings.time_limit_s is None or time.monotonic() - start + reserved_s < settings.time_limit_s

    def report_progress(name: str = "") -> None:
        if on_progress is not None:
            own = [row for row in rows if row.key not in begun]
            partly = sum(visits.done for visits in waiting if visits.workload.key not in begun)
            on_progress(progress_of(plan, own, time.monotonic() - start, partly, name))

    report_progress()
    if not plan.schedule and (more or not waiting):
        return report_of(plan, rows, None, time.monotonic() - start)
    terms = _terms(target, settings, backend)
    drift: DriftWatch | None = None
    if settings.reference_every:
        every = settings.reference_every * settings.rounds
        drift = DriftWatch(reference or reference_workload(), backend, settings.precision, settings.timing, every)
    try:
        network_keys = {workload.key for workload in networks}
        for visits in _rounds(plan, network_keys, backend, settings, terms, drift, rng, in_time, waiting, more):
            if visits.settled:
                waiting.remove(visits)
                rows.append(table.add(visits.row()))
            report_progress(visits.workload.name)
    except BaseException:
        keep(table, waiting, agreeing=True)
        raise
    if not more or not in_time():
        rows += keep(table, waiting)
    if drift is not None:
        drift.finish()
    return report_of(plan, rows, drift.largest if drift is not None else None, time.monotonic() - start, waiting)


def keep(table: LatencyTable, waiting: list[Visits], *, agreeing: bool = False) -> list[Row]:
    """Add workloads with the rounds that they have, only those whose rounds agree if ``agreeing``, and forget all."""
    rows = [table.add(visits.row()) for visits in waiting if (visits.agree if agreeing else visits.done)]
    waiting.clear()
    return rows


def _rounds(
    plan: Plan,
    networks: Collection[str],
    backend: Backend,
    settings: ProfileSettings,
    terms: Terms,
    drift: DriftWatch | None,
    rng: np.random.Generator,
    in_time: Callable[[float], bool],
    waiting: list[Visits],
    more: bool,
) -> Iterator[Visits]:
    """Measure the scheduled workloads round by round, and yield each after every round.

    ``waiting`` holds those that have begun; the caller takes out the settled ones. Rounds of different workloads
    interleave, in random order, while further ones are prepared: a workload's rounds are spread over the whole run.
    Within a time limit, no workload begins in the time that the rounds of those that have begun will take.
    """
    least_apart_s = _LEAST_APART * settings.timing.time_limit_s
    apart_s = min(_APART_S, (settings.time_limit_s or math.inf) / (2 * settings.rounds))

    def one_round(of: Sequence[Visits]) -> Iterator[Visits]:
        for index in rng.permutation(len(of)).tolist():
            if not in_time(0.0):
                return
            of[index].measure(drift)
            yield of[index]
            if drift is not None:
                drift.count()

    def one_pass() -> Iterator[Visits]:
        began = time.perf_counter()
        yield from one_round(tuple(waiting))
        if waiting and in_time(0.0):
            time.sleep(max(0.0, began + least_apart_s - time.perf_counter()))

    for workload, open_session in _prepared(plan.schedule, networks, backend, settings.precision, in_time):
        if not in_time(sum(visits.left_s for visits in waiting)):
            break
        waiting.append(Visits(workload, "whole" if workload.key in networks else "part", open_session, terms))
        yield from one_round(waiting[-1:])
        yield from one_round([one for one in waiting if time.perf_counter() - one.measured_at >= apart_s])
        while in_time(0.0) and sum(visits.elements for visits in waiting) > _WINDOW:
            yield from one_pass()
    while waiting and not more and in_time(0.0):
        yield from one_pass()


def progress_of(plan: Plan, rows: Sequence[Row], elapsed_s: float, partly: float = 0.0, name: str = "") -> Progress:
    """Return the progress ``elapsed_s`` seconds after the start.

    Args:
        plan: of the run.
        rows: measured so far.
        elapsed_s: since the start.
        partly: sum over the unfinished workloads of the fraction of their rounds that is done.
        name: of the workload measured last.
    """
    done = len(rows) + partly
    left = len(plan.schedule) - done
    total = plan.cached + len(plan.schedule)
    return Progress(
        done=plan.cached + len(rows),
        total=total,
        cached=plan.cached,
        failed=len(plan.failed) + sum(row.status == "failed" for row in rows),
        name=name,
        seconds_left=elapsed_s / done * left if done else None if left else 0.0,
        fraction=(plan.cached + done) / total if total else 1.0,
    )


def report_of(
    plan: Plan, rows: Sequence[Row], drift: float | None, seconds: float, waiting: Sequence[Visits] = ()
) -> ProfileReport:
    """Return the report of a run that measured some rows of a plan, while others still wait for rounds."""
    measured = {row.key for row in rows} | {visits.workload.key for visits in waiting}
    return ProfileReport(
        measured=len(rows),
        cached=plan.cached,
        failed=(*plan.failed, *(Failure(row.key, row.name, row.reason) for row in rows if row.status == "failed")),
        wide=tuple(row.name for row in rows if row.status == "ok" and row.stop_reason != "converged"),
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
    return Terms(target, settings.timing, backend.device, conditions, flush, settings.rounds)


def _prepared(
    workloads: Sequence[Workload],
    networks: Collection[str],
    backend: Backend,
    precision: str,
    in_time: Callable[[float], bool],
) -> Iterator[tuple[Workload, Callable[[], Session]]]:
    """Yield each workload with a function that returns its session or raises the reason for having none."""
    for group in _groups(workloads, networks):
        if not in_time(0.0):
            return
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


def _groups(workloads: Sequence[Workload], networks: Collection[str]) -> Iterator[list[Workload]]:
    group: list[Workload] = []
    for workload in workloads:
        if group and (len(group) == _GROUP or workload.key in networks or group[0].key in networks):
            yield group
            group = []
        group.append(workload)
    if group:
        yield group


def _raise(error: Exception) -> NoReturn:
    raise error
