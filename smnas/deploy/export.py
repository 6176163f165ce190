"""A trained checkpoint to one verified file: an ONNX graph, a LiteRT model or a GPU's engine."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from kernels.onnx_ops import Operators
from profiler.atomic import require_room, write_atomic
from profiler.engines.tensorrt import build_engine, compute_capabilities, import_tensorrt, needs_convolutions
from profiler.errors import BackendUnavailableError, UserError
from profiler.graphs.litert import import_litert
from profiler.graphs.matmuls import matmuls_as_convolutions
from profiler.graphs.quantized_onnx import float_layers
from smnas import __version__
from smnas.data.coco import DetectionDataset
from smnas.data.letterbox import letterbox
from smnas.data.scene import draw_scene, render
from smnas.deploy.accuracy import DEFAULT_MAX_AP_DROP, Accuracy, AccuracyLossError, measure_accuracy, require_categories
from smnas.deploy.agreement import Agreement, compare_detections
from smnas.deploy.graph import GRAPH_PRECISIONS, detector_graph, in_precision, litert_graph
from smnas.evaluation.predict import DetectionArrays
from smnas.inference.engine_file import EngineManifest, write_engine
from smnas.inference.metadata import ModelMetadata
from smnas.inference.runtime import RUNTIMES, EagerDetector, Model, OnnxDetector, load_model
from smnas.inference.runtime_litert import with_metadata
from smnas.models.precision import fragile_modules
from smnas.training.checkpoint import load_detector_checkpoint

__all__ = ["FORMATS", "IMAGES_CALIBRATED", "ExportMismatchError", "ExportReport", "canvases", "export_detector"]

IMAGES_CALIBRATED = 64
"""Default number of training images for the activation ranges of an ``int8`` graph."""

_GENERATED_IMAGES = 8
_VERSIONED = ("torch", "torchvision", "onnx", "onnxscript")


class FileFormat(NamedTuple):
    """Format of an export.

    Attributes:
        backend: Module that builds the engine; empty for a graph.
    """

    suffix: str
    operators: Operators
    backend: str


FORMATS: dict[str, FileFormat] = {
    "onnx": FileFormat(".onnx", "native", ""),
    "litert": FileFormat(".tflite", "native", ""),
    "tensorrt-rtx": FileFormat(".engine", "plain", "tensorrt_rtx"),
    "tensorrt": FileFormat(".engine", "plain", "tensorrt"),
}
"""Formats by user-facing name."""


class ExportMismatchError(RuntimeError):
    """The exported file detects other objects than the checkpoint: never the user's mistake."""


@dataclass(frozen=True)
class ExportReport:
    """A finished export.

    Attributes:
        agreement: Of its float32 graph in the runtime with the checkpoint in PyTorch.
        rounding: The same for the graph in its precision; ``None`` in float32, and where it does not run here.
        accuracy: AP of the graph in its precision and of the checkpoint; ``None`` without annotated images.
        notes: Checks that were impossible here.
    """

    path: Path
    size_bytes: int
    metadata: ModelMetadata
    agreement: Agreement
    rounding: Agreement | None = None
    accuracy: Accuracy | None = None
    manifest: EngineManifest | None = None
    notes: tuple[str, ...] = field(default=())


