"""Fill a latency table: measure what it does not hold yet, and let no failure stop the rest."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from profiler.backends.base import Backend, Session, check_precision
from profiler.devices import Device
from profiler.errors import UserError, named_line
from profiler.table.latency_table import LatencyTable, Row, Target, pack_samples
from profiler.timing.cold import as_cold, cold_key, flusher
from profiler.timing.conditions import disturbances, read_state, read_versions
from profiler.timing.measurement import Measurement, TimingSettings, measure
from profiler.work import Work
from profiler.workload import TensorSpec, Workload, random_inputs

__all__ = [
    "Caches",
    "Failure",
    "ProfileReport",
    "Progress",
    "measurement_target",
    "missing",
    "profile_workloads",
    "reference_workload",
]

_INPUT_SEED = 0
_GROUP = 16
"""Parts that are prepared together. Whole networks are prepared one at a time: several may not fit in memory."""

Kind = Literal["part", "whole"]
Caches = Literal["hot", "cold"]
WorkloadT = TypeVar("WorkloadT", bound=Workload)


@dataclass(frozen=True)
class Progress:
    """How far profiling is.

    Attributes:
        done: workloads finished, those already in the table included.
        total: workloads with different keys.
        cached: how many of ``done`` were in the table.
        failed: how many of ``done`` have failed.
        name: of the workload that was finished last; empty at the start.
        seconds_left: estimated from those measured so far; ``None`` while there is nothing to go by.
    """

    done: int
    total: int
    cached: int
    failed: int
    name: str
    seconds_left: float | None


@dataclass(frozen=True)
class Failure:
    """A workload without a latency, and why."""

    key: str
    name: str
    reason: str


@dataclass(frozen=True)
class ProfileReport:
    """What profiling did.

    Attributes:
        measured: workloads measured now, failures included.
        cached: workloads found in the table, remembered failures included.
        failed: all workloads without a latency, whether they failed now or before.
        unsteady: names of workloads measured now whose interval stayed wider than asked.
        disturbed: names of workloads measured now under load, throttled or with changing clocks; their rows'
            conditions say by what.
        left: names of workloads that the budget did not reach, in the order in which they would have come.
        drift: the largest change of the reference workload against its first reading, as a share; ``None`` when it
            was read only once or not at all.
        seconds: how long it took.
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
    """The target that a backend's measurements are kept under."""
    return Target(backend.device.name, backend.name, backend.version, precision, batch, backend.threads)


def missing(
    workloads: Iterable[WorkloadT], table: LatencyTable, target: Target, *, retry_failed: bool = False
) -> tuple[WorkloadT, ...]:
    """The workloads that a table does not hold for a target, one per key, in the order given.

    Only keys are looked at, so the workloads may still live on the ``meta`` device: give real weights to what is
    returned and pass it to :func:`profile_workloads`.

    Args:
        workloads: any number under one key.
        table: where to look.
        target: what the latencies must hold for.
        retry_failed: count remembered failures as missing.
    """
    known = table.current(target)
    unknown: dict[str, WorkloadT] = {}
    for workload in workloads:
        row = known.get(workload.key)
        if row is None or (retry_failed and row.status == "failed"):
            unknown.setdefault(workload.key, workload)
    return tuple(unknown.values())


