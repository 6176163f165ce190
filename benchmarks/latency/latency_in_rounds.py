"""Are latencies true on this machine as it comes, measured in one burst of samples and in rounds?

Detectors of a preset and their blocks are measured into two tables in one run, group by group in turns: one burst of
samples a row (``rounds=1``) and rounds that lie apart in time (the default). Each table is audited: the model is fitted
on some detectors and compared with the others, as measured in the same table and against the lower of both tables'
latencies (interference only adds). The same beside a busy neighbour, a process that this script starts and ends, pinned
to the core of the measurement (``same core``) and to the next one (``other core``).

16 seconds a detector, table and state of the machine on a slow core, 13 minutes for a state with 16 detectors and 8 to
calibrate on; more on a shared core. ``--only`` takes one of the three states:

    OMP_NUM_THREADS=1 python -m benchmarks.latency.latency_in_rounds
    OMP_NUM_THREADS=1 python -m benchmarks.latency.latency_in_rounds --only "as it comes"
    OMP_NUM_THREADS=1 python -m benchmarks.latency.latency_in_rounds --quick       # tries it out, keeps nothing
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.machine import conditions
from profiler.backends import get_backend
from profiler.devices import cpu_device
from profiler.prediction.audit import accuracy
from profiler.table.latency_table import LatencyTable, Row
from profiler.timing import DEFAULT_ROUNDS
from smnas.latency.audit import audit_latency
from smnas.latency.detector_latency import DetectorLatency, in_groups
from smnas.latency.profiling import audited
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space

WAYS = {"one burst": 1, "rounds": DEFAULT_ROUNDS}
NEIGHBOURS = {"as it comes": None, "other core": 1, "same core": 0}
"""States of the machine: where the busy process runs, counted from the core of the measurement."""
_CLASSES = 80


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--detectors", type=int, default=16)
    parser.add_argument("--only", choices=NEIGHBOURS, action="append", help="state of the machine; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two detectors and two to calibrate on")
    args = parser.parse_args()
    calibration, held_out = audited(load_space(args.preset), args.detectors, args.seed)
    states: Sequence[str] = args.only or (["as it comes"] if args.quick else list(NEIGHBOURS))
    if args.quick:
        calibration, held_out = calibration[:2], held_out[:2]
    cores = sorted(os.sched_getaffinity(0))
    found: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    before = conditions(cpu_device())
    for state in states:
        with tempfile.TemporaryDirectory() as folder, busy(NEIGHBOURS[state], cores):
            audits, of_state = measured(Path(folder), calibration, held_out, args.precision, args.seed)
        found += [{"state": state, **one} for one in audits]
        rows += [{"state": state, **one} for one in of_state]
        for one in found[-len(WAYS) :]:
            print(
                f"{state}, {one['way']}: MAPE {one['mape']:.1%} ({one['mape_against_lower']:.1%} against the lower), "
                f"{one['within_10']:.0%} within 10%, {one['coverage']:.0%} inside intervals, "
                f"Spearman {one['spearman'] or 0:.4f}; {one['unsteady']} of {one['rows']} rows unsteady, "
                f"{one['samples']} samples, {one['seconds']:.0f} s"
            )
    if not args.quick:
        answer = {
            "preset": args.preset,
            "calibrated_on": len(calibration),
            "held_out": len(held_out),
            "conditions": [before, conditions(cpu_device())],
            "audits": found,
            "measured": rows,
        }
        keep_answer("latency-in-rounds", __doc__, answer, backend="onnxruntime", precision=args.precision)
    return 0


@contextmanager
def busy(place: int | None, cores: list[int]) -> Iterator[None]:
    """A process that computes, ``place`` cores after the first, to which this one is pinned; none without a place."""
    if place is None:
        yield
        return
    if place >= len(cores):
        raise SystemExit(f"a neighbour on another core needs 2 cores, but this process may use {len(cores)}")
    os.sched_setaffinity(0, {cores[0]})
    script = f"import os; os.sched_setaffinity(0, {{{cores[place]}}})\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", script])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()
        os.sched_setaffinity(0, cores)


def measured(
    folder: Path, calibration: list[Architecture], held_out: list[Architecture], precision: str, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Audits and rows of both ways, measured in turns."""
    backend = get_backend("onnxruntime")
    rng = np.random.default_rng(seed)
    seconds: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        latencies = {
            way: DetectorLatency(
                _CLASSES,
                backend,
                stack.enter_context(LatencyTable(folder / f"{rounds}.db")),
                precision=precision,
                seed=seed,
                rounds=rounds,
            )
            for way, rounds in WAYS.items()
        }
        both = [*calibration, *held_out]
        for group in in_groups([both[index] for index in rng.permutation(len(both)).tolist()]):
            for index in rng.permutation(len(WAYS)).tolist():
                way = list(WAYS)[index]
                began = time.monotonic()
                latencies[way].measure_detectors(group)
                seconds[way] += time.monotonic() - began
        tables = {way: latency.table.current(latency.target) for way, latency in latencies.items()}
        audits = []
        for way, latency in latencies.items():
            audit = audit_latency(latency, calibration, held_out, lambda *_: None, rng=np.random.default_rng(seed))
            keys = [one.measured.key for one in audit.detectors]
            lower = [min(table[key].median_ms or 0.0 for table in tables.values()) for key in keys]
            against_lower = accuracy([one.prediction.ms for one in audit.detectors], lower)
            own = audit.accuracies()["prediction"]
            audits.append(
                {
                    "way": way,
                    "seconds": seconds[way],
                    "rows": len(tables[way]),
                    "samples": sum(row.n or 0 for row in tables[way].values()),
                    "unsteady": sum(row.trouble == "unsteady" for row in tables[way].values()),
                    "wide": sum(row.stop_reason != "converged" for row in tables[way].values()),
                    "coverage": audit.coverage,
                    **vars(own),
                    "mape_against_lower": against_lower.mape,
                    "within_10_against_lower": against_lower.within_10,
                    "audit": audit.as_dict(),
                }
            )
    return audits, [described(way, row) for way, table in tables.items() for row in table.values()]


def described(way: str, row: Row) -> dict[str, Any]:
    """A row with the samples of its rounds, and what each round had of the processor."""
    return {
        "way": way,
        "key": row.key,
        "name": row.name,
        "kind": row.kind,
        "median_ms": row.median_ms,
        "low_ms": row.low_ms,
        "high_ms": row.high_ms,
        "stop_reason": row.stop_reason,
        "rounds": row.conditions.get("rounds"),
        "samples_ms": [[float(f"{ms:.4g}") for ms in samples] for samples in row.rounds_ms],
    }


if __name__ == "__main__":
    raise SystemExit(main())
