"""Does the entropy order trained detectors better than counting layers, FLOPs or parameters does?

Reads trained detectors from finished searches (run folders), kept answers of searches, answers of rank_budget.py and
tables of trained_table.py, and prints Kendall's tau with AP for the entropy and its controls, over all detectors of one
number of epochs and inside a narrow band of FLOPs and of latency. Detectors of different sources or numbers of epochs
are never mixed: their APs do not compare.

    python -m benchmarks.search.entropy_usefulness benchmarks/results/search/rank-*.json runs/my-run --table latency.db
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.answers import argument_parser, keep_answer
from profiler.backends import get_backend
from profiler.devices import resolve_device
from profiler.table.latency_table import LatencyTable
from smnas.latency.detector_latency import DetectorLatency
from smnas.latency.workloads import detector_workloads
from smnas.report.controls import trained_detectors
from smnas.report.run_folder import read_run_folder
from smnas.scoring.controls import TrainedDetector, control_table
from smnas.scoring.entropy import ENTROPY_FORMS, detector_entropy
from smnas.space.architecture import Architecture

Budgets = dict[int, list[TrainedDetector]]


def of_search(document: Mapping[str, Any]) -> Budgets:
    """A search kept by keep_search.py: the rows of its ranking."""
    budgets: Budgets = {}
    for row in document["ranking"]:
        detector = TrainedDetector(
            Architecture.parse(row["architecture"]),
            row["ap"],
            row["flops"],
            row["parameters"],
            row["predicted_latency_ms"],
        )
        budgets.setdefault(row["epochs"], []).append(detector)
    return budgets


def costs(architecture: Architecture, classes: int) -> tuple[int, int]:
    """FLOPs and parameters."""
    parts = detector_workloads(architecture, classes)
    return sum(part.flops for part in parts), sum(part.parameters for part in parts)


def of_rank_budget(document: Mapping[str, Any], classes: int, latency: DetectorLatency | None) -> Budgets:
    """An answer of rank_budget.py, which holds APs: costs are counted here, latencies are those of a table."""
    budgets: Budgets = {}
    for name, by_epochs in document["ap"].items():
        architecture = Architecture.parse(name)
        flops, parameters = costs(architecture, classes)
        latency_ms = math.nan if latency is None else latency.measure_and_predict(architecture).ms
        for epochs, ap in by_epochs.items():
            detector = TrainedDetector(architecture, ap, flops, parameters, latency_ms)
            budgets.setdefault(int(epochs), []).append(detector)
    return budgets


def of_table(document: Mapping[str, Any], classes: int) -> Budgets:
    """A table of trained_table.py: APs and latencies; costs are counted here."""
    budgets: Budgets = {}
    for row in document["rows"]:
        if row["reason"] is not None:
            continue
        architecture = Architecture.parse(row["architecture"])
        flops, parameters = costs(architecture, classes)
        for epochs, ap in row["ap"].items():
            detector = TrainedDetector(architecture, ap, flops, parameters, row["latency_ms"])
            budgets.setdefault(int(epochs), []).append(detector)
    return budgets


def read(source: Path, classes: int, latency: DetectorLatency | None) -> Budgets:
    if source.is_dir():
        return trained_detectors(read_run_folder(source))
    document = json.loads(source.read_text())
    if "ranking" in document:
        return of_search(document)
    if "rows" in document:
        return of_table(document, classes)
    if "ap" in document:
        return of_rank_budget(document, classes, latency)
    return {}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("sources", type=Path, nargs="+", help="run folders and answers")
    parser.add_argument("--form", choices=ENTROPY_FORMS, default="entropy")
    parser.add_argument("--least", type=int, default=8, help="fewer detectors of one budget are left out")
    parser.add_argument("--classes", type=int, default=3, help="of the detectors in answers and tables")
    parser.add_argument("--table", type=Path, help="latency table for those; what it lacks is measured")
    parser.add_argument("--keep", action="store_true", help="keep the answer")
    args = parser.parse_args()
    latency = None
    if args.table is not None:
        runner = get_backend("onnxruntime", resolve_device("local"), threads=1)
        latency = DetectorLatency(args.classes, runner, LatencyTable(args.table))
    answers = []
    for source in args.sources:
        for epochs, detectors in sorted(read(source, args.classes, latency).items()):
            if len(detectors) < args.least:
                print(f"{source.name}, {epochs} epochs: {len(detectors)} detectors are too few, left out")
                continue
            scores = [detector_entropy(d.architecture, ENTROPY_FORMS[args.form]) for d in detectors]
            groups = control_table(detectors, scores, args.form)
            answers.append({"source": source.name, "epochs": epochs, "groups": [asdict(group) for group in groups]})
            print(f"\n{source.name}, {epochs} epochs: Kendall's tau with AP")
            print(f"{'':18}" + "".join(f"{f'{group.name} ({group.detectors})':>26}" for group in groups))
            for place, row in enumerate(groups[0].rows):
                cells = [group.rows[place] for group in groups]
                text = [f"{cell.tau:+.2f} ({cell.low:+.2f} to {cell.high:+.2f})" for cell in cells]
                print(f"{row.name:18}" + "".join(f"{cell:>26}" for cell in text))
    if args.keep and answers:
        keep_answer(f"{args.form}-usefulness", __doc__, {"tables": answers})


if __name__ == "__main__":
    main()
