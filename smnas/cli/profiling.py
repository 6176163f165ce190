"""The steps of ``smnas profile``: which detectors are covered, measuring them, auditing predictions, estimating."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.backends.onnxruntime import OnnxRuntimeBackend
from profiler.errors import UserError
from profiler.table import LatencyTable
from smnas.cli.coverage_record import fingerprint, read_record, write_record
from smnas.models.build import BuildError, buildable
from smnas.models.coverage import covering
from smnas.models.workloads import detector_workloads
from smnas.scoring.latency import DetectorLatency
from smnas.scoring.latency_audit import audit_latency, explain
from smnas.space.architecture import Architecture
from smnas.space.preset import Space
from smnas.space.sampling import sample_modular

if TYPE_CHECKING:
    from profiler.backends import Backend
    from profiler.profile import Progress

__all__ = ["MakeLatency", "Told", "audit", "audited", "estimate", "given", "measure", "measure_preset", "structures_of"]

MakeLatency = Callable[["Callable[[Progress], None] | None"], DetectorLatency]
"""A predictor that tells its progress."""
Told = Callable[[float, float, str], None]
"""Told how many are done, of how many, and what is going on."""

_AT_ONCE = 16  # detectors whose missing blocks are held in memory together, and measured in one random order
_CALIBRATION_WHOLES = 8
_CALIBRATION_AT_MOST = 40
_EXPLAINED = 3
_AUDIT_STREAM = 1 << 33


def given(texts: Sequence[str]) -> list[Architecture]:
    """The architectures that the user typed.

    Raises:
        UserError: one is not an architecture, or can not be built.
    """
    architectures = [Architecture.parse(text) for text in texts]
    for architecture in architectures:
        if (reason := buildable(architecture)) is not None:
            raise BuildError(reason)
    return architectures


def structures_of(space: Space, sample: int | None, seed: int) -> list[Architecture]:
    """The structural choices that cover a space, or a random sample of them."""
    structures = [architecture for architecture in space.structures if buildable(architecture) is None]
    if sample is None:
        return covering(structures)
    chosen = np.random.default_rng(seed).permutation(len(structures))[:sample]
    return [structures[index] for index in chosen.tolist()]


def measure(architectures: Sequence[Architecture], make: MakeLatency, told: Told) -> dict[str, Any]:
    """Measure every block of these detectors that the table does not hold; what that came to."""
    measured = cached = 0
    failed: dict[str, str] = {}
    drifts: list[float] = []
    unsteady: set[str] = set()
    done = 0

    def progress(state: "Progress") -> None:
        share = state.done / state.total if state.total else 1.0
        told(done + share * len(group), len(architectures), state.name)

    latency = make(progress)
    for start in range(0, len(architectures), _AT_ONCE):
        done, group = start, architectures[start : start + _AT_ONCE]
        told(done, len(architectures), "reading shapes")
        report = latency.complete(group)
        measured += report.measured
        cached += report.cached
        failed |= {failure.name: failure.reason for failure in report.failed}
        unsteady |= set(report.unsteady)
        drifts += [] if report.drift is None else [report.drift]
    return {
        "measured": measured,
        "cached": cached,
        "failed": failed,
        "unsteady": sorted(unsteady),
        "drift": max(drifts, key=abs, default=None),
    }


def measure_preset(
    name: str, classes: int, architectures: Sequence[Architecture], make: MakeLatency, table: LatencyTable, told: Told
) -> dict[str, Any]:
    """As :func:`measure` for what covers a preset; done at once where the record beside the table says so."""
    target = make(None).target
    made_with = fingerprint(name, classes, target)
    known = table.current(target)
    recorded = read_record(table.path, made_with)
    if recorded is not None and recorded <= known.keys():
        failed = {known[key].name: known[key].reason for key in recorded if known[key].status == "failed"}
        return {"measured": 0, "cached": len(recorded), "failed": failed, "unsteady": [], "drift": None}
    document = measure(architectures, make, told)
    write_record(table.path, made_with, table.current(target))
    return document


def audit(
    space: Space,
    count: int,
    make: MakeLatency,
    runner: "Backend",
    seed: int,
    told: Told,
    *,
    explained: int = _EXPLAINED,
) -> dict[str, Any]:
    """Compare predicted with measured latency on whole detectors that the prediction was not fitted on.

    In ONNX Runtime the worst predictions are run again under its profiler, whole and in parts, to see where the time
    differs.

    Raises:
        UserError: the space holds too few detectors.
    """
    calibration, held_out = audited(space, count, seed)
    latency = make(None)
    found = audit_latency(latency, calibration, held_out, told)
    document = found.as_dict() | {"residuals": []}
    if isinstance(runner, OnnxRuntimeBackend):
        for number, whole in enumerate(found.wholes[:explained]):
            told(number, explained, f"looking inside {whole.architecture}")
            residual = explain(runner, whole.architecture, latency.num_classes, latency.batch)
            document["residuals"].append({"architecture": str(whole.architecture), **asdict(residual)})
    return document


def audited(space: Space, count: int, seed: int) -> tuple[list[Architecture], list[Architecture]]:
    """Detectors to calibrate on and to hold out, all different: structural choices and their modular variants in turns.

    Raises:
        UserError: the space holds too few detectors.
    """
    structures = [architecture for architecture in space.structures if buildable(architecture) is None]
    calibration = min(max(_CALIBRATION_WHOLES, count // 2), _CALIBRATION_AT_MOST)
    wanted = calibration + count
    if len(structures) < wanted:
        raise UserError(f"an audit of {count} needs {wanted} detectors, but {space.name} holds {len(structures)}")
    rng = np.random.default_rng([seed, _AUDIT_STREAM])
    chosen: list[Architecture] = []
    for index in rng.permutation(len(structures)).tolist():
        architecture = structures[index]
        if len(chosen) % 2:
            architecture = sample_modular(space, architecture, rng)
        if architecture not in chosen and buildable(architecture) is None:
            chosen.append(architecture)
        if len(chosen) == wanted:
            break
    return chosen[:calibration], chosen[calibration:]


def estimate(
    gpu: str, file: Path, architectures: Sequence[Architecture], classes: int, precision: str, batch: int, told: Told
) -> dict[str, Any]:
    """Roofline estimates for a GPU of the data sheets, kept in the table apart from every measurement.

    Raises:
        UserError: no data sheet of that name, or a precision that can not be estimated.
    """
    from profiler.devices import gpu_sheets
    from profiler.estimate import estimate_target, estimate_workloads
    from profiler.predict import sum_parts

    sheet = gpu_sheets().get(gpu)
    if sheet is None:
        raise UserError(f"--estimate knows the data sheets of {', '.join(gpu_sheets())}, but got {gpu!r}")
    added = 0
    rows = []
    with LatencyTable(file) as table:
        for number, architecture in enumerate(architectures):
            told(number, len(architectures), str(architecture))
            workloads = detector_workloads(architecture, classes, batch)
            added += estimate_workloads(workloads, table, sheet, precision=precision, batch=batch)
            known = table.current(estimate_target(sheet, precision=precision, batch=batch))
            keys = [workload.key for workload in workloads]
            parts = [known[key] for key in keys]
            rows.append(
                {
                    "architecture": str(architecture),
                    "sum_ms": sum_parts(keys, known).ms,
                    "low_ms": sum(part.low_ms or 0.0 for part in parts),
                    "high_ms": sum(part.high_ms or 0.0 for part in parts),
                }
            )
        told(len(architectures), len(architectures), "")
    return {
        "kind": "estimate (roofline), not measured",
        "device": sheet.title,
        "table": file,
        "precision": precision,
        "batch": batch,
        "classes": classes,
        "added": added,
        "architectures": rows,
    }
