"""Does a latency table lose a finished row when profiling is killed, a hundred times?

A process profiles small real modules in eager PyTorch into one table and says the name of each as soon as it is told
that it is done. It is ended by SIGKILL at random moments and started again. After every kill: every row that was
announced is in the table, no row has changed, no workload was measured twice, and the file is whole (SQLite's integrity
check and the table's own validation). When all are measured a new table is begun.

    python benchmarks/profile_kills.py --kills 100
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from answers import keep_answer

from profiler.table import LatencyTable
from profiler.table_validate import validate

PROFILER = """
import sys
import numpy as np
from torch import nn
from profiler.backends import get_backend
from profiler.profile import profile_workloads
from profiler.table import LatencyTable
from profiler.timing import TimingSettings
from profiler.workload import TensorSpec, Workload
count = int(sys.argv[2])
workloads = [Workload(str(n), str(n), nn.Linear(n, n), (TensorSpec((1, n)),)) for n in range(1, count + 1)]
with LatencyTable(sys.argv[1]) as table:
    profile_workloads(workloads, table, get_backend("eager"), rng=np.random.default_rng(),
        timing=TimingSettings(time_limit_s=0.01, warmup_s=0.001),
        on_progress=lambda p: print(p.name or "start", flush=True))
"""


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
        path, known = Path(folder) / "latency-1.db", {}
        while len(rows_after) < settings.kills:
            command = [sys.executable, "-c", PROFILER, str(path), str(settings.workloads)]
            announced, killed = profile_until_killed(command, rng.uniform(0.0, 0.4))
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


def profile_until_killed(command: list[str], after_s: float) -> tuple[list[str], bool]:
    """Run the profiler; the names it announced, and whether it was killed ``after_s`` after its first word."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if process.stdout is None:
        raise RuntimeError("the profiler has no output")
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(line.strip() for line in process.stdout or ()))
    first = process.stdout.readline().strip()
    reader.start()
    time.sleep(after_s)
    running = process.poll() is None
    if running:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reader.join()
    process.stdout.close()
    if first != "start" or (not running and process.returncode != 0):
        raise RuntimeError(f"the profiler ended with code {process.returncode}")
    return lines, process.returncode == -signal.SIGKILL


if __name__ == "__main__":
    raise SystemExit(main())
