"""Does the loop of a search and its device elsewhere lose a measured row or a trial when it is killed?

A search for a device that is not here, from a table without 30% of its rows; the device measures what its request
asks for; the search ranks again; twice. Measuring takes the row from the whole table, kept with the tests, and writes
it as a profile does. One process does all of it and is ended by SIGKILL at a random moment, counted from one of its
first events: a trial, a phase or a row. It is started again until the loop is done, and then the next loop begins, with
other rows removed. After every kill: each row that was announced is in the table, no row and no finished trial has
changed, and a ranking that is there can be read. At the end of each loop the ranking is that of the same search left
alone and ranked with the table that the kills have left.

    OMP_NUM_THREADS=1 python -m benchmarks.reliability.loop_kills --kills 100
"""

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import smnas
from benchmarks.common.answers import ROOT, argument_parser, keep_answer
from benchmarks.common.kills import Survival, finished_trials, killed_process
from benchmarks.search.search_overhead import InstantScorer
from profiler.backends.eager import EagerBackend
from profiler.devices import cpu_device
from profiler.measuring.profile import ProfileReport
from profiler.table.latency_table import LatencyTable, Row, Target
from profiler.table.validate import validate
from smnas.data.shapes import generate_shapes
from smnas.search.ranking.ranking import Ranking, read_ranking
from smnas.search.study.run_folder import RunFolder
from smnas.space.encoding import Encoding
from smnas.space.preset import load_space

KEPT = ROOT.parent / "tests" / "smnas" / "latency" / "elsewhere"
ENCODING = Encoding(load_space(str(KEPT / "space.toml")))
ROUNDS = 2  # of measuring and ranking again
SERVER = "A server"  # this machine, which is not the table's


@dataclass
class Found:
    """What the kills did."""

    kills: int = 0
    loops: int = 0
    other_rankings: int = 0
    damaged_tables: int = 0
    rows: Survival = field(default_factory=Survival)
    trials: Survival = field(default_factory=Survival)


class Device(EagerBackend):
    """The table's own device and backend."""

    def __init__(self, target: Target) -> None:
        super().__init__(replace(cpu_device(), name=target.device), target.threads)
        self.name, self.version = target.backend, target.backend_version


def whole_table() -> tuple[Target, list[Row]]:
    """The kept table's target and rows."""
    with LatencyTable(KEPT / "table.db", read_only=True) as table:
        return table.targets()[0], [replace(row, id=None, superseded_by=None) for row in table.rows()]


def loop(folder: Path, data: Path, writing: int | None = None, rounds: int = ROUNDS) -> None:
    """Search, measure and rank again, with a line to the file descriptor for every event and every row."""
    target, rows = whole_table()
    known, table = {row.key: row for row in rows}, folder / "table.db"

    def announce(*event: object) -> None:
        if writing is not None:
            os.write(writing, f"row {event[0].key}\n".encode() if isinstance(event[0], Row) else b"-\n")

    def measure(workloads: Any, table: LatencyTable, *_: Any, networks: Any = (), **__: Any) -> ProfileReport:
        there = table.current(target)
        lacking = [one.key for one in (*workloads, *networks) if one.key not in there]
        for key in dict.fromkeys(lacking):
            announce(table.add(replace(known[key], created_at="")))
        return ProfileReport(len(lacking), 0, (), (), None, 0.0)

    with (
        mock.patch("profiler.devices.cpu_name", return_value=SERVER),
        mock.patch("smnas.api.latency.backend_of", return_value=Device(target)),
        mock.patch("smnas.latency.detector_latency.profile_workloads", measure),
    ):
        smnas.search(
            folder / "run",
            data,
            device=target.device,
            table=table,
            accept_version=target.backend_version,
            preset=str(KEPT / "space.toml"),
            strategy="random",
            scorer=InstantScorer(ENCODING),
            trials=(8, 0),
            final_epochs=0,
            workers=1,
            deploy=False,
            on_event=announce,
            on_progress=announce,
        )
        for _ in range(rounds):
            smnas.profile(run=folder / "run" / "request.json", table=table, on_progress=announce)
            smnas.rank(folder / "run", table)


def begin(folder: Path, seed: int) -> Path:
    """A folder with the table of a loop: without a random 30% of its rows."""
    folder.mkdir()
    _, rows = whole_table()
    left = np.random.default_rng(seed).permutation(len(rows))[: round(0.7 * len(rows))].tolist()
    with LatencyTable(folder / "table.db") as table:
        table.add_many(rows[index] for index in sorted(left))
    return folder


def rows_of(folder: Path) -> dict[str, tuple[object, ...]]:
    """Every row of a loop's table."""
    with LatencyTable(folder / "table.db", read_only=True) as table:
        return {row.key: (row.median_ms, row.low_ms, row.high_ms, row.status, row.id) for row in table.rows()}


def latencies(ranking: Ranking) -> list[tuple[object, ...]]:
    """What does not depend on how often a search was ranked again."""
    return [(row.architecture, row.ap, row.predicted_latency_ms, row.measured_latency_ms) for row in ranking.rows]


def kill_loops(kills: int, seed: int, root: Path, on_loop: Callable[[Found], None] = lambda found: None) -> Found:
    """Kill loops until there have been so many kills and the last loop has ended."""
    rng, found = random.Random(seed), Found()
    data = generate_shapes(root / "data", train=1, val=1)
    while found.kills < kills:
        number = found.loops
        folder, alone = (begin(root / f"{name}-{number}", seed + number) for name in ("killed", "alone"))
        # before the kills: the processes are forked from this one, which then knows the detectors' shapes
        loop(alone, data, rounds=0)
        found.rows.known, found.trials.known = rows_of(folder), {}
        killed = True
        while killed:
            lines, killed = killed_process(partial(loop, folder, data), rng.randint(1, 15), rng.uniform(0.0, 0.3))
            now = rows_of(folder)
            found.rows.lost += sum(line.startswith("row ") and line[4:] not in now for line in lines)
            found.rows.check(now)
            found.trials.check(finished_trials(folder / "run"))
            found.damaged_tables += bool(validate(folder / "table.db").problems)
            if RunFolder(folder / "run").ranking.exists():
                read_ranking(folder / "run")
            found.kills += killed
        with mock.patch("profiler.devices.cpu_name", return_value=SERVER):
            smnas.rank(alone / "run", folder / "table.db")
        found.other_rankings += latencies(read_ranking(folder / "run")) != latencies(read_ranking(alone / "run"))
        found.loops += 1
        for done in (folder, alone):
            shutil.rmtree(done)
        on_loop(found)
    return found


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        found = kill_loops(
            args.kills,
            args.seed,
            Path(root),
            lambda far: print(f"{far.loops} loops, {far.kills} kills", flush=True),
        )
    answer = {
        "kills": found.kills,
        "loops": found.loops,
        "rows_lost": found.rows.lost,
        "rows_changed": found.rows.changed,
        "damaged_tables": found.damaged_tables,
        "finished_trials_lost": found.trials.lost,
        "finished_trials_changed": found.trials.changed,
        "loops_with_another_ranking_than_unkilled": found.other_rankings,
    }
    print(answer)
    keep_answer("loop-kills", __doc__, answer)
    return 1 if any(answer[name] for name in list(answer)[2:]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
