"""Roofline estimates for a GPU that is not here: labelled as such, never mixed with measurements.

A workload can not be faster than its operations at the peak rate, nor than its inputs, outputs and weights through the
memory once (Williams, Waterman, Patterson: Roofline, CACM 2009). Real kernels reach a part of that; how much is not
known without the device, so the interval is an assumption and wide.
"""

from collections.abc import Sequence

from torch import nn

from profiler.devices import GpuSheet
from profiler.errors import UserError
from profiler.table import LatencyTable, Row, Target
from profiler.workload import TensorSpec, Workload, meta_outputs

__all__ = ["ESTIMATE_BACKEND", "count_bytes", "estimate_row", "estimate_target", "estimate_workloads"]

ESTIMATE_BACKEND = "estimate-roofline"
"""The backend that estimates are kept under: no measurement ever has it."""

_VERSION = "1"
_LAUNCH_MS = 0.005
"""What starting a kernel costs on current GPUs, about; each workload is charged for one."""
_WORST_UTILISATION = 0.1
"""The share of the roofline that a poor kernel is assumed to reach: the upper end of the interval."""
_BYTES = {"fp32": 4, "fp16": 2}


def estimate_workloads(
    workloads: Sequence[Workload], table: LatencyTable, sheet: GpuSheet, *, precision: str = "fp32", batch: int = 1
) -> int:
    """Add estimates for the workloads that the table holds none for.

    Args:
        workloads: on any device, ``meta`` too.
        table: filled in.
        sheet: the GPU.
        precision: ``fp32`` or ``fp16``.
        batch: images per run, as the rows will say.

    Returns:
        How many rows were added.

    Raises:
        UserError: the precision is not one that can be estimated.
    """
    known = table.current(estimate_target(sheet, precision=precision, batch=batch))
    distinct = {workload.key: workload for workload in workloads if workload.key not in known}
    for workload in distinct.values():
        table.add(estimate_row(workload, sheet, precision=precision, batch=batch))
    return len(distinct)


def estimate_target(sheet: GpuSheet, *, precision: str = "fp32", batch: int = 1) -> Target:
    """The target that estimates for a GPU are kept under."""
    return Target(sheet.title, ESTIMATE_BACKEND, _VERSION, precision, batch, 1)


def estimate_row(workload: Workload, sheet: GpuSheet, *, precision: str = "fp32", batch: int = 1) -> Row:
    """The roofline of one workload: ``max(operations / peak, bytes / bandwidth)``, and a launch.

    Raises:
        UserError: the precision is not one that can be estimated.
    """
    if precision not in _BYTES:
        raise UserError(f"an estimate is for one of {', '.join(_BYTES)}, but got {precision!r}")
    flops = workload.flops
    moved = count_bytes(workload.module, workload.inputs, _BYTES[precision])
    peak = (sheet.fp32_tflops if precision == "fp32" else sheet.fp16_tflops) * 1e12
    compute_ms = flops / peak * 1e3
    memory_ms = moved / (sheet.memory_gb_s * 1e9) * 1e3
    bound_ms = max(compute_ms, memory_ms)
    return Row(
        key=workload.key,
        name=workload.name,
        target=estimate_target(sheet, precision=precision, batch=batch),
        median_ms=bound_ms + _LAUNCH_MS,
        low_ms=bound_ms,
        high_ms=bound_ms / _WORST_UTILISATION + _LAUNCH_MS,
        stop_reason="estimate",
        parameters=workload.parameters,
        flops=flops,
        conditions={
            "estimate": "roofline, not measured",
            "bytes": moved,
            "compute_ms": compute_ms,
            "memory_ms": memory_ms,
            "launch_ms": _LAUNCH_MS,
            "worst_utilisation": _WORST_UTILISATION,
        },
    )


def count_bytes(module: nn.Module, inputs: Sequence[TensorSpec], float_bytes: int = 4) -> int:
    """Bytes of inputs, outputs and weights: what must cross the memory at least once.

    Args:
        module: on any device; nothing is computed.
        inputs: one spec per positional argument.
        float_bytes: size of a floating-point number in the precision asked for.
    """
    tensors = [
        *module.parameters(),
        *module.buffers(),
        *(spec.meta() for spec in inputs),
        *meta_outputs(module, inputs),
    ]
    return sum(
        tensor.numel() * (float_bytes if tensor.is_floating_point() else tensor.element_size()) for tensor in tensors
    )