def profile_workloads(
    workloads: Sequence[Workload],
    table: LatencyTable,
    backend: Backend,
    *,
    rng: np.random.Generator,
    precision: str = "fp32",
    batch: int = 1,
    kind: Kind = "part",
    caches: Caches = "hot",
    timing: TimingSettings | None = None,
    value: Mapping[str, float] | None = None,
    budget_s: float | None = None,
    reference: Workload | None = None,
    reference_every: int = 10,
    retry_failed: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> ProfileReport:
    """Measure the workloads that the table does not hold yet, the most valuable first, else in random order.

    Every result is committed before the next workload starts, so an interrupted run continues where it stopped. A
    workload that fails (to export, to build, to run, for memory) becomes a row with its reason and the rest goes on.

    Args:
        workloads: any number under one key; those that turn out to be missing need real weights.
        table: filled in.
        backend: how they run, and on which device.
        rng: draws the order among equals, which keeps slow drift from falling on one kind of block.
        precision: of weights and floating-point inputs.
        batch: images per run, as the rows will say; the shapes themselves are the workloads'.
        kind: whether these are parts or whole networks.
        caches: ``cold`` flushes them before every run; those rows have keys of their own, see
            :mod:`profiler.timing.cold`.
        timing: precision and limits of one measurement.
        value: of knowing each workload's latency, by its key; 0 where it says nothing. The highest come first.
        budget_s: start no further measurement after this long. What is measured stays, the report says what is left.
        reference: measured before, between and after the others to see drift; :func:`reference_workload` when not
            given.
        reference_every: read the reference after this many measurements; 0 leaves it out.
        retry_failed: measure remembered failures again.
        on_progress: called at the start and after every measurement.

    Raises:
        UserError: the backend does not run the precision, or caches of unknown size are to be flushed.
    """
    check_precision(backend, precision)
    start = time.monotonic()
    values = value or {}
    worth = {(cold_key(key) if caches == "cold" else key): amount for key, amount in values.items()}
    if caches == "cold":
        workloads = [as_cold(workload) for workload in workloads]
    target = measurement_target(backend, precision=precision, batch=batch)
    distinct = {workload.key: workload for workload in reversed(workloads)}
    known = {key: row for key, row in table.current(target).items() if key in distinct}
    to_measure = list(missing(workloads, table, target, retry_failed=retry_failed))
    without_weights = [workload.name for workload in to_measure if workload.is_meta]
    if without_weights:
        raise ValueError(f"a workload must have real weights to be measured, but {without_weights[0]} is on meta")
    remeasured = {workload.key for workload in to_measure}
    failures = [
        Failure(key, row.name, row.reason)
        for key, row in known.items()
        if row.status == "failed" and key not in remeasured
    ]
    cached = len(distinct) - len(to_measure)

    def report_progress(finished: int, name: str) -> None:
        if on_progress is not None:
            elapsed = time.monotonic() - start
            left = elapsed / finished * (len(to_measure) - finished) if finished else None
            left = 0.0 if not to_measure else left
            on_progress(Progress(cached + finished, len(distinct), cached, len(failures), name, left))

    report_progress(0, "")
    order = [to_measure[int(index)] for index in rng.permutation(len(to_measure))]
    order.sort(key=lambda workload: -worth.get(workload.key, 0.0))
    conditions: dict[str, Any] = {"versions": read_versions(), "caches": caches} if order else {}
    flush: Callable[[], None] | None = None
    if order and caches == "cold":
        flush, conditions["flushed_bytes"] = flusher(backend.device)
    timing = timing or TimingSettings()
    terms = _Terms(target, kind, timing, backend.device, conditions, flush)
    drift: _DriftWatch | None = None
    if order and reference_every:
        drift = _DriftWatch(reference or reference_workload(), backend, precision, timing)
    unsteady: list[str] = []
    disturbed: list[str] = []
    finished = 0

    def in_budget() -> bool:
        return budget_s is None or time.monotonic() - start < budget_s

    for workload, open_session in _prepared(order, backend, precision, 1 if kind == "whole" else _GROUP, in_budget):
        if not in_budget():
            break
        row, measurement = _measure_one(workload, open_session, terms, drift)
        table.add(row)
        finished += 1
        if measurement is None:
            failures.append(Failure(row.key, row.name, row.reason))
        elif measurement.stop_reason != "converged":
            unsteady.append(workload.name)
        if row.conditions.get("disturbances"):
            disturbed.append(workload.name)
        report_progress(finished, workload.name)
        if drift is not None and finished % reference_every == 0:
            drift.read()
    if drift is not None and finished % reference_every:
        drift.read()
    return ProfileReport(
        measured=finished,
        cached=cached,
        failed=tuple(failures),
        unsteady=tuple(unsteady),
        drift=drift.largest if drift is not None else None,
        seconds=time.monotonic() - start,
        disturbed=tuple(disturbed),
        left=tuple(workload.name for workload in order[finished:]),
    )


def reference_workload() -> Workload:
    """A small fixed network whose latency should not change while others are measured."""
    generator_state = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.ReLU(),
        )
    finally:
        torch.random.set_rng_state(generator_state)
    return Workload("reference", "reference conv16-32-32|1x16x64x64", module, (TensorSpec((1, 16, 64, 64)),))


