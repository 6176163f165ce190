"""Which runtime is the fastest on a CPU for each detector, and do both find what PyTorch finds?

Every checkpoint's exported files in ONNX Runtime, OpenVINO and, where it is installed, LiteRT: what they find on all
images of a data set against eager PyTorch, AP in each, and the latency of one image at 1 and 2 threads, in turns.
Converting to LiteRT takes a minute; ``model.tflite`` beside the checkpoint is used if it is there. ``--quick`` is for
trying it out: two rounds, and nothing is kept.

    python -m benchmarks.training.overfit --data ../shared/data/aquarium-mini --out runs/overfit
    python -m benchmarks.deploy.cpu_runtimes --data ../shared/data/aquarium-mini runs/overfit/*/checkpoint.pt
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.deploy.exported_precision import CALIBRATED, one_by_one, replayed
from profiler.backends import get_backend
from smnas.data.coco import CocoFolder, DetectionDataset
from smnas.deploy.agreement import compare_detections
from smnas.deploy.export import canvases, export_detector
from smnas.deploy.latency import interleaved
from smnas.evaluation.predict import evaluate
from smnas.inference.runtime import EagerDetector, load_model
from smnas.inference.signature import INPUT_NAME

_THREADS = (1, 2)


def compare_runtimes(checkpoint: Path, splits: list[DetectionDataset], precision: str, rounds: int) -> dict[str, Any]:
    """One checkpoint's files in every runtime, on the images of both splits; AP is of the first."""
    eager = EagerDetector(checkpoint)
    originals = [split.image(index) for split in splits for index in range(len(split))]
    images = canvases(originals, *eager.input_size)
    expected = one_by_one(eager, images)
    row: dict[str, Any] = {"architecture": eager.metadata.architecture, "images": len(images)}
    sessions: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="smnas-runtimes-") as folder:
        onnx = Path(folder) / "model.onnx"
        calibration = originals[-CALIBRATED:] if precision == "int8" else ()
        export_detector(
            checkpoint, onnx, precision=precision, verify_images=originals[:8], calibration_images=calibration
        )
        files = {"onnxruntime": onnx, "openvino": onnx}
        if precision == "fp32" and find_spec("litert_torch"):
            files["litert"] = checkpoint.with_name("model.tflite")
            if not files["litert"].is_file():
                export_detector(checkpoint, files["litert"], file_format="litert", verify_images=originals[:8])
        for name, file in files.items():
            found = one_by_one(load_model(file, runtime=name, threads=1), images)
            agreement = compare_detections(expected, found, rounded=precision == "int8")
            metrics = evaluate(replayed(found), splits[0], *eager.input_size, 1)
            row[name] = {**vars(agreement), "holds": agreement.holds, "ap": metrics.ap, "terms": {}}
            for threads in _THREADS:
                backend: Any = get_backend(name, threads=threads)
                session = backend.load(file.read_bytes(), {INPUT_NAME: images[:1]}, precision)
                row[name]["terms"][threads] = session.describe()
                sessions[f"{name}, {threads}"] = session
    latencies = interleaved(sessions, rounds=rounds)
    row["latency"] = {name: vars(latency) for name, latency in latencies.items()}
    row["fastest"] = {}
    for threads in _THREADS:
        ms = {name: latencies[f"{name}, {threads}"].median_ms for name in files}
        row["fastest"][threads] = min(ms, key=lambda name: ms[name])
        print(row["architecture"], threads, "threads:", {name: f"{one:.2f} ms" for name, one in ms.items()})
    for name in files:
        print(f"  {name}: {row[name]['differing']} of {row[name]['compared']} differ, AP {row[name]['ap']:.4f}")
    return row


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="COCO folder; both splits are looked at")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two rounds; nothing is kept")
    args = parser.parse_args()
    splits = [CocoFolder(args.data).split(name) for name in ("val", "train")]
    rounds = 2 if args.quick else args.rounds
    rows = [compare_runtimes(checkpoint, splits, args.precision, rounds) for checkpoint in args.checkpoints]
    if not args.quick:
        found = {"threads": _THREADS, "detectors": rows}
        keep_answer("cpu-runtimes", __doc__, found, backend="mixed", precision=args.precision)


if __name__ == "__main__":
    main()
