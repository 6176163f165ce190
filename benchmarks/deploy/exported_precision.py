"""Does an exported file find what its checkpoint finds, and what does each precision cost in AP and time?

For every checkpoint: the graph that an ONNX file holds in fp32, fp16 and int8, and the one of int8 engines, with AP on
all images of a data set, how many detections differ from PyTorch's, and the processor time in ONNX Runtime in turns;
then TensorRT-RTX engines in fp16 and int8, each for four compute capabilities. The figures of an engine are of
its graph: nothing here needs a GPU. The detectors of every head are overfitted to 16 of the 48 images, so that
there is an AP to lose.

    python -m benchmarks.training.overfit --data ../shared/data/aquarium-mini --out runs/overfit
    python -m benchmarks.deploy.exported_precision --data ../shared/data/aquarium-mini --out runs/exported \
        runs/overfit/*/checkpoint.pt        # --no-engines is several times as fast
"""

import importlib
import json
import multiprocessing
import shutil
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.turns import processor_ms
from profiler.backends import get_backend
from profiler.backends.onnxruntime import OnnxRuntimeSession, session_options
from profiler.graphs.quantized_onnx import float_layers
from smnas.data.coco import CocoFolder
from smnas.deploy.agreement import compare_detections
from smnas.deploy.export import canvases, export_detector
from smnas.deploy.graph import detector_graph, in_precision
from smnas.evaluation.predict import DetectionArrays, evaluate
from smnas.inference.runtime import EagerDetector
from smnas.inference.signature import INPUT_NAME, OUTPUT_NAMES
from smnas.models.precision import fragile_modules
from smnas.training.checkpoint import load_detector_checkpoint

CAPABILITIES = ("7.5", "8.6", "8.9", "12.0")
CALIBRATED = 32


def all_in_val(source: Path, out: Path) -> Path:
    """A data set whose val split is both splits of ``source``."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "annotations").mkdir(parents=True)
    files = {split: source / "annotations" / f"instances_{split}.json" for split in ("train", "val")}
    documents = {split: json.loads(file.read_text()) for split, file in files.items()}
    for key in ("images", "annotations"):  # their ids are different ones
        documents["val"][key] = documents["train"][key] + documents["val"][key]
    for split, document in documents.items():
        (out / split).mkdir()
        (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    for split in ("train", "val"):
        for path in (source / split).glob("*.jpg"):
            (out / "val" / path.name).symlink_to(path.resolve())
            if split == "train":
                (out / "train" / path.name).symlink_to(path.resolve())
    return out


def replayed(found: DetectionArrays) -> Callable[[NDArray[np.uint8]], DetectionArrays]:
    """What was found on all images as a function of them one by one, in their order."""
    rows = iter(range(len(found.num)))

    def detect(canvas: NDArray[np.uint8]) -> DetectionArrays:
        row = next(rows)
        return DetectionArrays._make(array[row : row + len(canvas)] for array in found)

    return detect


def one_by_one(
    run: Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]], images: NDArray[np.uint8]
) -> DetectionArrays:
    """Detections of every image, in batches of one."""
    found = [run(images[row : row + 1]) for row in range(len(images))]
    return DetectionArrays._make(np.concatenate(arrays) for arrays in zip(*found, strict=True))


def run_session(session: Any, canvas: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
    found: Sequence[NDArray[Any]] = session.run(OUTPUT_NAMES, {INPUT_NAME: canvas})
    return found


def compare_graphs(checkpoint: Path, data: Path, out: Path, rounds: int, engines: bool) -> dict[str, Any]:
    """Every precision of one checkpoint, in the graphs that an export writes."""
    folder = CocoFolder(data)
    val, train = folder.split("val"), folder.split("train")
    originals = [val.image(index) for index in range(len(val))]
    calibrating = [train.image(index) for index in range(min(len(train), CALIBRATED))]
    detector, info = load_detector_checkpoint(checkpoint)
    size = detector.input_size
    images, calibration = canvases(originals, *size), canvases(calibrating, *size)

    def ap(found: DetectionArrays) -> dict[str, float]:
        metrics = evaluate(replayed(found), val, *size, 1)
        return {"ap": metrics.ap, "ap50": metrics.ap50}

    expected = one_by_one(EagerDetector(checkpoint), images)
    row: dict[str, Any] = {"architecture": info.architecture, "epochs": info.epoch, "checkpoint": ap(expected)}
    graph = detector_graph(detector, "native")
    fragile = fragile_modules(detector)
    sensitive = fragile + float_layers(detector)
    graphs = {
        "fp32": graph,
        "fp16": in_precision(graph, "fp16", fragile),
        "int8": in_precision(graph, "int8", sensitive, calibration=calibration),
        "int8 for engines": in_precision(graph, "int8", sensitive, calibration=calibration, symmetric=True),
    }
    backend: Any = get_backend("onnxruntime")
    runtime = importlib.import_module("onnxruntime")
    sessions = {}
    for name, one in graphs.items():
        content = one.SerializeToString()
        session = runtime.InferenceSession(content, session_options(runtime, 1), providers=["CPUExecutionProvider"])
        found = one_by_one(partial(run_session, session), images)
        agreement = compare_detections(expected, found)
        row[name] = {"size_bytes": len(content), **ap(found), **vars(agreement), "holds": agreement.holds}
        row[name]["drop"] = row["checkpoint"]["ap"] - row[name]["ap"]
        print(info.architecture, name, row[name], flush=True)
        if "engines" not in name:
            sessions[name] = OnnxRuntimeSession(runtime, content, {INPUT_NAME: images[:1]}, backend)
    row["processor_ms"] = processor_ms(sessions, rounds)
    medians = {name: statistics.median(found) for name, found in row["processor_ms"].items()}
    row["time_to_fp32"] = {name: medians[name] / medians["fp32"] for name in medians}
    print(" ", row["time_to_fp32"], flush=True)
    for precision in ("fp16", "int8") if engines else ():
        report = export_detector(
            checkpoint,
            out / f"{precision}.engine",
            file_format="tensorrt-rtx",
            precision=precision,
            verify_images=originals,
            calibration_images=calibrating if precision == "int8" else (),
            dataset=val,
            max_ap_drop=1.0,
            capabilities=CAPABILITIES,
        )
        row[f"engine {precision}"] = {
            "plain_fp32_graph": {**vars(report.agreement), "holds": report.agreement.holds},
            "size_bytes": report.size_bytes,
            **({} if report.accuracy is None else {"ap": report.accuracy.ap, "drop": report.accuracy.drop}),
            **({} if report.manifest is None else dict(report.manifest.facts)),
        }
        print(" ", row[f"engine {precision}"], flush=True)
    return row


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="COCO folder; both splits are evaluated")
    parser.add_argument("--out", type=Path, required=True, help="folder for the exported files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="checkpoints at a time")
    parser.add_argument("--no-engines", action="store_true", help="ONNX files only")
    args = parser.parse_args()
    data = all_in_val(args.data, args.out / "data")
    val = CocoFolder(data).split("val")
    found: dict[str, Any] = {
        "images": len(val),
        "objects": sum(len(val.boxes(index)[0]) for index in range(len(val))),
        "workers": args.workers,
        "detectors": [],
    }
    with ProcessPoolExecutor(args.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(compare_graphs, checkpoint, data, args.out / str(number), args.rounds, not args.no_engines)
            for number, checkpoint in enumerate(args.checkpoints)
        ]
        for job in jobs:
            found["detectors"].append(job.result())
            keep_answer("exported-precision-by-heart", __doc__, found, backend="onnxruntime", precision="mixed")


if __name__ == "__main__":
    main()
