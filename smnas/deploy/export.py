"""A trained checkpoint to one ONNX file that is known to find the same objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from profiler.errors import UserError
from profiler.export import export_onnx
from smnas import __version__
from smnas.data.letterbox import letterbox
from smnas.data.scene import draw_scene, render
from smnas.deploy.agreement import Agreement, compare_detections
from smnas.deploy.metadata import ModelMetadata
from smnas.deploy.runtime import INPUT_NAME, OUTPUT_NAMES, OnnxDetector
from smnas.evaluation.predict import DetectionArrays, eager_detect
from smnas.models.build import deployable
from smnas.training.checkpoint import load_detector_checkpoint

__all__ = ["ExportMismatchError", "ExportReport", "canvases", "export_detector"]

_GENERATED_PICTURES = 8
_LATER_PRECISIONS = ("fp16", "bf16", "int8")
_VERSIONED = ("torch", "torchvision", "onnx", "onnxscript")


class ExportMismatchError(RuntimeError):
    """The exported file finds other objects than the checkpoint: never the user's mistake."""


@dataclass(frozen=True)
class ExportReport:
    """A finished export.

    Attributes:
        path: The file.
        size_bytes: Its size.
        metadata: What the file says about itself.
        agreement: How far it is from the checkpoint run by PyTorch.
    """

    path: Path
    size_bytes: int
    metadata: ModelMetadata
    agreement: Agreement


def export_detector(
    checkpoint: Path,
    out: Path,
    *,
    precision: str = "fp32",
    verify_images: Sequence[NDArray[np.uint8]] = (),
    metrics: Mapping[str, float] | None = None,
) -> ExportReport:
    """Export a checkpoint to an ONNX file and prove that it finds the same objects.

    The graph takes ``images`` ``uint8`` ``(1, 3, H, W)`` RGB and gives ``num``, ``boxes``, ``scores`` and ``labels`` in
    pixels of the canvas. The file appears under its name only after ONNX Runtime, run on a CPU, gave the detections of
    PyTorch: every one with a score above 0.05 has a partner with an IoU above 0.999 and a score within 0.001, but for
    what ties leave to chance (:attr:`~smnas.deploy.agreement.Agreement.holds`).

    Args:
        checkpoint: What training wrote.
        out: The file to write, ending in ``.onnx``; an older one is replaced.
        precision: ``fp32``.
        verify_images: Pictures ``(H, W, 3)`` ``uint8`` RGB of any size to compare on, best of the kind that the
            detector was trained on. Generated shapes when empty.
        metrics: COCO numbers for the file's metadata; by default those that the checkpoint holds.

    Raises:
        UserError: A bad checkpoint, file name or precision.
        ExportError: The detector has no ONNX form.
        ExportMismatchError: The file finds other objects.
    """
    _require_precision(precision)
    if out.suffix.lower() != ".onnx":
        raise UserError(f"an exported file ends in .onnx, but got {out.name}")
    if out.is_dir():
        raise UserError(f"an exported file can not replace a folder, but got {out}")
    detector, info = load_detector_checkpoint(checkpoint)
    width, height = detector.input_size
    metadata = ModelMetadata.of_checkpoint(
        info,
        detector.input_size,
        precision=precision,
        versions={"smnas": __version__} | {name: version(name) for name in _VERSIONED},
        metrics=metrics,
    )
    unverified = out.with_name(f".{out.stem}.unverified.onnx")
    try:
        export_onnx(
            deployable(detector),
            (torch.zeros(1, 3, height, width, dtype=torch.uint8),),
            unverified,
            input_names=(INPUT_NAME,),
            output_names=OUTPUT_NAMES,
            metadata=metadata.to_properties(),
        )
        images = canvases(verify_images or _generated_pictures(width, height), width, height)
        exported = OnnxDetector(unverified, providers=("CPUExecutionProvider",))
        eager = eager_detect(detector, "cpu")
        reference = [eager(images[row : row + 1]) for row in range(len(images))]
        agreement = compare_detections(
            DetectionArrays(*(np.concatenate(arrays) for arrays in zip(*reference, strict=True))), exported(images)
        )
        if not agreement.holds:
            raise ExportMismatchError(f"the exported file must find what the checkpoint finds, but got {agreement}")
        unverified.replace(out)
    finally:
        unverified.unlink(missing_ok=True)
    return ExportReport(out, out.stat().st_size, metadata, agreement)


def canvases(pictures: Sequence[NDArray[np.uint8]], width: int, height: int) -> NDArray[np.uint8]:
    """Pictures ``(H, W, 3)`` of any size as one batch ``(B, 3, height, width)`` of letterboxed canvases."""
    if not pictures:
        raise ValueError("at least one picture is needed, but got none")
    batch = np.stack([letterbox(picture, width, height)[0] for picture in pictures])
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))


def _require_precision(precision: str) -> None:
    if precision in _LATER_PRECISIONS:
        raise UserError(f"this version exports fp32 only: {precision} is not there yet")
    if precision != "fp32":
        raise UserError(f"the precision must be one of fp32, {', '.join(_LATER_PRECISIONS)}, but got {precision!r}")


def _generated_pictures(width: int, height: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [render(draw_scene(width, height, rng), rng)[0] for _ in range(_GENERATED_PICTURES)]
