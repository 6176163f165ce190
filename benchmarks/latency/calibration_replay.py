"""How good are latency predictions that are calibrated on 4, 6, 8 or 20 whole detectors?

Replays kept audits, and the table of a noisy machine that the tests hold, over many random choices of the detectors
that are calibrated on: coverage of 90% intervals, their half-width, and the mean error. Measures nothing.

    python -m benchmarks.latency.calibration_replay
"""

from pathlib import Path

import numpy as np

from benchmarks.common.answers import RESULTS, ROOT, Kept, argument_parser, keep_answer
from profiler.prediction.predict import PRIORS, LatencyModel, PartsSum
from profiler.table.latency_table import LatencyTable
from smnas.latency.prediction import LatencyPredictor
from smnas.latency.workloads import detector_workloads
from smnas.space.architecture import Architecture

_TABLE = ROOT.parent / "tests" / "smnas" / "latency" / "elsewhere" / "table.db"
_TABLE_CLASSES = 6
_CALIBRATED_ON = (4, 6, 8, 20)
_LEVEL = 0.9


def kept_audit(path: Path) -> tuple[list[PartsSum], list[float]]:
    """Sums of blocks without their intervals, which audits do not keep, and latencies of an audit's detectors."""
    rows = Kept(path).values["audit"]["detectors"]
    counts = [len(detector_workloads(Architecture.parse(row["architecture"]), 80)) for row in rows]
    sums = [PartsSum(row["naive_sum_ms"], 0.0, count) for row, count in zip(rows, counts, strict=True)]
    return sums, [row["measured_ms"] for row in rows]


def kept_table(path: Path, classes: int) -> tuple[list[PartsSum], list[float]]:
    """The same of the whole detectors of a table."""
    with LatencyTable(path, read_only=True) as table:
        rows = table.current(table.targets()[0])
    predictor = LatencyPredictor(rows, classes)
    measured = {one: predictor.end_to_end_row(one) for one in predictor.measured_detectors()}
    return [predictor.parts_sum(one) for one in measured], [row.median_ms or 0.0 for row in measured.values() if row]


def replay(sums: list[PartsSum], measured_ms: list[float], count: int, splits: int) -> dict[str, float]:
    """Fit on ``count`` random detectors and predict the others, ``splits`` times."""
    rng, measured = np.random.default_rng(0), np.array(measured_ms)
    inside, half, errors = [], [], []
    for _ in range(splits):
        order = rng.permutation(len(measured)).tolist()
        known, others = order[:count], order[count:]
        fitted = LatencyModel.fit(
            [sums[index] for index in known], measured[known].tolist(), level=_LEVEL, prior=PRIORS["onnxruntime"]
        )
        of = [sums[index] for index in others]
        found = fitted.predict_many([one.ms for one in of], [one.count for one in of], [one.half_ms for one in of])
        truth = measured[others]
        inside.append(float(((found.low_ms <= truth) & (truth <= found.high_ms)).mean()))
        half.append(float(np.median(found.high_ms / found.ms - 1)))
        errors.append(float(np.abs(found.ms / truth - 1).mean()))
    return {"inside": float(np.mean(inside)), "half_width": float(np.median(half)), "mape": float(np.mean(errors))}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--splits", type=int, default=300, help="random choices of the detectors calibrated on")
    args = parser.parse_args()
    files = sorted((RESULTS / "latency").glob("audit-*-onnxruntime-*.json"))
    sources = {path.name.partition("-onnxruntime")[0]: kept_audit(path) for path in files}
    sources["noisy machine"] = kept_table(_TABLE, _TABLE_CLASSES)
    rows = []
    for name, (sums, measured_ms) in sources.items():
        for count in _CALIBRATED_ON:
            found = replay(sums, measured_ms, count, args.splits)
            rows.append({"source": name, "detectors": len(sums), "calibrated_on": count, **found})
            print(
                f"{name}, calibrated on {count}: {found['inside']:.0%} inside, half-width {found['half_width']:.1%}, "
                f"mean error {found['mape']:.1%}"
            )
    keep_answer(
        "calibration-replay",
        __doc__,
        {"level": _LEVEL, "splits": args.splits, "prior": vars(PRIORS["onnxruntime"]), "rows": rows},
        backend="onnxruntime",
    )


if __name__ == "__main__":
    main()
