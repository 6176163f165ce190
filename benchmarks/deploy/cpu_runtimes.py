"""Which runtime is the fastest on a CPU for each detector, and do both find what PyTorch finds?

Every checkpoint's ONNX file in ONNX Runtime and in OpenVINO: what they find on all images of a data set against eager
PyTorch, AP in each, and the processor time of one image, one thread, in turns. ``--quick`` is for trying it out: two
rounds, and nothing is kept.

    python -m benchmarks.training.overfit --data ../shared/data/aquarium-mini --out runs/overfit
    python -m benchmarks.deploy.cpu_runtimes --data ../shared/data/aquarium-mini runs/overfit/*/checkpoint.pt
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.turns import interval, processor_ms, ratios
from benchmarks.deploy.exported_precision import CALIBRATED, one_by_one, replayed
from profiler.backends import get_backend
from smnas.data.coco import CocoFolder, DetectionDataset
from smnas.deploy.agreement import compare_detections
from smnas.deploy.export import canvases, export_detector
from smnas.evaluation.predict import evaluate
from smnas.inference.runtime import RUNTIMES, EagerDetector, load_model
from smnas.inference.signature import INPUT_NAME

_FIRST, _SECOND, *_ = RUNTIMES


def compare_runtimes(checkpoint: Path, splits: list[DetectionDataset], precision: str, rounds: int) -> dict[str, Any]:
    """One checkpoint's file in every runtime, on the images of both splits; AP is of the first."""
    eager = EagerDetector(checkpoint)
    originals = [split.image(index) for split in splits for index in range(len(split))]
    images = canvases(originals, *eager.input_size)
    expected = one_by_one(eager, images)
    row: dict[str, Any] = {"architecture": eager.metadata.architecture, "images": len(images)}
    with tempfile.TemporaryDirectory(prefix="smnas-runtimes-") as folder:
        file = Path(folder) / "model.onnx"
        export_detector(
            checkpoint,
            file,
            precision=precision,
            verify_images=originals[:8],
            calibration_images=originals[-CALIBRATED:] if precision == "int8" else (),
        )
        content = file.read_bytes()
        sessions: dict[str, Any] = {"eager": lambda: eager(images[:1])}
        for name in RUNTIMES:
            found = one_by_one(load_model(file, runtime=name, threads=1), images)
            agreement = compare_detections(expected, found, rounded=precision == "int8")
            metrics = evaluate(replayed(found), splits[0], *eager.input_size, 1)
            row[name] = {**vars(agreement), "holds": agreement.holds, "ap": metrics.ap}
            backend: Any = get_backend(name)
            sessions[name] = backend.load(content, {INPUT_NAME: images[:1]}, precision)
            row[name]["terms"] = sessions[name].describe()
    row["processor_ms"] = times = processor_ms(sessions, rounds)
    medians = {name: statistics.median(found) for name, found in times.items()}
    row["fastest"] = min(medians, key=lambda name: medians[name])
    row["openvino_to_onnxruntime"] = interval(ratios(times[_SECOND], times[_FIRST]))
    print(row["architecture"], {name: f"{ms:.2f} ms" for name, ms in medians.items()}, row["fastest"])
    for name in RUNTIMES:
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
        found = {"threads": 1, "detectors": rows}
        keep_answer("cpu-runtimes", __doc__, found, backend="mixed", precision=args.precision)


if __name__ == "__main__":
    main()
