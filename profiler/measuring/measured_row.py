"""Measure one workload in one or more rounds, as a row of the latency table."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from profiler.backends.base import Session, measure_session
from profiler.devices import Device
from profiler.errors import UserError, named_line
from profiler.measuring.drift import DriftWatch
from profiler.table.latency_table import Row, Target, pack_samples
from profiler.timing.conditions import disturbances, read_state, read_usage
from profiler.timing.measurement import Measurement, TimingSettings
from profiler.timing.rounds import agree, agreeing, combine, round_settings, settled
from profiler.work import Work
from profiler.workload import Workload

__all__ = ["Terms", "Visits"]


@dataclass(frozen=True)
class Terms:
    """Terms shared by all rows of one run.

    Attributes:
        device: its state is read before and after each measurement.
        conditions: copied into every row's.
        flush: called before every sample, ``None`` for hot caches.
        rounds: per workload; more where they disagree.
    """

    target: Target
    timing: TimingSettings
    device: Device
    conditions: Mapping[str, Any]
    flush: Callable[[], None] | None
    rounds: int


class Visits:
    """Rounds of one workload, combined into one row.

    Anything that keeps the workload from running becomes the reason of a failed row. ``open_session`` returns the
    session, or raises the reason; it is called at the first round. ``measured_at`` is the end of the latest round, by
    :func:`time.perf_counter`.
    """

    def __init__(
        self, workload: Workload, kind: Literal["part", "whole"], open_session: Callable[[], Session], terms: Terms
    ) -> None:
        self.workload = workload
        self.measured_at = 0.0
        self._kind = kind
        self._open_session = open_session
        self._terms = terms
        self._conditions: dict[str, Any] = dict(terms.conditions)
        self._session: Session | None = None
        self._rounds: list[Measurement] = []
        self._figures: list[dict[str, Any]] = []
        self._reason = ""
        self._drift: float | None = None
        self._work: Work | None = None
        try:
            self._work = Work.of(workload)
            self._conditions["work"] = self._work.as_dict()
        except Exception as error:  # noqa: BLE001 - a module that does not run on meta may still run, and be timed
            self._conditions["flops_error"] = named_line(error)

    @property
    def settled(self) -> bool:
        """Whether the workload needs no further round."""
        return bool(self._reason) or settled(self._rounds, self._terms.rounds)

    @property
    def agree(self) -> bool:
        """Whether the rounds so far make a row that further ones would hardly change."""
        return agree(self._rounds, self._terms.rounds)

    @property
    def done(self) -> float:
        """Fraction of the rounds that are done; repeated ones do not count."""
        return min(1.0, len(self._rounds) / self._terms.rounds)

    @property
    def left_s(self) -> float:
        """Seconds that the rounds to come will take, by those so far; repeated ones do not count."""
        took_s: float = sum(figures["wall_s"] for figures in self._figures) / max(1, len(self._figures))
        return took_s * max(0, self._terms.rounds - len(self._rounds))

    @property
    def elements(self) -> int:
        """Numbers that are in memory until the last round, without feature maps inside."""
        if self._work is not None:
            return self._work.float_elements
        return self.workload.parameters + sum(spec.elements for spec in self.workload.inputs)

    def measure(self, drift: DriftWatch | None) -> None:
        """Measure one round; the latest reading of ``drift`` is stored beside the latency.

        Raises:
            UserError: about the request as a whole, not about this workload.
        """
        terms, conditions = self._terms, self._conditions
        try:
            session = self._session = self._session or self._open_session()
            before = conditions.get("after") or conditions.setdefault("before", read_state(terms.device))
            started = read_usage()
            measured = measure_session(session, round_settings(terms.timing, terms.rounds), terms.flush)
            ended = read_usage()
            self._rounds.append(measured)
            used = {name: round(ended[name] - started[name], 6) for name in ended}
            after = conditions["after"] = read_state(terms.device)
            computes = terms.device.kind == "cpu"
            found = disturbances(before, after, terms.target.threads, used if computes else None)
            conditions["disturbances"] = list(dict.fromkeys([*conditions.get("disturbances", ()), *found]))
            conditions["session"] = session.describe()
            self._figures.append(
                {
                    "n": len(measured.samples_ns),
                    "median_ms": measured.median_ms,
                    **used,
                }
            )
            if drift is not None:
                conditions["reference_ms"], self._drift = drift.latest_ms, drift.latest
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - any error of the backend is this workload's result
            if terms.device.kind == "cuda":
                torch.cuda.empty_cache()
            self._reason = named_line(error)
        self.measured_at = time.perf_counter()
        if self.settled:
            self._session = None

    def row(self) -> Row:
        """Combine all rounds so far, at least one, into a row."""
        outcome: dict[str, Any] = {"status": "failed", "reason": self._reason}
        conditions = dict(self._conditions)
        if not self._reason:
            kept = agreeing(self._rounds)
            figures = zip(self._figures, self._rounds, strict=True)
            conditions["rounds"] = [{**figure, "kept": one in kept} for figure, one in figures]
            medians = [one.median_ms for one in self._rounds]
            conditions["round_spread"] = round(max(medians) / min(medians) - 1, 6) if min(medians) > 0 else None
            measurement = combine(self._rounds, self._terms.timing)
            outcome = {
                "median_ms": measurement.median_ms,
                "low_ms": measurement.low_ms,
                "high_ms": measurement.high_ms,
                "n": len(measurement.samples_ns),
                "inner_runs": measurement.inner_runs,
                "stop_reason": measurement.stop_reason.value,
                "samples": pack_samples(np.asarray(measurement.samples_ns) / 1e6),
                "reference_drift": self._drift,
            }
        return Row(
            key=self.workload.key,
            name=self.workload.name,
            target=self._terms.target,
            kind=self._kind,
            parameters=self.workload.parameters,
            flops=self._work.flops if self._work is not None else None,
            conditions=conditions,
            **outcome,
        )