def export_detector(
    checkpoint: Path,
    out: Path,
    *,
    file_format: str = "onnx",
    runtime: str | None = None,
    precision: str = "fp32",
    batch: int = 1,
    verify_images: Sequence[NDArray[np.uint8]] = (),
    metrics: Mapping[str, float] | None = None,
    calibration_images: Sequence[NDArray[np.uint8]] = (),
    dataset: DetectionDataset | None = None,
    max_ap_drop: float = DEFAULT_MAX_AP_DROP,
    capabilities: Sequence[str] = (),
) -> ExportReport:
    """Export a checkpoint to one file and verify that it detects the same objects.

    The graph maps ``images`` ``uint8`` ``(batch, 3, H, W)`` RGB to ``num``, ``boxes``, ``scores`` and ``labels`` in
    canvas pixels. Two checks come before the file appears under its name. The float32 graph, in ``runtime`` on a CPU,
    must agree with PyTorch, run on one image at a time: every detection with a score above 0.05 has a partner with an
    IoU above 0.999 and a score within 0.001, up to ties (:attr:`~smnas.deploy.agreement.Agreement.holds`). With a
    ``dataset``, AP of the graph in its precision may be at most ``max_ap_drop`` below the checkpoint's. An engine is
    built from that same graph.

    Args:
        checkpoint: Written by training.
        out: The file to write, with its format's suffix; an older one is replaced.
        file_format: One of ``FORMATS``.
        runtime: One of :data:`smnas.inference.runtime.RUNTIMES`, in which the graph is checked; by default the first
            that runs such a file. The file is the same.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``; boxes, scores and coordinates are always float32.
        batch: Images per run.
        verify_images: Images ``(H, W, 3)`` ``uint8`` RGB of any size to compare on, ideally like the training images;
            generated shapes when empty.
        metrics: COCO numbers for the file's metadata; by default those measured, or the checkpoint's.
        calibration_images: For the activation ranges of ``int8``, ideally training images.
        dataset: Annotated images to measure AP on.
        max_ap_drop: Largest loss of AP, in 0..1, against the checkpoint.
        capabilities: Compute capabilities that a TensorRT-RTX engine must run on, such as ``8.9``; by default the local
            GPU's.

    Raises:
        UserError: A bad checkpoint, file name, format, precision, batch or capability, or a check impossible here.
        BackendUnavailableError: The builder's module, or the GPU that it needs, is missing.
        ExportError: The detector has no ONNX form.
        EngineBuildError: The engine could not be built.
        ExportMismatchError: The file detects other objects.
        AccuracyLossError: The file loses more AP than ``max_ap_drop``.
    """
    kind = _require_format(file_format, out)
    targets = _require_target(kind, capabilities)
    _require_precision(precision, kind, calibration_images, dataset)
    runtime = _require_runtime(runtime, file_format, kind)
    if batch < 1:
        raise UserError(f"`batch >= 1` must hold, but got batch={batch}")
    litert = kind.suffix == RUNTIMES["litert"]
    if litert:
        import_litert()  # before the minutes of conversion
    detector, info = load_detector_checkpoint(checkpoint)
    require_room(out.parent, "exported files")
    width, height = detector.input_size
    versions = {"smnas": __version__} | {name: version(name) for name in _VERSIONED + ("litert-torch",) * litert}
    metadata = ModelMetadata.of_checkpoint(
        info, detector.input_size, precision=precision, batch=batch, versions=versions, metrics=metrics
    )
    reference = EagerDetector(checkpoint)
    if dataset is not None:
        require_categories(reference, dataset)
    images = canvases(verify_images or _generated_images(max(_GENERATED_IMAGES, batch), width, height), width, height)
    expected = _one_by_one(reference, images)

    graph: Any = litert_graph(detector, batch) if litert else detector_graph(detector, kind.operators, batch)
    with _unverified(out, graph, metadata, runtime) as file:
        agreement = compare_detections(expected, file(images))
    if not agreement.holds:
        raise ExportMismatchError(f"the exported file must find what the checkpoint finds, but got {agreement}")

    rounding, accuracy, notes = None, None, []
    if not info.complete:
        notes.append(f"the training is not finished: epoch {info.epoch} of {info.end_epoch}")
    if precision != "fp32":
        if any(needs_convolutions(precision, target) for target in targets):
            graph = matmuls_as_convolutions(graph)  # before quantisation turns weights into computed tensors
        calibration = canvases(calibration_images, width, height) if calibration_images else None
        kept = fragile_modules(detector) + (float_layers(detector) if precision == "int8" else ())
        graph = in_precision(graph, precision, kept, calibration=calibration, symmetric=bool(kind.backend))
    if precision == "bf16":
        notes.append("bf16 was not run: ONNX Runtime has no bfloat16 convolution on a CPU")
    elif precision != "fp32" or dataset is not None:
        with _unverified(out, graph, metadata, runtime) as file:
            if precision != "fp32":
                rounding = compare_detections(expected, file(images), rounded=True)
            if dataset is not None:
                accuracy, measured = measure_accuracy(reference, file, dataset)
                if not accuracy.drop <= max_ap_drop:  # a NaN AP proves nothing
                    raise AccuracyLossError(f"an export may lose {max_ap_drop:g} AP at most, but got {accuracy}")
                metadata = metadata.with_metrics(metrics or measured.as_dict())
    if precision != "fp32" and accuracy is None:
        notes.append(f"what {precision} costs in AP was not measured: no --data")
    described = _described(graph, metadata)
    if not kind.backend:
        write_atomic(out, described)
        return ExportReport(out, out.stat().st_size, metadata, agreement, rounding, accuracy, None, tuple(notes))
    manifest = _write_engine(out, described, metadata, kind, targets)
    notes.append("the engine itself was not run; figures are of the graph that it was built from, in ONNX Runtime")
    return ExportReport(out, out.stat().st_size, metadata, agreement, rounding, accuracy, manifest, tuple(notes))


def canvases(images: Sequence[NDArray[np.uint8]], width: int, height: int) -> NDArray[np.uint8]:
    """Letterbox images ``(H, W, 3)`` of any size into one batch ``(B, 3, height, width)``."""
    if not images:
        raise ValueError("at least one image is needed, but got none")
    batch = np.stack([letterbox(image, width, height)[0] for image in images])
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))


def _require_format(name: str, out: Path) -> FileFormat:
    if name not in FORMATS:
        raise UserError(f"a format is one of {', '.join(FORMATS)}, but got {name!r}")
    kind = FORMATS[name]
    if out.suffix.lower() != kind.suffix:
        raise UserError(f"an exported {name} file ends in {kind.suffix}, but got {out.name}")
    if out.is_dir():
        raise UserError(f"an exported file can not replace a folder, but got {out}")
    return kind


