"""Does a latency table lose a finished row when profiling is killed, a hundred times?

A process profiles small real modules in eager PyTorch into one table and says the name of each as soon as it is told
that it is done. It is ended by SIGKILL at random moments and started again. After every kill: every row that was
announced is in the table, no row has changed, no workload was measured twice, and the file is whole (SQLite's integrity
check and the table's own validation). When all are measured a new table is begun.

Each process is forked from one that has loaded torch and opened nothing, so that a hundred of them take minutes.

    OMP_NUM_THREADS=1 python -m benchmarks.reliability.profile_kills --kills 100
"""

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.common.answers import keep_answer
from profiler.backends import get_backend
from profiler.measuring.profile import ProfileSettings, Progress, profile_workloads
from profiler.table.latency_table import LatencyTable, Row
from profiler.table.validate import validate
from profiler.timing.measurement import TimingSettings
from profiler.workload import TensorSpec, Workload

_TIMING = TimingSettings(time_limit_s=0.005, warmup_s=0.0005, min_samples=3, relative_half_width=0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workloads", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    rng = random.Random(settings.seed)
    lost = changed = repeated = damaged = 0
    rows_after: list[int] = []
    tables = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latency-1.db"
        known: dict[str, Row] = {}
        while len(rows_after) < settings.kills:
            announced, killed = profile_until_killed(
                path, settings.workloads, rng.randint(0, 12), rng.uniform(0.0, 0.02)
            )
            repeated += sum(name in known for name in announced)
            with LatencyTable(path) as table:
                rows = {row.name: row for row in table.rows(superseded=True)}
            damaged += bool(validate(path).problems)
            lost += sum(name not in rows for name in {*announced, *known})
            changed += sum(rows[name] != row for name, row in known.items() if name in rows)
            known = rows
            if killed:
                rows_after.append(len(rows))
            if len(rows) == settings.workloads:
                tables += 1
                path, known = Path(folder) / f"latency-{tables}.db", {}
    found = {
        "kills": len(rows_after),
        "tables": tables,
        "rows_after_each_kill": rows_after,
        "finished_rows_lost": lost,
        "rows_changed": changed,
        "measured_twice": repeated,
        "damaged_tables": damaged,
    }
    print(found)
    keep_answer("profile-kills", "Does a latency table lose a finished row when profiling is killed?", found)
    return 0 if not (lost or changed or repeated or damaged) else 1


def profile_until_killed(path: Path, count: int, after_rows: int, after_s: float) -> tuple[list[str], bool]:
    """Profile in a process of its own, killed ``after_s`` after it has finished ``after_rows``.

    Counted in rows, because on a busy machine a time would often be over before the first one.

    Returns:
        The names that it announced, and whether it was killed before it ended.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            profile(path, count, writing)
            code = 0
        finally:
            os._exit(code)  # nothing that the parent has begun is finished here
    os.close(writing)
    with os.fdopen(reading, encoding="ascii") as announced:
        first, *names = (announced.readline().strip() for _ in range(after_rows + 1))
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)  # a child that has ended still waits to be asked how
        names = [name for name in (*names, *announced.read().split()) if name]
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if first != "start" or not (killed or os.waitstatus_to_exitcode(status) == 0):
        raise RuntimeError(f"the profiler ended with status {status}")
    return names, killed


def profile(path: Path, count: int, writing: int) -> None:
    """What is killed: measures small modules, and writes the name of each as it is finished."""

    def announce(progress: Progress) -> None:
        os.write(writing, f"{progress.name or 'start'}\n".encode())

    torch.set_num_threads(1)
    workloads = [Workload(str(n), str(n), nn.Linear(n, n), (TensorSpec((1, n)),)) for n in range(1, count + 1)]
    rng = np.random.default_rng(os.getpid())
    with LatencyTable(path) as table:
        settings = ProfileSettings(timing=_TIMING, reference_every=0)
        profile_workloads(workloads, table, get_backend("eager"), rng=rng, settings=settings, on_progress=announce)


if __name__ == "__main__":
    raise SystemExit(main())
