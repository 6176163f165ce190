"""The steps of ``smnas profile``: which detectors are covered, measuring them, auditing predictions, estimating."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.backends.onnxruntime import OnnxRuntimeBackend
from profiler.errors import UserError
from profiler.measuring.build_variance import build_variance
from profiler.table.latency_table import LatencyTable
from smnas.latency.audit import audit_latency, explain
from smnas.latency.audit_file import write_audit
from smnas.latency.coverage import by_demand, covering
from smnas.latency.coverage_record import fingerprint, read_record, write_record
from smnas.latency.detector_latency import DetectorLatency
from smnas.latency.workloads import detector_workloads
from smnas.space.architecture import Architecture
from smnas.space.preset import Space
from smnas.space.sampling import sample_modular

if TYPE_CHECKING:
    from profiler.backends import Backend
    from profiler.measuring.profile import Caches, Progress

__all__ = [
    "MakeLatency",
    "Told",
    "audit",
    "audited",
    "estimate",
    "given",
    "measure",
    "measure_preset",
    "rebuild",
    "structures_of",
]

MakeLatency = Callable[["Callable[[Progress], None] | None"], DetectorLatency]
"""A predictor that tells its progress."""
Told = Callable[[float, float, str], None]
"""Told how many are done, of how many, and what is going on."""

_AT_ONCE = 16  # detectors whose missing blocks are held in memory together, and measured in one random order
_CALIBRATION_WHOLES = 8
_CALIBRATION_AT_MOST = 40
_EXPLAINED = 3
_AUDIT_STREAM = 1 << 33
_REBUILD_STREAM = 1 << 34
_ORDER_STREAM = 1 << 35
_REBUILT_FROM = 8
_REBUILT = 12


def given(texts: Sequence[str]) -> list[Architecture]:
    """The architectures that the user typed.

    Raises:
        UserError: one is not an architecture.
    """
    return [Architecture.parse(text) for text in texts]


def structures_of(space: Space, sample: int | None, seed: int) -> list[Architecture]:
    """The structural choices that cover a space, those first whose blocks most others need; or a random sample."""
    structures = space.structures
    if sample is None:
        return by_demand(covering(structures), structures)
    chosen = np.random.default_rng(seed).permutation(len(structures))[:sample]
    return [structures[index] for index in chosen.tolist()]


def measure(
    architectures: Sequence[Architecture],
    make: MakeLatency,
    told: Told,
    *,
    budget_s: float | None = None,
    caches: "Caches" = "hot",
) -> dict[str, Any]:
    """Measure every block of these detectors that the table does not hold; what that came to.

    Args:
        architectures: In the order in which they are wanted.
        make: A predictor.
        told: How far it is.
        budget_s: Start nothing more after this long; ``left`` says what was not reached.
        caches: ``cold`` flushes them before every run.
    """
    measured = cached = 0
    failed: dict[str, str] = {}
    drifts: list[float] = []
    unsteady: set[str] = set()
    disturbed: set[str] = set()
    left: dict[str, int] = {"blocks": 0, "detectors": 0}
    done = 0
    began = time.monotonic()

    def progress(state: "Progress") -> None:
        share = state.done / state.total if state.total else 1.0
        told(done + share * len(group), len(architectures), state.name)

    latency = make(progress)
    for start in range(0, len(architectures), _AT_ONCE):
        remaining_s = None if budget_s is None else budget_s - (time.monotonic() - began)
        if remaining_s is not None and remaining_s <= 0:
            left["detectors"] = len(architectures) - start
            break
        done, group = start, architectures[start : start + _AT_ONCE]
        told(done, len(architectures), "reading shapes")
        report = latency.complete(group, budget_s=remaining_s, caches=caches)
        measured += report.measured
        cached += report.cached
        failed |= {failure.name: failure.reason for failure in report.failed}
        unsteady |= set(report.unsteady)
        disturbed |= set(report.disturbed)
        left["blocks"] += len(report.left)
        drifts += [] if report.drift is None else [report.drift]
    return {
        "measured": measured,
        "cached": cached,
        "failed": failed,
        "unsteady": sorted(unsteady),
        "disturbed": sorted(disturbed),
        "drift": max(drifts, key=abs, default=None),
        "left": left,
    }


def measure_preset(
    name: str,
    classes: int,
    architectures: Sequence[Architecture],
    make: MakeLatency,
    table: LatencyTable,
    told: Told,
    *,
    budget_s: float | None = None,
) -> dict[str, Any]:
    """As :func:`measure` for what covers a preset; done at once where the record beside the table says so."""
    target = make(None).target
    made_with = fingerprint(name, *map(str, architectures), classes, target)
    known = table.current(target)
    recorded = read_record(table.path, made_with)
    if recorded is not None and recorded <= known.keys():
        failed = {known[key].name: known[key].reason for key in recorded if known[key].status == "failed"}
        nothing = {"measured": 0, "unsteady": [], "disturbed": [], "drift": None, "left": {"blocks": 0, "detectors": 0}}
        return {**nothing, "cached": len(recorded), "failed": failed}
    document = measure(architectures, make, told, budget_s=budget_s)
    if not any(document["left"].values()):
        write_record(table.path, made_with, table.current(target))
    return document


def rebuild(
    architectures: Sequence[Architecture],
    make: MakeLatency,
    runner: "Backend",
    builds: int,
    seed: int,
    told: Told,
    in_budget: Callable[[], bool],
) -> list[dict[str, Any]]:
    """Build a sample of the blocks of these detectors again and again; how far their medians are apart.

    Args:
        architectures: Whose blocks they are.
        make: A predictor.
        runner: Builds and runs them.
        builds: Of each block.
        seed: Draws the sample.
        told: How far it is.
        in_budget: Asked before every block; once it says no, the rest of the sample is left out.
    """
    latency = make(None)
    blocks = latency.blocks(architectures[:_REBUILT_FROM])
    chosen = np.random.default_rng([seed, _REBUILD_STREAM]).permutation(len(blocks))[:_REBUILT].tolist()
    found = []
    for number, index in enumerate(chosen):
        if not in_budget():
            break
        told(number, len(chosen), blocks[index].name)
        found.append(
            build_variance(blocks[index], runner, builds=builds, precision=latency.precision, timing=latency.timing)
        )
    told(len(chosen), len(chosen), "")
    return [{**asdict(one), "spread": one.spread, "differs": one.differs} for one in found]


def audit(
    space: Space,
    count: int,
    make: MakeLatency,
    runner: "Backend",
    seed: int,
    told: Told,
    *,
    table_path: Path,
    in_budget: Callable[[], bool] = lambda: True,
    explained: int = _EXPLAINED,
) -> dict[str, Any]:
    """Compare predicted with measured latency on whole detectors that the prediction was not fitted on.

    In ONNX Runtime the worst predictions are run again under its profiler, whole and in parts, to see where the time
    differs. The audit is kept beside the table, for its report. ``in_budget`` is asked before every detector; once it
    says no, what was measured until then is compared, and ``left`` counts the rest.

    Raises:
        UserError: the space holds too few detectors.
    """
    calibration, held_out = audited(space, count, seed)
    latency = make(None)
    worst = explained if isinstance(runner, OnnxRuntimeBackend) else 0
    wholes = len(calibration) + len(held_out)
    found = audit_latency(
        latency,
        calibration,
        held_out,
        lambda done, total, text: told(done, total + worst, text),
        rng=np.random.default_rng([seed, _ORDER_STREAM]),
        in_budget=in_budget,
    )
    document = found.as_dict() | {"residuals": []}
    write_audit(table_path, latency.target, document)
    if isinstance(runner, OnnxRuntimeBackend):
        for number, whole in enumerate(found.wholes[:worst]):
            if not in_budget():
                break
            told(wholes + number, wholes + worst, f"looking inside {whole.architecture}")
            residual = explain(runner, whole.architecture, latency.num_classes, latency.batch, latency.precision)
            document["residuals"].append({"architecture": str(whole.architecture), **asdict(residual)})
        told(wholes + worst, wholes + worst, "")
    return document


def audited(space: Space, count: int, seed: int) -> tuple[list[Architecture], list[Architecture]]:
    """Detectors to calibrate on and to hold out, all different: structural choices and their modular variants in turns.

    Raises:
        UserError: the space holds too few detectors.
    """
    structures = space.structures
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
        if architecture not in chosen:
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
    from profiler.devices import gpu_sheets, named_sheet
    from profiler.prediction.estimate import estimate_errors, estimate_target, estimate_workloads
    from profiler.prediction.predict import sum_parts

    sheet = named_sheet(gpu)
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
        errors = estimate_errors(table)
    return {
        "kind": "estimate (roofline), not measured",
        "device": sheet.title,
        "table": file,
        "precision": precision,
        "batch": batch,
        "classes": classes,
        "added": added,
        "compared": [
            {"device": one.target.device, "backend": one.target.backend, "precision": one.target.precision}
            | {"blocks": one.rows, "measured_against_estimate": one.median_ratio, "inside_interval": one.inside}
            for one in errors
        ],
        "architectures": rows,
    }