def _require_target(kind: FileFormat, capabilities: Sequence[str]) -> tuple[str, ...]:
    if kind.backend != "tensorrt_rtx" and capabilities:
        raise UserError(
            f"compute capabilities are for --format tensorrt-rtx, but got {', '.join(capabilities)}; "
            "ordinary TensorRT builds for the GPU that it runs on"
        )
    if not kind.backend:
        return ()
    here = ".".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else ""
    if kind.backend == "tensorrt" and not here:
        raise BackendUnavailableError(
            "TensorRT builds an engine on the GPU that it is for, but PyTorch finds no GPU here: "
            "--format tensorrt-rtx builds without one"
        )
    known = compute_capabilities(import_tensorrt(kind.backend))
    if kind.backend == "tensorrt":
        return (here,)
    wanted = tuple(dict.fromkeys(capabilities)) or ((here,) if here else ())
    unknown = [one for one in wanted if one not in known]
    if not wanted or unknown:
        raise UserError(
            f"--compute-capability is one or more of {', '.join(known)}, but got "
            f"{', '.join(unknown) or 'none, and there is no GPU here to take it from'}"
        )
    return wanted


def _require_runtime(runtime: str | None, file_format: str, kind: FileFormat) -> str:
    first, *others = RUNTIMES if kind.backend else (name for name, runs in RUNTIMES.items() if runs == kind.suffix)
    if kind.backend and runtime not in (None, first):
        raise UserError(f"the graph of a {file_format} engine is checked in {first} alone, but got {runtime!r}")
    if runtime not in (None, first, *others):
        raise UserError(f"the runtime of {file_format} files is {' or '.join([first, *others])}, but got {runtime!r}")
    return runtime or first


def _require_precision(
    precision: str, kind: FileFormat, calibration: Sequence[NDArray[np.uint8]], dataset: DetectionDataset | None
) -> None:
    if precision not in GRAPH_PRECISIONS:
        raise UserError(f"a precision is one of {', '.join(GRAPH_PRECISIONS)}, but got {precision!r}")
    if precision != "fp32" and kind.suffix == RUNTIMES["litert"]:
        raise UserError(f"a litert file is fp32, but got {precision!r}")
    if precision == "int8" and not calibration:
        raise UserError("int8 needs images to calibrate on (--data), but got none")
    if precision == "bf16" and (not kind.backend or dataset is not None):
        raise UserError(
            "bf16 is for engines and without --data, but got "
            + ("--data" if kind.backend else "an ONNX file")
            + ": ONNX Runtime has no bfloat16 convolution on a CPU, so AP could not be measured"
        )


def _one_by_one(model: EagerDetector, images: NDArray[np.uint8]) -> DetectionArrays:
    runs = [model(images[row : row + 1]) for row in range(len(images))]
    return DetectionArrays(*(np.concatenate(arrays) for arrays in zip(*runs, strict=True)))


def _described(graph: onnx.ModelProto | bytes, metadata: ModelMetadata) -> bytes:
    """Return a graph's bytes with its metadata; the same graph gives the same bytes."""
    if isinstance(graph, bytes):
        return with_metadata(graph, metadata)
    described = onnx.ModelProto()
    described.CopyFrom(graph)
    del described.metadata_props[:]
    for key, value in sorted(metadata.to_properties().items()):
        described.metadata_props.add(key=key, value=value)
    content: bytes = described.SerializeToString(deterministic=True)
    return content


@contextmanager
def _unverified(out: Path, graph: onnx.ModelProto | bytes, metadata: ModelMetadata, runtime: str) -> Iterator[Model]:
    """Run the graph on a CPU, from a temporary file."""
    path = out.with_name(f".{out.stem}.unverified{RUNTIMES[runtime]}")
    try:
        write_atomic(path, _described(graph, metadata))
        if runtime == "onnxruntime":
            yield OnnxDetector(path, providers=("CPUExecutionProvider",))
        else:
            yield load_model(path, runtime=runtime)
    finally:
        path.unlink(missing_ok=True)


def _write_engine(
    out: Path, graph: bytes, metadata: ModelMetadata, kind: FileFormat, targets: tuple[str, ...]
) -> EngineManifest:
    trt = import_tensorrt(kind.backend)
    ahead = targets if kind.backend == "tensorrt_rtx" else ()
    built = build_engine(trt, graph, metadata.precision, ahead)
    manifest = EngineManifest(
        metadata,
        kind.backend,
        str(trt.__version__),
        targets,
        hashlib.sha256(graph).hexdigest(),
        hashlib.sha256(built.content).hexdigest(),
        len(built.content),
        built.facts(),
    )
    write_engine(out, built.content, manifest)
    return manifest


def _generated_images(count: int, width: int, height: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [render(draw_scene(width, height, rng), rng)[0] for _ in range(count)]
