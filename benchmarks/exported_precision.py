"""Does an exported file find what its checkpoint finds, and what does each precision cost in AP and time?

Of every checkpoint: the ONNX file in fp32, fp16 and int8, and TensorRT-RTX engines in fp16 and int8, each for four
compute capabilities, with AP on all pictures of a data set, how many detections differ from PyTorch's, and the
processor time in ONNX Runtime in turns. The figures of an engine are of its graph: nothing here needs a GPU. The
detectors of every head have learnt 16 of the 48 pictures by heart, so that there is an AP to lose.

    python benchmarks/overfit.py --data ../shared/data/aquarium-mini --out runs/overfit
    python benchmarks/exported_precision.py --data ../shared/data/aquarium-mini --out runs/exported \
        runs/overfit/*/checkpoint.pt        # --no-engines is several times as fast
"""

import argparse
import importlib
import json
import multiprocessing
import shutil
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from answers import keep_answer, processor_ms
from numpy.typing import NDArray

from profiler.backends import get_backend
from profiler.backends.onnxruntime import OnnxRuntimeSession
from smnas.data.coco import CocoFolder, DetectionDataset
from smnas.deploy.agreement import Agreement
from smnas.deploy.export import ExportReport, canvases, export_detector
from smnas.deploy.graph import (
    INPUT_NAME,
    OUTPUT_NAMES,
    detector_graph,
    fragile_modules,
    in_precision,
    prediction_layers,
)
from smnas.evaluation.predict import DetectionArrays, evaluate
from smnas.training.checkpoint import load_detector_checkpoint

CAPABILITIES = ("7.5", "8.6", "8.9", "12.0")
PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATED = 32
Pictures = Sequence[NDArray[np.uint8]]


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


def described(report: ExportReport) -> dict[str, Any]:
    """The figures of one export."""
    accuracy = report.accuracy
    found: dict[str, Any] = {"size_bytes": report.size_bytes, "fp32_graph": agreement(report.agreement)}
    if accuracy is not None:
        found |= {
            "ap": accuracy.ap,
            "ap50": accuracy.ap50,
            "checkpoint_ap": accuracy.reference_ap,
            "drop": accuracy.drop,
        }
    if report.rounding is not None:
        found["in_precision"] = agreement(report.rounding)
    if report.manifest is not None:
        found["engine"] = {"capabilities": report.manifest.compute_capabilities, **report.manifest.facts}
        found["backend"] = f"{report.manifest.backend} {report.manifest.backend_version}"
    return found


def agreement(found: Agreement) -> dict[str, float]:
    """As JSON."""
    return {**vars(found), "holds": found.holds}


def eight_bit_engine_graph(checkpoint: Path, val: DetectionDataset, calibration: Pictures) -> dict[str, float]:
    """AP of the graph that an int8 engine would be made of: with maps as TensorRT takes them."""
    detector, _ = load_detector_checkpoint(checkpoint)
    width, height = detector.input_size
    kept = fragile_modules(detector) + prediction_layers(detector)
    images = canvases(calibration, width, height)
    graph = in_precision(detector_graph(detector, "native"), "int8", kept, calibration=images, symmetric=True)
    session = importlib.import_module("onnxruntime").InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = evaluate(
        lambda canvas: DetectionArrays(*session.run(OUTPUT_NAMES, {INPUT_NAME: canvas})), val, width, height, 1
    )
    return {"ap": found.ap, "ap50": found.ap50}


def ask(checkpoint: Path, data: Path, out: Path, rounds: int, engines: bool) -> dict[str, Any]:
    """Every export of one checkpoint."""
    folder = CocoFolder(data)
    val, train = folder.split("val"), folder.split("train")
    pictures = [val.image(index) for index in range(len(val))]
    calibration = [train.image(index) for index in range(min(len(train), CALIBRATED))]
    row: dict[str, Any] = {}
    files = {}
    for name in (*PRECISIONS, *(("engine-fp16", "engine-int8") if engines else ())):
        precision = name.removeprefix("engine-")
        engine = name != precision
        path = out / f"{precision}.{'engine' if engine else 'onnx'}"
        report = export_detector(
            checkpoint,
            path,
            file_format="tensorrt-rtx" if engine else "onnx",
            precision=precision,
            verify_images=pictures,
            calibration_images=calibration if precision == "int8" else (),
            dataset=val,
            max_ap_drop=1.0,
            capabilities=CAPABILITIES if engine else (),
        )
        row |= {"architecture": report.metadata.architecture, "epochs": report.metadata.epochs}
        row[name] = described(report)
        print(row["architecture"], name, report.agreement, report.rounding, report.accuracy, sep="\n  ", flush=True)
        if not engine:
            files[name] = (path, canvases(pictures[:1], report.metadata.input_width, report.metadata.input_height))
    row["int8_graph_for_engines"] = eight_bit_engine_graph(checkpoint, val, calibration)
    print("  int8 for engines", row["int8_graph_for_engines"], flush=True)
    backend: Any = get_backend("onnxruntime")
    runtime = importlib.import_module("onnxruntime")
    sessions = {
        name: OnnxRuntimeSession(runtime, path.read_bytes(), {INPUT_NAME: canvas}, backend)
        for name, (path, canvas) in files.items()
    }
    row["processor_ms"] = processor_ms(sessions, rounds)
    medians = {name: statistics.median(found) for name, found in row["processor_ms"].items()}
    row["time_to_fp32"] = {name: medians[name] / medians["fp32"] for name in PRECISIONS[1:]}
    print(" ", row["time_to_fp32"], flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="COCO folder; both splits are evaluated")
    parser.add_argument("--out", type=Path, required=True, help="folder for the exported files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="checkpoints at a time")
    parser.add_argument("--no-engines", action="store_true", help="ONNX files only")
    asked = parser.parse_args()
    data = all_in_val(asked.data, asked.out / "data")
    val = CocoFolder(data).split("val")
    found: dict[str, Any] = {
        "pictures": len(val),
        "objects": sum(len(val.boxes(index)[0]) for index in range(len(val))),
        "workers": asked.workers,
        "detectors": [],
    }
    question = " ".join((__doc__ or "").split("\n\n")[0].split())
    with ProcessPoolExecutor(asked.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(ask, checkpoint, data, asked.out / str(number), asked.rounds, not asked.no_engines)
            for number, checkpoint in enumerate(asked.checkpoints)
        ]
        for job in jobs:
            found["detectors"].append(job.result())
            keep_answer("exported-precision", question, found, backend="onnxruntime", precision="mixed")


if __name__ == "__main__":
    main()
