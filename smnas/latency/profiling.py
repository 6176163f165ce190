"""The steps of a profile: select detectors, measure them, audit predictions, estimate."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.backends.onnxruntime import OnnxRuntimeBackend
from profiler.errors import UserError
from profiler.measuring.build_variance import BuildVariance, build_variance
from profiler.table.latency_table import LatencyTable
from profiler.workload import Workload
from smnas.latency.audit import Audit, LeftS, audit_latency, explain
from smnas.latency.audit_file import write_audit
from smnas.latency.coverage import by_demand, covering
from smnas.latency.coverage_record import fingerprint, read_record, write_record
from smnas.latency.detector_latency import DetectorLatency, in_groups
from smnas.latency.prediction import no_end_to_end
from smnas.latency.workloads import detector_workloads, fresh_detector, inference_workloads
from smnas.space import streams
from smnas.space.architecture import Architecture, RPNKind
from smnas.space.convolutions import layers, multiply_adds
from smnas.space.preset import Space
from smnas.space.sampling import sample_modular

if TYPE_CHECKING:
    from profiler.measuring.profile import Caches, ProfileReport, Progress

__all__ = [
    "Measured",
    "OnProgress",
    "audit",
    "audited",
    "calibration_set",
    "estimate",
    "given",
    "measure",
    "measure_detectors",
    "measure_preset",
    "rebuild",
    "refresh",
    "structures_of",
]

OnProgress = Callable[[float, float, str], None]
"""Called with the number done, the total, and the current one."""

_AT_ONCE = 16  # detectors whose missing blocks are built together; their rounds are spread over the groups that follow
_CALIBRATION_WHOLES = 8
_CALIBRATION_AT_MOST = 40
_CALIBRATION_DRAWN = 100
_EXPLAINED = 3
_REBUILT_FROM = 8
_REBUILT = 12


def given(texts: Sequence[str]) -> list[Architecture]:
    """Parse the user's architectures.

    Raises:
        UserError: one is not an architecture.
    """
    return [Architecture.parse(text) for text in texts]


def structures_of(space: Space, sample: int | None, seed: int) -> list[Architecture]:
    """The structures that cover a space, most shared blocks first; or a random sample of them."""
    structures = space.structures
    if sample is None:
        return by_demand(covering(structures), structures)
    chosen = np.random.default_rng(seed).permutation(len(structures))[:sample]
    return [structures[index] for index in chosen.tolist()]


@dataclass(frozen=True)
class Measured:
    """Summary of a measurement.

    Attributes:
        measured: Blocks measured now.
        cached: Blocks already in the table.
        failed: Reason by block.
        wide: Blocks whose interval stayed wide.
        disturbed: Blocks disturbed by load, throttling or clocks; their rows say which.
        drift: Largest relative change of the reference block's latency while measuring.
        left: ``blocks`` and ``detectors`` not reached within the time limit.
    """

    measured: int = 0
    cached: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)
    wide: Sequence[str] = ()
    disturbed: Sequence[str] = ()
    drift: float | None = None
    left: Mapping[str, int] = field(default_factory=lambda: {"blocks": 0, "detectors": 0})


def measure(
    architectures: Sequence[Architecture],
    latency: DetectorLatency,
    on_progress: OnProgress,
    *,
    budget_s: float | None = None,
    caches: "Caches" = "hot",
) -> Measured:
    """Measure all blocks of these detectors that the table lacks.

    Args:
        architectures: In order of priority.
        latency: Measures.
        on_progress: Called with detectors done, their number, and the current block.
        budget_s: Start no measurement after this time.
        caches: ``cold`` flushes them before every run.
    """
    reports: list[ProfileReport] = []
    count, began = len(architectures), time.monotonic()

    def remaining_s() -> float | None:
        return None if budget_s is None else max(0.0, budget_s - (time.monotonic() - began))

    def measure_group(group: Sequence[Architecture], start: int, *, more: bool) -> None:

        def inside(state: "Progress") -> None:
            on_progress(start + state.fraction * len(group), count, state.name)

        on_progress(start, count, "reading shapes")
        left_s = remaining_s()
        reports.append(latency.measure_blocks(group, more=more, budget_s=left_s, caches=caches, on_progress=inside))

    reached = 0
    try:
        while reached < count and remaining_s() != 0 and not (reports and reports[-1].left):
            group = architectures[reached : reached + _AT_ONCE]
            measure_group(group, reached, more=reached + len(group) < count)
            reached += len(group)
        measure_group((), reached, more=False)  # the last rounds, where the time is up
    except BaseException:
        latency.keep_agreeing()
        raise
    return Measured(
        sum(report.measured for report in reports),
        sum(report.cached for report in reports),
        {failure.name: failure.reason for report in reports for failure in report.failed},
        sorted({name for report in reports for name in report.wide}),
        sorted({name for report in reports for name in report.disturbed}),
        max((report.drift for report in reports if report.drift is not None), key=abs, default=None),
        {
            "blocks": sum(len(report.left) for report in reports),
            "detectors": count - reached,
        },
    )


def refresh(
    architectures: Sequence[Architecture],
    latency: DetectorLatency,
    on_progress: OnProgress,
    *,
    budget_s: float | None = None,
) -> Measured:
    """Measure blocks of these detectors again whose rounds disagree in the table, and all such detectors end to end.

    Unsteady blocks of other detectors are ``left``.
    """
    unsteady = latency.unsteady()
    wanted = {key for key, row in unsteady.items() if row.kind == "part"}
    holding: list[Architecture] = []
    plain = latency.plain()
    for number, architecture in enumerate(architectures):
        if not wanted:
            break
        on_progress(number, len(architectures), "looking for blocks whose rounds disagree")
        if own := wanted.intersection(plain.keys(architecture)):
            wanted -= own
            holding.append(architecture)

    def inside(state: "Progress") -> None:
        on_progress(state.fraction * len(architectures), len(architectures), state.name)

    report = latency.refresh(holding, budget_s=budget_s, on_progress=inside)
    return Measured(
        report.measured,
        len(plain.rows) - len(unsteady),
        {failure.name: failure.reason for failure in report.failed},
        report.wide,
        report.disturbed,
        report.drift,
        {"blocks": len(report.left) + len(wanted), "detectors": 0},
    )


def measure_detectors(
    architectures: Sequence[Architecture],
    latency: DetectorLatency,
    on_progress: OnProgress,
    left_s: LeftS = lambda: None,
) -> dict[str, float | str]:
    """Measure these detectors end to end: the median in ms of each, or the reason for having none.

    Nothing is started once the seconds of ``left_s`` are over.
    """
    found: dict[str, float | str] = {}
    done = 0
    for some in in_groups(architectures):

        def inside(state: "Progress", start: int = done, size: int = len(some)) -> None:
            on_progress(start + state.fraction * size, len(architectures), state.name)

        if left_s() == 0:
            break
        latency.measure_detectors(some, budget_s=left_s(), on_progress=inside)
        done += len(some)
        predictor = latency.plain()
        for architecture in some:
            if (row := predictor.end_to_end_row(architecture)) is not None:
                found[str(architecture)] = str(no_end_to_end(row)) if row.median_ms is None else row.median_ms
    on_progress(len(architectures), len(architectures), "")
    return found


def measure_preset(
    name: str,
    architectures: Sequence[Architecture],
    latency: DetectorLatency,
    on_progress: OnProgress,
    *,
    budget_s: float | None = None,
) -> Measured:
    """As :func:`measure` for the cover of a preset; immediate if the record beside the table covers it."""
    table, target = latency.table, latency.target
    made_with = fingerprint(name, *map(str, architectures), latency.num_classes, target)
    known = table.current(target)
    recorded = read_record(table.path, made_with)
    if recorded is not None and recorded <= known.keys():
        failed = {known[key].name: known[key].reason or "" for key in recorded if known[key].status == "failed"}
        return Measured(cached=len(recorded), failed=failed)
    found = measure(architectures, latency, on_progress, budget_s=budget_s)
    if not any(found.left.values()):
        write_record(table.path, made_with, table.current(target))
    return found


def rebuild(
    architectures: Sequence[Architecture],
    latency: DetectorLatency,
    builds: int,
    seed: int,
    on_progress: OnProgress,
    left_s: LeftS,
) -> list[BuildVariance]:
    """Build a sample of the blocks of these detectors ``builds`` times each, and compare their medians.

    ``on_progress`` is called with blocks done, their number, and the next one. Once the seconds of ``left_s`` are over,
    the remaining sample is skipped.
    """
    distinct: dict[str, Workload] = {}
    for one in architectures[:_REBUILT_FROM]:
        real = inference_workloads(fresh_detector(one, latency.num_classes), latency.batch)
        distinct |= {part.key: part for part in real if part.key not in distinct}
    blocks = list(distinct.values())
    chosen = streams.rebuilding(seed).permutation(len(blocks))[:_REBUILT].tolist()
    found = []
    for number, index in enumerate(chosen):
        if left_s() == 0:
            break
        on_progress(number, len(chosen), blocks[index].name)
        found.append(
            build_variance(
                blocks[index], latency.backend, builds=builds, precision=latency.precision, timing=latency.timing
            )
        )
    on_progress(len(chosen), len(chosen), "")
    return found


def audit(
    space: Space,
    count: int,
    latency: DetectorLatency,
    seed: int,
    on_progress: OnProgress,
    *,
    left_s: LeftS = lambda: None,
    explained: int = _EXPLAINED,
) -> Audit:
    """Compare predicted with measured end-to-end latency on detectors that the prediction was not fitted on.

    With ONNX Runtime, the ``explained`` worst predictions are run again under its profiler, end-to-end and by block, to
    locate the difference. The audit is stored beside the table. Once the seconds of ``left_s`` are over, those measured
    so far are compared, and ``left`` counts the rest.

    Raises:
        UserError: the space holds too few detectors.
    """
    calibration, held_out = audited(space, count, seed)
    runner = latency.backend
    worst = explained if isinstance(runner, OnnxRuntimeBackend) else 0
    measured = len(calibration) + len(held_out)
    found = audit_latency(
        latency,
        calibration,
        held_out,
        lambda done, total, text: on_progress(done, total + worst, text),
        rng=streams.measuring_order(seed),
        left_s=left_s,
    )
    residuals = []
    try:
        for number, one in enumerate(found.detectors[:worst]):
            if left_s() == 0 or not isinstance(runner, OnnxRuntimeBackend):
                break
            on_progress(measured + number, measured + worst, f"looking inside {one.architecture}")
            inside = explain(runner, one.architecture, latency.num_classes, latency.batch, latency.precision)
            residuals.append((one.architecture, inside))
    finally:  # interrupting the explanation keeps the audit
        found = replace(found, residuals=tuple(residuals))
        write_audit(latency.table.path, latency.target, found.as_dict())
    if worst:
        on_progress(measured + worst, measured + worst, "")
    return found


def calibration_set(space: Space, seed: int, count: int) -> list[Architecture]:
    """The baseline and ``count`` structures on which a search calibrates; the same for one seed.

    Of 100 random structures each next one is the farthest from those before it, by the logarithms of its backbone's
    operations and layers and by its proposals: with sums and numbers of blocks spread, few detectors tell the cost per
    block from the scale of the sum. The most telling come first.
    """
    structures = space.structures
    drawn = streams.calibration(seed).permutation(len(structures))[: _CALIBRATION_DRAWN if count else 0]
    pool = [space.baseline_architecture, *(structures[index] for index in drawn.tolist())]
    features = np.array([_size(one) for one in pool])
    features /= np.maximum(features.std(axis=0), 1e-9)
    chosen, distance = [0], np.full(len(pool), np.inf)
    while len(chosen) < min(count + 1, len(pool)):
        distance = np.minimum(distance, np.linalg.norm(features - features[chosen[-1]], axis=1))
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
    return [pool[index] for index in chosen]


def _size(architecture: Architecture) -> tuple[float, float, float]:
    """What its latency and its number of blocks grow with, known without building it."""
    found = architecture.backbone.convolutions()
    operations = multiply_adds(found, architecture.input_width, architecture.input_height)
    return math.log(operations), math.log(layers(found)), float(architecture.rpn is not RPNKind.NONE)


def audited(space: Space, count: int, seed: int) -> tuple[list[Architecture], list[Architecture]]:
    """Distinct detectors to calibrate on and to hold out: structures and modular variants alternate.

    Raises:
        UserError: the space holds too few detectors.
    """
    structures = space.structures
    calibration = min(max(_CALIBRATION_WHOLES, count // 2), _CALIBRATION_AT_MOST)
    wanted = calibration + count
    if len(structures) < wanted:
        raise UserError(f"an audit of {count} needs {wanted} detectors, but {space.name} holds {len(structures)}")
    rng = streams.audit(seed)
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
    gpu: str,
    file: Path,
    architectures: Sequence[Architecture],
    classes: int,
    precision: str,
    batch: int,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Roofline estimates for a GPU with a data sheet, stored in the table apart from measurements.

    Raises:
        UserError: no such data sheet, or a precision that cannot be estimated.
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
            on_progress(number, len(architectures), str(architecture))
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
        on_progress(len(architectures), len(architectures), "")
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
