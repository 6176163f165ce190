"""Does a latency table lose a finished row when profiling is killed, a hundred times?

A process profiles small real modules in eager PyTorch into one table and prints the name of each when it is finished.
It is ended by SIGKILL at random moments and started again. After every kill: every row that was announced is in the
table, no row has changed, no workload was measured twice, and the file is whole (SQLite's integrity check and the
table's own validation). When all are measured a new table is begun.

Each process is forked from one that has loaded torch and opened nothing, so that a hundred of them take minutes.

    OMP_NUM_THREADS=1 python -m benchmarks.reliability.profile_kills --kills 100
"""

import os
import random
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.kills import Survival, killed_process
from profiler.backends import get_backend
from profiler.measuring.profile import ProfileSettings, Progress, profile_workloads
from profiler.table.latency_table import LatencyTable
from profiler.table.validate import validate
from profiler.timing.measurement import TimingSettings
from profiler.workload import TensorSpec, Workload

_TIMING = TimingSettings(time_limit_s=0.005, warmup_s=0.0005, min_samples=3, relative_half_width=0.5)


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workloads", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    rows = Survival()
    repeated = damaged = 0
    rows_after: list[int] = []
    tables = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latency-1.db"
        while len(rows_after) < args.kills:
            work = partial(profile, path, args.workloads)
            (_, *announced), killed = killed_process(work, 1 + rng.randint(0, 12), rng.uniform(0.0, 0.02))
            repeated += sum(name in rows.known for name in announced)
            with LatencyTable(path) as table:
                now = {row.name: row for row in table.rows(superseded=True)}
            damaged += bool(validate(path).problems)
            rows.lost += sum(name not in now for name in announced)
            rows.check(now)
            if killed:
                rows_after.append(len(now))
            if len(now) == args.workloads:
                tables += 1
                path, rows.known = Path(folder) / f"latency-{tables}.db", {}
    found = {
        "kills": len(rows_after),
        "tables": tables,
        "rows_after_each_kill": rows_after,
        "finished_rows_lost": rows.lost,
        "rows_changed": rows.changed,
        "measured_twice": repeated,
        "damaged_tables": damaged,
    }
    print(found)
    keep_answer("profile-kills", __doc__, found)
    return 0 if not (rows.lost or rows.changed or repeated or damaged) else 1


def profile(path: Path, count: int, writing: int) -> None:
    """Measure small modules, and write "start" and the name of each as it is finished."""

    def announce(progress: Progress) -> None:
        os.write(writing, f"{progress.name or 'start'}\n".encode())

    torch.set_num_threads(1)
    workloads = [Workload(str(n), str(n), nn.Linear(n, n), (TensorSpec((1, n)),)) for n in range(1, count + 1)]
    rng = np.random.default_rng(os.getpid())
    with LatencyTable(path) as table:
        # one round: every progress is a finished row
        settings = ProfileSettings(timing=_TIMING, reference_every=0, rounds=1)
        profile_workloads(workloads, table, get_backend("eager"), rng=rng, settings=settings, on_progress=announce)


if __name__ == "__main__":
    raise SystemExit(main())
