"""Does a backbone found by entropy beat a ResNet of equal latency, trained under the same budget?

Takes a detector with a ResNet-like backbone, searches super-blocks of the highest entropy within its latency (blocks
measured on this machine), takes the best one whose own blocks keep it, and trains both with the same recipe, epochs and
seeds. Interrupted, the same command resumes.

    python -m benchmarks.search.entropy_against_resnet --data aquarium --out runs/entropy-aquarium --epochs 20 --seeds 2
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, stdev

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.detectors import deployed
from benchmarks.common.training_runs import training_workers
from benchmarks.common.turns import processor_ms
from profiler.backends import Backend, get_backend
from profiler.devices import resolve_device
from profiler.table.latency_table import LatencyTable
from profiler.workload import random_inputs
from smnas.data.coco import CocoFolder
from smnas.latency.detector_latency import DetectorLatency
from smnas.latency.workloads import detector_workloads, end_to_end_workload
from smnas.scoring.base import Score
from smnas.scoring.entropy import detector_entropy
from smnas.scoring.workers.processes import Job
from smnas.search.strategies.mae_det.zero_shot import zero_shot_search
from smnas.space.architecture import Architecture
from smnas.space.convolutions import layers
from smnas.training.recipe import load_recipe

FRAME = "basicblock_16_11-21-21-21+fpn_2-5_32+norpn+fcos_32_1+160x160"
TOLERANCE = 1.02


def in_turns(architectures: Sequence[Architecture], classes: int, runner: Backend) -> dict[str, float]:
    """Median end-to-end processor time, in turns: a busy machine makes neither look slower."""
    sessions = {}
    for architecture in architectures:
        whole = end_to_end_workload(deployed(str(architecture), classes))
        sessions[str(architecture)] = runner.prepare(whole.module, random_inputs(whole.inputs, 0))
    return {name: median(times) for name, times in processor_ms(sessions, rounds=9).items()}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frame", default=FRAME, help="the ResNet-like detector")
    parser.add_argument("--layers", type=int, default=31, help="convolutions that the found backbone may have")
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep the answer")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = CocoFolder(args.data)
    frame = Architecture.parse(args.frame)
    runner = get_backend("onnxruntime", resolve_device("cpu"), threads=1)
    with LatencyTable(args.out / "latency.db") as table:
        latency = DetectorLatency(len(folder.classes), runner, table)
        latency.measure_calibration([frame])
        limit_ms = latency.measure_and_predict(frame).ms
        found = zero_shot_search(frame, latency, layers=args.layers, on_step=print)
        listed = [Architecture.parse(candidate.architecture) for candidate in found.candidates]
        by_entropy = sorted(listed, key=detector_entropy, reverse=True)
        winner = next(a for a in by_entropy if latency.measure_and_predict(a).ms <= limit_ms * TOLERANCE)
        predicted = {str(a): latency.measure_and_predict(a).ms for a in (frame, winner)}
        measured = in_turns((frame, winner), len(folder.classes), runner)
    jobs = [
        Job(number, architecture, seed, args.epochs, args.out / str(architecture) / str(seed))
        for number, (seed, architecture) in enumerate((s, a) for s in range(args.seeds) for a in (frame, winner))
    ]
    aps: dict[str, list[float]] = {str(frame): [], str(winner): []}
    with training_workers(args.data, load_recipe(args.recipe), args.workers) as pool:
        for job, outcome in pool.score_all(jobs):
            if isinstance(outcome, Score):
                aps[str(job.architecture)].append(outcome.value)
            print(job.architecture, outcome, flush=True)
    rows = []
    for name, architecture in (("resnet-like", frame), ("maximum entropy", winner)):
        values = aps[str(architecture)]
        parts = detector_workloads(architecture, len(folder.classes))
        rows.append(
            {
                "name": name,
                "architecture": str(architecture),
                "entropy": detector_entropy(architecture),
                "layers": layers(architecture.backbone.convolutions()),
                "flops": sum(part.flops for part in parts),
                "parameters": sum(part.parameters for part in parts),
                "predicted_ms": predicted[str(architecture)],
                "processor_ms": measured[str(architecture)],
                "ap": values,
                "ap_mean": fmean(values) if values else None,
                "ap_std": stdev(values) if len(values) > 1 else None,
            }
        )
        print(rows[-1])
    if args.keep and all(row["ap"] for row in rows):
        remark = {"data": args.data.name, "epochs": args.epochs, "seeds": args.seeds, "recipe": args.recipe}
        keep_answer(
            "entropy-against-resnet",
            __doc__,
            {**remark, "steps": found.steps, "fit_relative_error": found.relative_error, "detectors": rows},
        )


if __name__ == "__main__":
    main()
