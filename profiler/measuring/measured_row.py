"""Measure one workload, as a row of the latency table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from profiler.backends.base import Session
from profiler.devices import Device
from profiler.errors import UserError, named_line
from profiler.measuring.drift import DriftWatch
from profiler.table.latency_table import Row, Target, pack_samples
from profiler.timing.conditions import disturbances, read_state
from profiler.timing.measurement import TimingSettings, measure
from profiler.work import Work
from profiler.workload import Workload

__all__ = ["Terms", "measure_row"]


@dataclass(frozen=True)
class Terms:
    """Everything that the rows of one run have in common.

    Attributes:
        target: of the rows.
        kind: blocks or whole networks.
        timing: of each measurement.
        device: whose state is read before and after each measurement.
        conditions: copied into every row's.
        flush: called before every sample, ``None`` for hot caches.
    """

    target: Target
    kind: Literal["part", "whole"]
    timing: TimingSettings
    device: Device
    conditions: Mapping[str, Any]
    flush: Callable[[], None] | None


def measure_row(workload: Workload, open_session: Callable[[], Session], terms: Terms, drift: DriftWatch | None) -> Row:
    """Measure a workload; whatever keeps it from running becomes the reason of a failed row.

    Args:
        workload: with real weights.
        open_session: returns its session, or raises why there is none.
        terms: of the run.
        drift: the run's; its latest reading is stored beside the latency.

    Raises:
        UserError: about the request as a whole, not about this workload.
    """
    work: Work | None = None
    conditions = dict(terms.conditions)
    try:
        work = Work.of(workload)
        conditions["work"] = work.as_dict()
    except Exception as error:  # noqa: BLE001 - a module that shapes alone can not run may still run, and be timed
        conditions["flops_error"] = named_line(error)
    outcome: dict[str, Any]
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
        outcome = {
            "median_ms": measurement.median_ms,
            "low_ms": measurement.low_ms,
            "high_ms": measurement.high_ms,
            "n": len(measurement.samples_ns),
            "inner_runs": measurement.inner_runs,
            "stop_reason": measurement.stop_reason.value,
            "samples": pack_samples(np.asarray(measurement.samples_ns) / 1e6),
            "reference_drift": drift.latest if drift is not None else None,
        }
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a backend raises for this module is this module's result
        if terms.device.kind == "cuda":
            torch.cuda.empty_cache()
        outcome = {"status": "failed", "reason": named_line(error)}
    return Row(
        key=workload.key,
        name=workload.name,
        target=terms.target,
        kind=terms.kind,
        parameters=workload.parameters,
        flops=work.flops if work is not None else None,
        conditions=conditions,
        **outcome,
    )
