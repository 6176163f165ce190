"""Does the engine of a detector trained on the device find what the detector finds, how fast, and with what AP?"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.gpu_question import Answer, Setting
from benchmarks.common.machine import one_line
from benchmarks.common.turns import ratios, take_turns
from benchmarks.training.trained import coco_folder, originals_of, trained_checkpoint
from profiler.errors import BackendUnavailableError
from smnas.deploy.accuracy import evaluate_model
from smnas.deploy.agreement import compare_detections
from smnas.deploy.export import canvases, export_detector
from smnas.inference.runtime import EagerDetector, EngineDetector, Model, OnnxDetector

_ROUNDS = 9
_RUNS = 50
_BATCH = 8


def run(setting: Setting, answer: Answer) -> str:
    """Engines in fp32, fp16 and int8, and one of eight images, beside eager and ONNX Runtime's CUDA provider.

    Eager PyTorch and the engine in fp16 run as CUDA graphs too.

    Raises:
        UserError: there is no checkpoint.
        BackendUnavailableError: there is no GPU, or TensorRT-RTX is not installed.
    """
    if setting.device.kind != "cuda":
        raise BackendUnavailableError("an engine needs a GPU, but the device is the CPU")
    checkpoint = trained_checkpoint(setting)
    folder = coco_folder(setting)
    val = folder.split("val")
    originals = originals_of(val, setting)
    calibration = originals_of(folder.split("train"), setting)
    models: dict[str, Model] = {"eager": EagerDetector(checkpoint, device=setting.place)}
    file = export_detector(checkpoint, setting.scratch / "engines.onnx", verify_images=originals)
    models["onnxruntime"] = OnnxDetector(file.path)
    for precision, batch in (("fp32", 1), ("fp16", 1), ("int8", 1), ("fp16", _BATCH)):
        out = setting.scratch / f"{precision}-{batch}.engine"
        row: dict[str, Any] = {"precision": precision, "batch": batch}
        try:
            report = export_detector(
                checkpoint,
                out,
                file_format="tensorrt-rtx",
                precision=precision,
                batch=batch,
                verify_images=originals,
                calibration_images=calibration if precision == "int8" else (),
            )
            models[f"engine {precision}" + (f" of {batch}" if batch > 1 else "")] = EngineDetector(out)
            answer.add("engines", {**row, **(vars(report.manifest) if report.manifest else {})})
        except Exception as error:  # noqa: BLE001 - an engine that does not run is its own answer
            answer.add("engines", {**row, "failed": one_line(error)})
    images = canvases(originals, *models["eager"].input_size)
    graphed: dict[str, Callable[[], Model]] = {
        "eager, CUDA graphs": lambda: EagerDetector(checkpoint, device=setting.place, cuda_graph=True),
        "engine fp16, CUDA graph": lambda: EngineDetector(setting.scratch / "fp16-1.engine", cuda_graph=True),
    }
    for name, load in graphed.items():
        try:
            model = load()
            model(images[:1])  # records
            models[name] = model
        except Exception as error:  # noqa: BLE001 - what can not be recorded is its own answer
            answer.add("cuda_graphs", {"model": name, "failed": one_line(error)})
    reference = models["eager"](images)
    texts = []
    for name, model in models.items():
        agreement = compare_detections(reference, model(images))
        ap = evaluate_model(model, val).ap
        answer.add("models", {"model": name, "ap": ap, **vars(agreement), "holds": agreement.holds})
        texts.append(f"{name} AP {ap:.3f}, {agreement.differing} of {agreement.compared} differ")
    count = 2 if setting.quick else _ROUNDS
    rounds = take_turns({name: partial(_call_ms, model, images[:1]) for name, model in models.items()}, count)
    answer.put(rounds_ms=rounds)
    of_batch = {name: partial(_call_ms, model, images[:_BATCH]) for name, model in models.items()}
    answer.put(rounds_ms_of_a_batch=take_turns(of_batch, count))
    base = rounds["eager"]
    for name in models:
        ratio = statistics.median(ratios(base, rounds[name]))
        texts.append(f"{name} {ratio:.2f} times eager's speed")
    return "; ".join(texts)


def _call_ms(model: Model, images: NDArray[np.uint8]) -> float:
    """Milliseconds of a call from host memory to detections in host memory."""
    model(images)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(_RUNS):
        model(images)
    return (time.perf_counter() - began) / _RUNS * 1e3
