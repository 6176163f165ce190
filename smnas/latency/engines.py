"""``smnas profile --build-engines``: TensorRT-RTX engines of detectors' blocks, for GPUs that this machine lacks."""

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
    """Build what the folder does not hold yet; what that came to.

    Args:
        folder: of engines and manifests.
        architectures: whose distinct blocks are built.
        on_progress: called with detectors done, their number, and the last engine.
        backend: must be the one that builds ahead.
        gpu: whose capability is meant where none is given; all capabilities for ``local``.
        capabilities: such as ``8.9``.
        precision: of the engines.
        classes: of the detectors.
        batch: images a run.
        workers: processes that build.

    Raises:
        UserError: another backend, a GPU, precision or capability that is unknown.
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
    """Every distinct block of these detectors once, with random weights that its key decides.

    Args:
        architectures: whose blocks they are.
        classes: of the detectors.
        batch: images a run.
        at: called with how many detectors are read.
    """
    seen: set[str] = set()
    for number, architecture in enumerate(architectures):
        at(number)
        if {workload.key for workload in detector_workloads(architecture, classes, batch)} <= seen:
            continue  # read on meta, where it costs no weights
        for workload in inference_workloads(deployable(build_detector(architecture, classes)), batch):
            if workload.key not in seen:
                seen.add(workload.key)
                _draw_weights(workload)
                yield workload
    at(len(architectures))


def _draw_weights(workload: Workload) -> None:
    """Weights that the key alone decides: an engine is found again whichever detector the block comes from."""
    seed = int.from_bytes(hashlib.sha256(workload.key.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in workload.module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.0, generator=generator)
