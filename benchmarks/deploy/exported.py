"""Does the exported file of a detector trained on the GPU find what the detector finds there?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.common.gpu_question import Answer, Setting
from benchmarks.common.machine import one_line
from benchmarks.training.trained import coco_folder, originals_of, trained_checkpoint
from profiler.errors import UserError
from smnas.deploy.agreement import compare_detections
from smnas.deploy.export import canvases, export_detector
from smnas.evaluation.predict import DetectionArrays, eager_detect
from smnas.inference.runtime import OnnxDetector
from smnas.models.build import deployable
from smnas.training.checkpoint import load_detector_checkpoint


def run(setting: Setting, answer: Answer) -> str:
    """Export the checkpoint that the question before left, then compare file, CPU and device on validation images.

    Raises:
        UserError: there is no such checkpoint.
    """
    checkpoint = trained_checkpoint(setting)
    val = coco_folder(setting).split("val")
    originals = originals_of(val, setting)
    report = export_detector(checkpoint, setting.scratch / "exported.onnx", verify_images=originals)
    answer.put(size_bytes=report.size_bytes, eager_cpu_against_onnxruntime_cpu=vars(report.agreement))

    detector, info = load_detector_checkpoint(checkpoint)
    answer.put(architecture=info.architecture, epochs=info.epoch, images=len(originals))
    width, height = detector.input_size
    images = canvases(originals, width, height)
    folded = deployable(detector)

    def eager(place: torch.device, *, tf32: bool) -> DetectionArrays:
        with _tf32(tf32):
            return eager_detect(folded, place)(images)

    def exported(provider: str) -> DetectionArrays:
        model = OnnxDetector(report.path, providers=(provider,))
        if model.providers[0] != provider:
            raise UserError(f"the file was to run on {provider}, but got {model.providers[0]}")
        return model(images)

    reference = eager(setting.place, tf32=False)
    others: dict[str, Callable[[], DetectionArrays]] = {
        "onnxruntime, CPUExecutionProvider": lambda: exported("CPUExecutionProvider"),
    }
    if setting.device.kind == "cuda":
        others |= {
            "onnxruntime, CUDAExecutionProvider": lambda: exported("CUDAExecutionProvider"),
            "eager on the GPU, TF32 convolutions (torch's default)": lambda: eager(setting.place, tf32=True),
            "eager on the CPU": lambda: eager(torch.device("cpu"), tf32=False),
        }
    texts = []
    for name, run in others.items():
        row: dict[str, Any] = {"reference": f"eager on the {setting.device.kind}, float32", "other": name}
        try:
            agreement = compare_detections(reference, run())
        except Exception as error:  # noqa: BLE001 - a side that does not run is its own answer
            row["failed"] = one_line(error)
            texts.append(f"{name}: failed")
        else:
            row |= {**vars(agreement), "holds": agreement.holds}
            differing = f"{agreement.differing} of {agreement.compared} differ"
            texts.append(f"{name}: {differing if agreement.compared else 'no detections to compare'}")
        answer.add("agreements", row)
    return "; ".join(texts)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Let convolutions round their inputs to TF32, or not; matrix products never do by torch's default."""
    cudnn: Any = torch.backends.cudnn  # torch leaves it untyped
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32 = before
