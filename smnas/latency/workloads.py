"""Workloads of a detector for the profiler, derived from its steps."""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor, nn

from profiler.work import Work
from profiler.workload import TensorSpec, Workload
from smnas.models.build import build_detector, deployable
from smnas.models.detector import Detector
from smnas.models.layers import NormKind
from smnas.space.architecture import Architecture

__all__ = ["detector_workloads", "end_to_end_workload", "fresh_detector", "inference_workloads", "work_of"]

_WEIGHTS_SEED = 0
_WORKS: dict[str, Work] = {}


def inference_workloads(detector: Detector, batch: int = 1) -> tuple[Workload, ...]:
    """The steps of a deployable detector's inference path on any device, each with its input shapes."""
    shadow = _on_meta(detector)
    width, height = detector.input_size
    values: dict[str, Tensor] = {"images": torch.empty(batch, 3, height, width, dtype=torch.uint8, device="meta")}
    workloads = []
    with torch.inference_mode():
        for step, shadow_step in zip(detector.steps, shadow.steps, strict=True):
            inputs = tuple(values[name] for name in step.inputs)
            specs = tuple(
                _spec(name, value, detector.input_size) for name, value in zip(step.inputs, inputs, strict=True)
            )
            workloads.append(Workload(step.name, _key(step.module, specs), step.module, specs))
            result = shadow_step.module(*inputs)
            values.update(zip(step.outputs, (result,) if isinstance(result, Tensor) else result, strict=True))
    return tuple(workloads)


def detector_workloads(
    architecture: Architecture,
    num_classes: int,
    batch: int = 1,
    *,
    norm: NormKind = "gn-ws",
    device: torch.device | str = "meta",
) -> tuple[Workload, ...]:
    """Workloads of an architecture with fresh weights; on ``meta`` they have shapes, keys and FLOPs but do not run."""
    if str(device) == "meta":
        return _meta_workloads(architecture, num_classes, batch, norm)
    return inference_workloads(deployable(build_detector(architecture, num_classes, norm=norm, device=device)), batch)


@lru_cache(maxsize=64)  # a candidate's keys, size and missing blocks are asked for one after the other
def _meta_workloads(architecture: Architecture, num_classes: int, batch: int, norm: NormKind) -> tuple[Workload, ...]:
    return inference_workloads(deployable(build_detector(architecture, num_classes, norm=norm, device="meta")), batch)


def work_of(block: Workload) -> Work:
    """Count a block's work, once a process: detectors share blocks, and counting takes most of a proposal's time."""
    if block.key not in _WORKS:
        _WORKS[block.key] = Work.of(block)
    return _WORKS[block.key]


def fresh_detector(architecture: Architecture, num_classes: int, norm: NormKind = "gn-ws") -> Detector:
    """A deployable detector on the CPU with the same random weights at every call; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_WEIGHTS_SEED)
        return deployable(build_detector(architecture, num_classes, norm=norm))


def end_to_end_workload(detector: Detector, batch: int = 1) -> Workload:
    """The end-to-end inference path, images to detections, as one workload."""
    width, height = detector.input_size
    specs = (TensorSpec((batch, 3, height, width), "uint8"),)
    options = detector.options
    key = f"{detector.architecture}|classes={detector.num_classes}|{options.norm}|{options.stem}|batch={batch}"
    return Workload("detector", key, detector, specs)


def _on_meta(detector: Detector) -> Detector:
    """The same detector on the ``meta`` device, which computes shapes only."""
    if next(detector.parameters()).is_meta:
        return detector
    options = detector.options
    shadow = build_detector(
        detector.architecture, detector.num_classes, norm=options.norm, stem=options.stem, device="meta"
    )
    return deployable(shadow)


def _spec(name: str, value: Tensor, size: tuple[int, int]) -> TensorSpec:
    shape = tuple(value.shape)
    if name == "images":
        return TensorSpec(shape, "uint8")
    if name.startswith("boxes"):
        return TensorSpec(shape, low=0.0, high=float(min(size)), draw="boxes")
    return TensorSpec(shape)


def _key(module: nn.Module, specs: tuple[TensorSpec, ...]) -> str:
    """Class, digest of the module's ``repr`` (layers, channels, strides, settings), and input shapes."""
    digest = hashlib.sha256(repr(module).encode()).hexdigest()[:12]
    shapes = ",".join("x".join(map(str, spec.shape)) for spec in specs)
    return f"{type(module).__name__}-{digest}|{shapes}"
