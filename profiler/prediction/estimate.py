"""Roofline estimates for a missing GPU: labelled as such, never mixed with measurements.

A workload can not be faster than its operations at the peak rate, nor than its inputs, outputs and weights through the
memory once (Williams, Waterman, Patterson: Roofline, CACM 2009). Real kernels reach a fraction of that, unknown without
the device, so the interval is a wide assumption.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

from profiler.devices import GpuSheet, gpu_sheets
from profiler.errors import UserError
from profiler.table.latency_table import LatencyTable, Row, Target
from profiler.work import Work
from profiler.workload import Workload

__all__ = [
    "ESTIMATE_BACKEND",
    "EstimateError",
    "Roof",
    "estimate_errors",
    "estimate_row",
    "estimate_target",
    "estimate_workloads",
    "float_bytes",
]

ESTIMATE_BACKEND = "estimate-roofline"
"""Backend name of estimates; no measurement has it."""

_VERSION = "1"
_LAUNCH_MS = 0.005
"""Approximate cost of one kernel launch, added to each workload, on current GPUs."""
_WORST_UTILISATION = 0.1
"""Fraction of the roofline that a poor kernel is assumed to reach: the upper end of the interval."""
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_ESTIMATED = ("fp32", "fp16")
"""Precisions whose peak every data sheet states."""


@dataclass(frozen=True)
class Roof:
    """The two rates that no run exceeds.

    Attributes:
        flops_per_s: peak of the operations, infinite where unknown.
    """

    flops_per_s: float
    bytes_per_s: float
    float_bytes: int = 4

    @classmethod
    def of_sheet(cls, sheet: GpuSheet, precision: str = "fp32") -> Self:
        """Take the rates from a GPU's data sheet.

        Raises:
            UserError: the precision can not be estimated.
        """
        if precision not in _ESTIMATED:
            raise UserError(f"an estimate is for one of {', '.join(_ESTIMATED)}, but got {precision!r}")
        peak = sheet.fp32_tflops if precision == "fp32" else sheet.fp16_tflops
        return cls(peak * 1e12, sheet.memory_gb_s * 1e9, _BYTES[precision])

    @classmethod
    def reached(cls, measured: Iterable[tuple[Work, float]], float_bytes: int = 4) -> Self:
        """Return the highest rates in at least one measured (work, ms) run: a roof for a device without data sheet."""
        runs = list(measured)
        if not runs:
            raise ValueError("a roof is read off measured runs, but got none")
        flops = max(work.flops / ms for work, ms in runs) * 1e3
        moved = max(work.bytes_moved(float_bytes) / ms for work, ms in runs) * 1e3
        return cls(flops or float("inf"), moved, float_bytes)

    def compute_ms(self, work: Work) -> float:
        """Time of the operations at the peak rate."""
        return work.flops / self.flops_per_s * 1e3

    def memory_ms(self, work: Work) -> float:
        """Time of the bytes at the full bandwidth."""
        return work.bytes_moved(self.float_bytes) / self.bytes_per_s * 1e3

    def bound_ms(self, work: Work) -> float:
        """Lower bound of a run's time."""
        return max(self.compute_ms(work), self.memory_ms(work))


@dataclass(frozen=True)
class EstimateError:
    """Median of measured over estimated latency for one target, and fraction of measurements in the intervals."""

    target: Target
    rows: int
    median_ratio: float
    inside: float


def estimate_errors(table: LatencyTable) -> list[EstimateError]:
    """Compare estimates with the table's measurements on GPUs that have a data sheet; empty without any."""
    found = []
    for target in table.targets():
        sheet = next((sheet for sheet in gpu_sheets().values() if sheet.is_called(target.device)), None)
        if sheet is None or target.backend == ESTIMATE_BACKEND or target.precision not in _ESTIMATED:
            continue
        roof = Roof.of_sheet(sheet, target.precision)
        bounds, measured = [], []
        for row in table.current(target).values():
            work = Work.from_dict(row.conditions.get("work"))
            if row.median_ms is not None and work is not None and row.kind == "part":
                bounds.append(roof.bound_ms(work))
                measured.append(row.median_ms)
        if measured:
            inside = [
                low <= ms <= low / _WORST_UTILISATION + _LAUNCH_MS for low, ms in zip(bounds, measured, strict=True)
            ]
            ratios = [ms / (low + _LAUNCH_MS) for low, ms in zip(bounds, measured, strict=True)]
            found.append(EstimateError(target, len(measured), median(ratios), sum(inside) / len(inside)))
    return found


def float_bytes(precision: str) -> int:
    """Return the bytes per element of a feature map."""
    return _BYTES[precision]


def estimate_workloads(
    workloads: Sequence[Workload], table: LatencyTable, sheet: GpuSheet, *, precision: str = "fp32", batch: int = 1
) -> int:
    """Add estimates for the workloads, on any device or ``meta``, that the table has none for.

    ``precision`` is ``fp32`` or ``fp16``; ``batch`` is recorded in the rows.

    Returns:
        Number of rows added.

    Raises:
        UserError: the precision can not be estimated.
    """
    known = table.current(estimate_target(sheet, precision=precision, batch=batch))
    distinct = {workload.key: workload for workload in workloads if workload.key not in known}
    for workload in distinct.values():
        table.add(estimate_row(workload, sheet, precision=precision, batch=batch))
    return len(distinct)


def estimate_target(sheet: GpuSheet, *, precision: str = "fp32", batch: int = 1) -> Target:
    """Return the target of estimates for a GPU."""
    return Target(sheet.title, ESTIMATE_BACKEND, _VERSION, precision, batch, 1)


def estimate_row(workload: Workload, sheet: GpuSheet, *, precision: str = "fp32", batch: int = 1) -> Row:
    """Estimate one workload: ``max(operations / peak, bytes / bandwidth)``, and a launch.

    Raises:
        UserError: the precision can not be estimated.
    """
    roof = Roof.of_sheet(sheet, precision)
    work = Work.of(workload)
    bound_ms = roof.bound_ms(work)
    return Row(
        key=workload.key,
        name=workload.name,
        target=estimate_target(sheet, precision=precision, batch=batch),
        median_ms=bound_ms + _LAUNCH_MS,
        low_ms=bound_ms,
        high_ms=bound_ms / _WORST_UTILISATION + _LAUNCH_MS,
        stop_reason="estimate",
        parameters=workload.parameters,
        flops=work.flops,
        conditions={
            "estimate": "roofline, not measured",
            "bytes": work.bytes_moved(roof.float_bytes),
            "compute_ms": roof.compute_ms(work),
            "memory_ms": roof.memory_ms(work),
            "launch_ms": _LAUNCH_MS,
            "worst_utilisation": _WORST_UTILISATION,
            "work": work.as_dict(),
        },
    )
