"""Latency tables: measure, read, estimate, build engines."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from profiler.errors import UserError
from profiler.timing import DEFAULT_ROUNDS
from smnas.api.arguments import OnProgress, StrPath, architecture_of, backend_of, number_of, quiet
from smnas.durations import seconds_of
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space

if TYPE_CHECKING:
    from profiler.measuring.build_variance import BuildVariance
    from profiler.timing.measurement import TimingSettings
    from smnas.latency.audit import Audit
    from smnas.latency.profiling import Measured

__all__ = ["Profile", "build_engines", "estimate", "measured", "profile"]


@dataclass(frozen=True)
class Profile:
    """What a profile measured.

    Attributes:
        table: The latency table, which holds every row.
        device: Where it was measured.
        backend: What ran the blocks.
        backend_version: Of it.
        precision: Number format.
        batch: Images a run.
        threads: CPU threads.
        classes: Object classes of the detectors.
        detectors: Detectors covered.
        blocks: What measuring their blocks came to.
        cold: The same with flushed caches.
        builds: How far several builds of the same block differ.
        audit: Predicted against measured latency of detectors that the prediction was not fitted on.
        end_to_end_ms: End-to-end latency of the detectors in ms, or the reason for having none, and of exported files.
    """

    table: Path
    device: str
    backend: str
    backend_version: str
    precision: str
    batch: int
    threads: int
    classes: int
    detectors: int
    blocks: "Measured"
    cold: "Measured | None" = None
    builds: "Sequence[BuildVariance] | None" = None
    audit: "Audit | None" = None
    end_to_end_ms: "Mapping[str, float | str] | None" = None


def profile(
    preset: str | None = None,
    *,
    arch: "Sequence[Architecture | str]" = (),
    sample: int | None = None,
    run: StrPath | None = None,
    accept_version: str | None = None,
    device: str = "local",
    backend: str = "onnxruntime",
    precision: str = "fp32",
    batch: int = 1,
    threads: int = 1,
    classes: int = 80,
    table: StrPath | None = None,
    audit: int = 0,
    time_limit: str | float | None = None,
    cold: bool = False,
    builds: int | None = None,
    end_to_end: bool = False,
    refresh: str | None = None,
    seed: int = 0,
    timing: "TimingSettings | None" = None,
    rounds: int = DEFAULT_ROUNDS,
    on_progress: OnProgress = quiet,
) -> Profile:
    """Measure the blocks of detectors on a device into a latency table; what it holds is not measured again.

    Args:
        preset: Cover this space: ``nano`` (the default), ``small``, ``paper`` or a .toml file.
        arch: Cover these architectures instead, one or several.
        sample: Cover a random sample of the space; by default all structural choices.
        run: Cover the front and the finalists of this run folder, or of its ``request.json`` alone, end to end too,
            and the exported files beside it; with its backend, precision, threads and classes.
        accept_version: Version of the backend here to measure with for ``run``, whose table has another one.
        device: ``local``, ``cpu``, or a GPU such as ``v100``; ``gpu`` or ``npu`` of OpenVINO.
        backend: What runs the blocks.
        precision: Number format of the network: ``fp32``, ``fp16``, ``bf16`` or ``int8``, as the backend has it.
        batch: Images per run.
        threads: CPU threads that a measured run may use.
        classes: Object classes of the detectors.
        table: Latency table, made if it is missing; by default ``latency-DEVICE.db``.
        audit: Compare predicted with measured latency on this many whole detectors.
        time_limit: Start nothing after this long: seconds, or as in ``10m``. The most useful blocks come first.
        cold: Measure with flushed caches too, in rows that no prediction reads.
        builds: Build a sample of blocks this many times, to see how far the builds differ.
        end_to_end: Measure the detectors end to end too; predictions are calibrated on those.
        refresh: ``unsteady`` measures only the rows again whose rounds disagree: blocks of the covered detectors, and
            detectors end to end.
        seed: Random seed.
        timing: Accuracy and limits of one measurement.
        rounds: Rounds of each measurement, apart in time, up to twice as many where they disagree; 1 for a single burst
            of samples.
        on_progress: Called while measuring.

    Raises:
        UserError: an argument breaks a rule.
        DeviceNotPresentError: this machine lacks the GPU; :func:`measured` reads a table from elsewhere.
    """
    from profiler.measuring.profile import measurement_target
    from profiler.table.latency_table import LatencyTable
    from smnas.latency import profiling
    from smnas.latency.detector_latency import DetectorLatency

    if refresh not in (None, "unsteady"):
        raise UserError(f"--refresh must be unsteady, but got {refresh!r}")
    file = Path(table or f"latency-{device}.db")
    if refresh is not None and not file.is_file():
        raise UserError(f"rows are measured again in a table that is there, but there is no file {file}")
    rounds = number_of("--rounds", rounds, int)
    limit_s = None if time_limit is None else seconds_of(time_limit)
    until = math.inf if limit_s is None else time.monotonic() + limit_s
    request = None
    if run is not None:
        from smnas.deploy.request import Request

        request = Request.read(Path(run))
        backend, precision, threads, batch = request.backend, request.precision, request.threads, request.batch
        arch, classes, end_to_end = [one.architecture for one in request.detectors], request.classes, True
    wanted = _covered(preset, arch, sample, seed)
    space = load_space(preset or "nano")
    runner = backend_of(device, backend, precision, threads)
    files = {}
    if request is not None:
        request.require_target(measurement_target(runner, precision=precision, batch=batch), accept_version)
        files = request.files(Path(cast("StrPath", run)))

    def left_s() -> float | None:
        return None if limit_s is None else max(0.0, until - time.monotonic())

    with LatencyTable(file) as rows:
        latency = DetectorLatency(
            classes,
            runner,
            rows,
            precision=precision,
            batch=batch,
            seed=seed,
            timing=timing,
            rounds=rounds,
            norm="gn-ws" if request is None else request.norm,
        )
        at = partial(on_progress, "detectors covered")
        if refresh is not None:
            blocks = profiling.refresh(wanted, latency, at, budget_s=limit_s)
        elif arch or sample is not None:
            blocks = profiling.measure(wanted, latency, at, budget_s=limit_s)
        else:
            blocks = profiling.measure_preset(space.name, wanted, latency, at, budget_s=limit_s)
        flushed = built = audited = end_to_end_ms = None
        if end_to_end:
            at = partial(on_progress, "detectors measured end to end")
            end_to_end_ms = profiling.measure_detectors(wanted, latency, at, left_s)
        if request is not None and left_s() != 0:
            step = partial(on_progress, "exported files measured")
            timed = request.measure_files(files, runner, rows, latency.target, seed=seed, on_progress=step)
            end_to_end_ms = {**(end_to_end_ms or {}), **{f"{name} as exported": ms for name, ms in timed.items()}}
        if cold:
            at = partial(on_progress, "detectors covered with flushed caches")
            flushed = profiling.measure(wanted, latency, at, budget_s=left_s(), caches="cold")
        if builds is not None:
            at = partial(on_progress, "blocks built again")
            built = profiling.rebuild(wanted, latency, builds, seed, at, left_s)
        if audit:
            at = partial(on_progress, "detectors audited")
            audited = profiling.audit(space, audit, latency, seed, at, left_s=left_s)
        return Profile(
            rows.path,
            runner.device.name,
            runner.name,
            runner.version,
            precision,
            batch,
            threads,
            classes,
            len(wanted),
            blocks,
            flushed,
            built,
            audited,
            end_to_end_ms,
        )


def measured(
    device: str, table: StrPath, *, arch: "Sequence[Architecture | str]" = (), classes: int = 80
) -> dict[str, Any]:
    """What a latency table holds of a GPU that is elsewhere, by backend and precision.

    Args:
        device: The GPU, such as ``v100``.
        table: A latency table that was filled there.
        arch: Sum the blocks of these architectures, None where one is missing or failed.
        classes: Object classes of the detectors.

    Raises:
        UserError: the name is unknown, or the table holds nothing of that GPU.
    """
    from profiler.devices import gpu_sheets, named_sheet
    from profiler.table.latency_table import LatencyTable
    from smnas.report.latency_data import measured_targets

    sheet = named_sheet(device)
    if sheet is None:
        raise UserError(f"a GPU is one of {', '.join(gpu_sheets())}, but got {device!r}")
    with LatencyTable(Path(table), create=False) as rows:
        targets = measured_targets(rows, sheet, [architecture_of(one) for one in arch], classes)
    if not targets:
        raise UserError(f"{table} must hold measurements of {sheet.name}, as that GPU is not here, but it has none")
    return {"gpu": sheet.name, "table": Path(table), "classes": classes, "targets": targets}


def estimate(
    device: str,
    preset: str | None = None,
    *,
    arch: "Sequence[Architecture | str]" = (),
    sample: int | None = None,
    precision: str = "fp32",
    batch: int = 1,
    classes: int = 80,
    table: StrPath | None = None,
    seed: int = 0,
    on_progress: OnProgress = quiet,
) -> dict[str, Any]:
    """Roofline estimates for a GPU of the data sheets, labelled and kept in the table apart from every measurement.

    Arguments are those of :func:`profile`.

    Raises:
        UserError: there is no data sheet of that name, or the precision can not be estimated.
    """
    from smnas.latency import profiling

    file = Path(table or f"latency-{device}.db")
    at = partial(on_progress, "detectors estimated")
    return profiling.estimate(device, file, _covered(preset, arch, sample, seed), classes, precision, batch, at)


def build_engines(
    folder: StrPath,
    preset: str | None = None,
    *,
    arch: "Sequence[Architecture | str]" = (),
    sample: int | None = None,
    device: str = "local",
    backend: str = "tensorrt-rtx",
    precision: str = "fp32",
    batch: int = 1,
    classes: int = 80,
    compute_capability: Sequence[str] = (),
    workers: int = 1,
    seed: int = 0,
    on_progress: OnProgress = quiet,
) -> dict[str, Any]:
    """Build the blocks of detectors as TensorRT-RTX engines, for GPUs that this machine lacks.

    Args:
        folder: Where engines and their manifests go; what is there is not built again.
        compute_capability: GPUs to build for, such as ``8.9``; by default that of ``device``, or all.
        workers: Processes that build.
        preset: Space whose blocks are built.
        arch: Architectures instead.
        sample: Size of a random sample of the space.
        device: GPU of the data sheets, or ``local``.
        backend: ``tensorrt-rtx``.
        precision: Number format.
        batch: Images per run.
        classes: Object classes of the detectors.
        seed: Random seed of the sample.
        on_progress: Called while building.

    Raises:
        UserError: another backend, or an unknown GPU, precision or capability.
    """
    from smnas.latency import engines

    return engines.build_engines(
        Path(folder),
        _covered(preset, arch, sample, seed),
        partial(on_progress, "detectors covered"),
        backend=backend.replace("-", "_"),
        gpu=device,
        capabilities=compute_capability,
        precision=precision,
        classes=classes,
        batch=batch,
        workers=workers,
    )


def _covered(
    preset: str | None, arch: "Sequence[Architecture | str]", sample: int | None, seed: int
) -> list[Architecture]:
    from smnas.latency.profiling import structures_of

    space = load_space(preset or "nano")
    return [architecture_of(one) for one in arch] or structures_of(space, sample, seed)
