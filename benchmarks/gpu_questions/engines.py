"""Does the engine of a detector trained on the device find what the detector finds, how fast, and with what AP?"""

import statistics
import time
from typing import Any

import numpy as np
import torch

from gpu_questions.record import Answer, Setting, one_line
from gpu_questions.trained import coco_folder, run_folder
from profiler.errors import BackendUnavailableError, UserError
from smnas.deploy.accuracy import evaluate_model
from smnas.deploy.agreement import compare_detections
from smnas.deploy.export import canvases, export_detector
from smnas.deploy.runtime import EagerDetector, EngineDetector, Model, OnnxDetector
from smnas.training.checkpoint import CHECKPOINT_FILE

_PICTURES = 32
_ROUNDS = 9
_RUNS = 50


def ask(setting: Setting, answer: Answer) -> str:
    """An engine in fp32 and one in fp16, beside eager PyTorch and ONNX Runtime's CUDA provider.

    Raises:
        UserError: there is no checkpoint.
        BackendUnavailableError: there is no GPU, or TensorRT-RTX is not installed.
    """
    if setting.device.kind != "cuda":
        raise BackendUnavailableError("an engine needs a GPU, but the device is the CPU")
    checkpoint = run_folder(setting) / CHECKPOINT_FILE
    if not checkpoint.is_file():
        raise UserError("a detector trained on the device is needed, but the question trained_ap left none")
    val = coco_folder(setting).split("val")
    pictures = [val.image(index) for index in range(min(len(val), 8 if setting.quick else _PICTURES))]
    models: dict[str, Model] = {"eager": EagerDetector(checkpoint, device=setting.place)}
    file = export_detector(checkpoint, setting.scratch / "engines.onnx", verify_images=pictures)
    models["onnxruntime"] = OnnxDetector(file.path)
    for precision in ("fp32", "fp16"):
        out = setting.scratch / f"{precision}.engine"
        try:
            report = export_detector(
                checkpoint, out, file_format="tensorrt-rtx", precision=precision, verify_images=pictures
            )
            models[f"engine {precision}"] = EngineDetector(out)
            answer.add("engines", {"precision": precision, **(vars(report.manifest) if report.manifest else {})})
        except Exception as error:  # noqa: BLE001 - an engine that does not run is its own answer
            answer.add("engines", {"precision": precision, "failed": one_line(error)})
    images = canvases(pictures, *models["eager"].input_size)
    reference = models["eager"](images)
    texts = []
    for name, model in models.items():
        agreement = compare_detections(reference, model(images))
        ap = evaluate_model(model, val).ap
        answer.add("models", {"model": name, "ap": ap, **vars(agreement), "holds": agreement.holds})
        texts.append(f"{name} AP {ap:.3f}, {agreement.differing} of {agreement.compared} differ")
    rounds = _take_turns(models, images[:1], 2 if setting.quick else _ROUNDS)
    answer.put(rounds_ms=rounds)
    base = rounds["eager"]
    for name in models:
        ratio = statistics.median(a / b for a, b in zip(base, rounds[name], strict=True))
        texts.append(f"{name} {ratio:.2f} times eager's speed")
    return "; ".join(texts)


def _take_turns(models: dict[str, Model], image: Any, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of one picture from host memory to detections in host memory, in turns and in random order."""
    rng = np.random.default_rng(0)
    names = list(models)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for index in rng.permutation(len(names)).tolist():
            model = models[names[index]]
            model(image)
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(_RUNS):
                model(image)
            found[names[index]].append((time.perf_counter() - began) / _RUNS * 1e3)
    return found
