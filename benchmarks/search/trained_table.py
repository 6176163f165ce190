"""What would a search have found out about these detectors? A table of AP and latency, to compare searches with.

Every detector is trained from scratch under one schedule of ``--epochs`` epochs, is evaluated after a ninth (from 27
epochs on), a third and all of them on its averaged weights, and its latency is predicted from a latency table as in a
search. Half of the rows are random structures, half random variants of them; the baseline is the first row.
Failures stay with their reason. Interrupted, the same command resumes; more ``--count`` adds rows.

    python -m benchmarks.search.trained_table --out runs/trained-table --count 120 --epochs 9

writes ``benchmarks/search/data/tabulated-nano.json`` (another place with ``--table``) after every ten rows.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.training_runs import training_workers
from benchmarks.search.problems.problem import stops
from benchmarks.search.rank_budget import architectures
from profiler.backends import get_backend
from profiler.devices import resolve_device
from profiler.table.latency_table import LatencyTable
from smnas.data.coco import CocoFolder
from smnas.data.shapes import generate_shapes
from smnas.latency.detector_latency import DetectorLatency
from smnas.latency.prediction import LatencyFailedError
from smnas.scoring.base import Score
from smnas.scoring.workers.processes import Job
from smnas.space.architecture import Architecture
from smnas.training.recipe import load_recipe

CALIBRATION_WHOLES = 3
GROUP = 10  # detectors that go through the rungs together; workers wait for each other at the end of every rung


def latencies(args: argparse.Namespace, rows: list[dict[str, Any]], classes: int) -> None:
    """Predict every row's latency; a failure is stored with its reason."""
    with LatencyTable(args.out / "latency.db") as table:
        latency = DetectorLatency(classes, get_backend("onnxruntime", resolve_device("local"), threads=1), table)
        latency.measure_calibration([Architecture.parse(row["architecture"]) for row in rows[: 1 + CALIBRATION_WHOLES]])
        for row in rows:
            try:
                found = latency.measure_and_predict(Architecture.parse(row["architecture"]))
            except LatencyFailedError as error:
                row["reason"] = f"latency: {error}"
            else:
                row |= {"latency_ms": found.ms, "latency_low_ms": found.low_ms, "latency_high_ms": found.high_ms}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and the latency table")
    parser.add_argument("--table", type=Path, help="the file to write")
    parser.add_argument("--data", type=Path, help="COCO-format folder; generated images without it")
    parser.add_argument("--images", type=int, default=480, help="generated ones to train on; a quarter for the AP")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--ema-decay", type=float, default=0.95, help="of the weights that are evaluated")
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    data = args.data or generate_shapes(args.out / "data", train=args.images, val=args.images // 4)
    file = args.table or Path(__file__).parent / "data" / f"tabulated-{args.preset}.json"
    rungs = stops(args.epochs)
    recipe = load_recipe(args.recipe).with_(epochs=args.epochs, ema_decay=args.ema_decay)
    candidates = architectures(args.preset, args.count, args.seed)
    rows: list[dict[str, Any]] = [
        {"architecture": str(c), "ap": {}, "seconds": None, "latency_ms": None, "reason": None} for c in candidates
    ]
    latencies(args, rows, len(CocoFolder(data).classes))
    facts = {
        "preset": args.preset,
        "recipe": recipe.model_dump(mode="json"),
        "epochs": args.epochs,
        "rungs": rungs,
        "seed": args.seed,
    }
    trainable = [number for number, row in enumerate(rows) if row["reason"] is None]
    began = time.monotonic()
    with training_workers(data, recipe, args.workers) as pool:
        # A few detectors at a time, each through all its rungs, so that an interrupted table has whole rows.
        for start in range(0, len(trainable), GROUP):
            numbers = trainable[start : start + GROUP]
            for rung in rungs:
                stop = None if rung == args.epochs else rung
                jobs = [
                    Job(n, candidates[n], args.seed, args.epochs, args.out / "models" / str(candidates[n]), stop)
                    for n in numbers
                    if rows[n]["reason"] is None
                ]
                for job, outcome in pool.score_all(jobs):
                    row = rows[job.number]
                    if isinstance(outcome, Score):
                        row["ap"][str(rung)] = outcome.value
                        row["seconds"] = outcome.seconds
                    else:
                        row["reason"] = outcome.reason
            done = [row for row in rows if row["reason"] is not None or len(row["ap"]) == len(rungs)]
            keep_answer(file.stem, __doc__, facts | {"rows": done}, out=file)
            minutes = (time.monotonic() - began) / 60
            for n in numbers:
                found = rows[n]["ap"] or rows[n]["reason"]
                print(f"{len(done)}/{len(rows)} after {minutes:.1f} min: {found}  {candidates[n]}", flush=True)


if __name__ == "__main__":
    main()
