"""What does a batch bring in ONNX Runtime on a CPU, and what would an open batch axis cost?

For every checkpoint: the ONNX graph for 1, 4 and 8 images, and one whose first axis is open, run on the same batches.
Processor time of an image, one thread, in turns, and whether the open graph finds what the fixed ones do on real
images.

    python -m benchmarks.training.overfit --data ../shared/data/aquarium-mini --out runs/overfit
    python -m benchmarks.deploy.exported_batch --data ../shared/data/aquarium-mini runs/overfit/*/checkpoint.pt
"""

import importlib
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.turns import processor_ms
from profiler.backends import get_backend
from profiler.backends.onnxruntime import OnnxRuntimeSession
from profiler.graphs.export import ExportError, to_onnx
from smnas.data.coco import CocoFolder
from smnas.deploy.agreement import compare_detections
from smnas.deploy.export import canvases
from smnas.deploy.graph import detector_graph
from smnas.evaluation.predict import DetectionArrays
from smnas.inference.signature import INPUT_NAME, OUTPUT_NAMES
from smnas.models.build import deployable
from smnas.models.detector import Detector
from smnas.training.checkpoint import load_detector_checkpoint

BATCHES = (1, 4, 8)


def open_graph(detector: Detector) -> onnx.ModelProto:
    """As ``detector_graph``, for any number of images."""
    width, height = detector.input_size
    return to_onnx(
        deployable(detector),
        (torch.zeros(2, 3, height, width, dtype=torch.uint8),),
        input_names=(INPUT_NAME,),
        output_names=OUTPUT_NAMES,
        dynamic_batch=True,
    )


def compare_graphs(checkpoint: Path, originals: list[NDArray[np.uint8]], rounds: int) -> dict[str, Any]:
    """Both kinds of graph of one checkpoint."""
    detector, info = load_detector_checkpoint(checkpoint)
    images = canvases(originals, *detector.input_size)
    backend: Any = get_backend("onnxruntime")
    runtime = importlib.import_module("onnxruntime")

    def session(graph: onnx.ModelProto, batch: int) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(runtime, graph.SerializeToString(), {INPUT_NAME: images[:batch]}, backend)

    sessions = {f"fixed {batch}": session(detector_graph(detector, "native", batch), batch) for batch in BATCHES}
    row: dict[str, Any] = {"architecture": info.architecture}
    try:
        graph = open_graph(detector)
        sessions |= {f"open {batch}": session(graph, batch) for batch in BATCHES}
    except (ExportError, RuntimeError) as error:
        row["open"] = " ".join(str(error).split())
    else:
        pairs = [(sessions[f"fixed {batch}"].outputs(), sessions[f"open {batch}"].outputs()) for batch in BATCHES]
        found = [compare_detections(DetectionArrays(*fixed), DetectionArrays(*free)) for fixed, free in pairs]
        row["open"] = [vars(agreement) for agreement in found]
    times = processor_ms(sessions, rounds)
    row["processor_ms_of_a_run"] = times
    medians = {name: statistics.median(values) / int(name.split()[1]) for name, values in times.items()}
    row["processor_ms_of_an_image"] = medians
    row["time_to_fixed_1"] = {name: value / medians["fixed 1"] for name, value in medians.items()}
    print(info.architecture, row["time_to_fixed_1"], row["open"], sep="\n  ", flush=True)
    return row


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument(
        "--data", type=Path, required=True, help="COCO folder; the first images of its val split are used"
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    val = CocoFolder(args.data).split("val")
    originals = [val.image(index) for index in range(max(BATCHES))]
    rows = [compare_graphs(checkpoint, originals, args.rounds) for checkpoint in args.checkpoints]
    keep_answer("exported-batch", __doc__, {"detectors": rows}, backend="onnxruntime")


if __name__ == "__main__":
    main()
