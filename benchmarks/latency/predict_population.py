"""How many predictions of end-to-end latency does a core make in a minute, and do they equal the one-by-one path?

Draws detectors of a preset, reads their blocks' keys, fills a table with a row for each block (their latencies do not
matter here, so they are drawn, not measured), and predicts a population of a million drawn from them: keys are looked
up in the table, summed, calibrated and given intervals, a detector that comes twice as if it were another. Several
rounds, in one process and one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.latency.predict_population
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common.answers import argument_parser, keep_answer
from profiler.prediction.batch import LatencyArrays
from profiler.prediction.predict import LatencyModel, sum_parts
from profiler.table.latency_table import LatencyTable, Row, Target
from smnas.latency.workloads import detector_workloads
from smnas.space.preset import load_space

TARGET = Target("drawn, not measured", "none", "1")
MODEL = LatencyModel(0.93, 0.004, 0.03, calibrated=True)


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--detectors", type=int, default=64, help="different ones that the population is drawn from")
    parser.add_argument("--population", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    rng = np.random.default_rng(0)
    structures = load_space(settings.preset).structures
    chosen = [structures[index] for index in rng.permutation(len(structures))[: settings.detectors].tolist()]
    began = time.process_time()
    keys_of = [tuple(part.key for part in detector_workloads(one, 80)) for one in chosen]
    reading_ms = (time.process_time() - began) / len(chosen) * 1e3

    with tempfile.TemporaryDirectory() as folder, LatencyTable(Path(folder) / "latency.db") as table:
        for key in dict.fromkeys(key for keys in keys_of for key in keys):
            ms = float(rng.uniform(0.01, 2.0))
            table.add(Row(key, key, TARGET, median_ms=ms, low_ms=0.99 * ms, high_ms=1.02 * ms))
        rows = table.current(TARGET)
    population = [keys_of[index] for index in rng.integers(len(keys_of), size=settings.population).tolist()]
    wall_s, processor_s = [], []
    for _ in range(settings.rounds):
        wall, processor = time.perf_counter(), time.process_time()
        arrays = LatencyArrays.of(rows)
        sums = arrays.sum(arrays.find(population))
        many = MODEL.predict_many(sums.ms, sums.count, sums.half_ms)
        wall_s.append(time.perf_counter() - wall)
        processor_s.append(time.process_time() - processor)
    checked = rng.integers(len(population), size=min(2000, len(population))).tolist()
    began = time.process_time()
    single = [MODEL.predict(sum_parts(population[index], rows)) for index in checked]
    one_by_one_us = (time.process_time() - began) / len(checked) * 1e6
    differences = [
        abs(getattr(many, field)[index] / getattr(one, field) - 1)
        for index, one in zip(checked, single, strict=True)
        for field in ("ms", "low_ms", "high_ms")
    ]
    keep_answer(
        f"predict-population-{settings.preset}",
        __doc__,
        {
            "population": len(population),
            "different_detectors": len(chosen),
            "rows": len(rows),
            "parts_per_detector": statistics.mean(map(len, keys_of)),
            "wall_s": wall_s,
            "processor_s": processor_s,
            "predictions_per_minute_wall": len(population) / statistics.median(wall_s) * 60,
            "predictions_per_minute_of_a_core": len(population) / statistics.median(processor_s) * 60,
            "one_by_one_us": one_by_one_us,
            "compared": len(checked),
            "largest_relative_difference": max(differences),
            "reading_a_new_architecture_ms": reading_ms,
        },
    )
    print(f"{len(population) / statistics.median(processor_s) * 60:,.0f} predictions a minute of a core")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