class _DriftWatch:
    """Reads the reference workload again and again, and compares it with its first reading."""

    def __init__(self, workload: Workload, backend: Backend, precision: str, timing: TimingSettings) -> None:
        self._timing = timing
        self._session: Session = backend.prepare(
            workload.module, random_inputs(workload.inputs, _INPUT_SEED), precision
        )
        self._readings_ms = [self._median_ms()]

    def read(self) -> None:
        """Take a reading."""
        self._readings_ms.append(self._median_ms())

    @property
    def latest_ms(self) -> float:
        """The last reading."""
        return self._readings_ms[-1]

    @property
    def latest(self) -> float:
        """The last reading against the first, as a share; 0 before the second."""
        return self.latest_ms / self._readings_ms[0] - 1

    @property
    def largest(self) -> float | None:
        """The reading farthest from the first, as a share."""
        return max((ms / self._readings_ms[0] - 1 for ms in self._readings_ms[1:]), key=abs, default=None)

    def _median_ms(self) -> float:
        with self._session:
            return measure(self._session.run, timer=self._session.timer, settings=self._timing).median_ms


def _prepared(
    workloads: Sequence[Workload], backend: Backend, precision: str, group_size: int, go_on: Callable[[], bool]
) -> Iterator[tuple[Workload, Callable[[], Session]]]:
    """Each workload in its turn, with a function that gives its session or raises why there is none."""
    for start in range(0, len(workloads), group_size):
        if not go_on():
            return
        group = workloads[start : start + group_size]
        items: list[tuple[nn.Module, tuple[Tensor, ...]]] = []
        refused: dict[int, Callable[[], Session]] = {}
        for place, workload in enumerate(group):
            try:
                items.append((workload.module, random_inputs(workload.inputs, _INPUT_SEED)))
            except Exception as error:  # noqa: BLE001 - inputs that no memory can hold are this workload's failure
                refused[place] = partial(_raise, error)
        prepared = iter(backend.prepare_many(items, precision))
        for place, workload in enumerate(group):
            yield workload, refused.get(place) or next(prepared)


def _raise(error: Exception) -> NoReturn:
    raise error


@dataclass(frozen=True)
class _Terms:
    """What holds for every measurement of one call."""

    target: Target
    kind: Kind
    timing: TimingSettings
    device: Device
    conditions: Mapping[str, Any]
    flush: Callable[[], None] | None


def _measure_one(
    workload: Workload, open_session: Callable[[], Session], terms: _Terms, drift: _DriftWatch | None
) -> tuple[Row, Measurement | None]:
    work: Work | None = None
    conditions = dict(terms.conditions)
    try:
        work = Work.of(workload)
        conditions["work"] = work.as_dict()
    except Exception as error:  # noqa: BLE001 - a module that shapes alone can not run may still run, and be timed
        conditions["flops_error"] = named_line(error)
    try:
        session = open_session()
        before = conditions["before"] = read_state(terms.device)
        with session:
            measurement = measure(session.run, timer=session.timer, settings=terms.timing, before_each=terms.flush)
        after = conditions["after"] = read_state(terms.device)
        conditions["disturbances"] = disturbances(before, after, terms.target.threads)
        conditions["session"] = session.describe()
        if drift is not None:
            conditions["reference_ms"] = drift.latest_ms
    except UserError:
        raise  # about the request, not about this module
    except Exception as error:  # noqa: BLE001 - whatever a backend raises for this module is this module's result
        if terms.device.kind == "cuda":
            torch.cuda.empty_cache()
        failed = Row(
            key=workload.key,
            name=workload.name,
            target=terms.target,
            kind=terms.kind,
            status="failed",
            reason=named_line(error),
            parameters=workload.parameters,
            flops=work.flops if work is not None else None,
            conditions=conditions,
        )
        return failed, None
    row = Row(
        key=workload.key,
        name=workload.name,
        target=terms.target,
        kind=terms.kind,
        median_ms=measurement.median_ms,
        low_ms=measurement.low_ms,
        high_ms=measurement.high_ms,
        n=len(measurement.samples_ns),
        inner_runs=measurement.inner_runs,
        stop_reason=measurement.stop_reason.value,
        samples=pack_samples(np.asarray(measurement.samples_ns) / 1e6),
        parameters=workload.parameters,
        flops=work.flops if work is not None else None,
        conditions=conditions,
        reference_drift=drift.latest if drift is not None else None,
    )
    return row, measurement
