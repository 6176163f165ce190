"""``smnas profile --build-engines``: TensorRT-RTX engines of detectors' blocks, built ahead of time for other GPUs."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from profiler.devices import gpu_sheets, named_sheet
from profiler.engines.ahead_of_time import build_ahead
from profiler.engines.store import EngineStore, Manifest
from profiler.engines.tensorrt import compute_capabilities, import_tensorrt
from profiler.errors import UserError
from profiler.workload import Workload
from smnas.latency.workloads import detector_workloads, inference_workloads
from smnas.models.build import build_detector, deployable
from smnas.space.architecture import Architecture

if TYPE_CHECKING:
    from smnas.latency.profiling import OnProgress

__all__ = ["build_engines", "real_workloads"]

_BACKEND = "tensorrt_rtx"


def build_engines(
    folder: Path,
    architectures: Sequence[Architecture],
    on_progress: "OnProgress",
    *,
    backend: str,
    gpu: str,
    capabilities: Sequence[str],
    precision: str,
    classes: int,
    batch: int,
    workers: int,
) -> dict[str, Any]:
    """Build the engines of these detectors' distinct blocks that the folder lacks; returns a summary.

    Without ``capabilities`` (such as ``8.9``), that of ``gpu`` is meant, or all of them for ``local``. ``batch`` is in
    images per run, ``workers`` is the number of building processes, and ``on_progress`` is called with detectors done,
    their number, and the last engine.

    Raises:
        UserError: a backend that does not build ahead of time, or an unknown GPU, precision or capability.
    """
    if backend != _BACKEND:
        raise UserError(f"--build-engines needs --backend {_BACKEND}, but got {backend}")
    sheet = named_sheet(gpu)
    if sheet is None and gpu != "local":
        raise UserError(f"--build-engines knows the data sheets of {', '.join(gpu_sheets())}, but got {gpu!r}")
    trt = import_tensorrt(backend)
    wanted = list(dict.fromkeys(capabilities))
    if not wanted:
        wanted = [sheet.compute_capability] if sheet is not None else list(compute_capabilities(trt))
    last = {"name": ""}

    def done(manifest: Manifest) -> None:
        last["name"] = f"{manifest.name} for {manifest.request.device}"

    def at(number: int) -> None:
        on_progress(number, len(architectures), last["name"])

    report = build_ahead(
        real_workloads(architectures, classes, batch, at),
        EngineStore(folder),
        wanted,
        backend=backend,
        precision=precision,
        workers=workers,
        on_done=done,
    )
    return {
        "folder": folder,
        "backend": backend,
        "backend_version": str(trt.__version__),
        "precision": precision,
        "compute_capabilities": wanted,
        "batch": batch,
        "classes": classes,
        "detectors": len(architectures),
        "built": report.built,
        "cached": report.cached,
        "failed": [
            {"name": one.name, "key": one.key, "compute_capability": one.request.device, "reason": one.reason}
            for one in report.failed
        ],
    }


def real_workloads(
    architectures: Sequence[Architecture], classes: int, batch: int, at: Callable[[int], None]
) -> Iterator[Workload]:
    """All distinct blocks of these detectors, with random weights determined by the key.

    ``at`` is called with the number of detectors read.
    """
    seen: set[str] = set()
    for number, architecture in enumerate(architectures):
        at(number)
        if {workload.key for workload in detector_workloads(architecture, classes, batch)} <= seen:
            continue  # on meta, without weights
        for workload in inference_workloads(deployable(build_detector(architecture, classes)), batch):
            if workload.key not in seen:
                seen.add(workload.key)
                _draw_weights(workload)
                yield workload
    at(len(architectures))


def _draw_weights(workload: Workload) -> None:
    """Weights determined by the key alone, so that an engine is found again whichever detector the block comes from."""
    seed = int.from_bytes(hashlib.sha256(workload.key.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in workload.module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.0, generator=generator)
