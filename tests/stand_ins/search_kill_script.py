"""Kill a search over and over and resume it: run by ``test_search_resume.py`` in a process of its own.

    python search_kill_script.py FOLDER KILLS SEED

Each round forks a child that runs the search in FOLDER with the stand-in of ``search_stub.py`` and kills it with
SIGKILL at a random time: every third round counted from the fork, else from one of the child's first events, so that
start-up and every step of the loop are hit however slow the machine is. After every kill the finished trials are read
from the study. At last the search runs to its end. One JSON document on standard output.
"""

import json
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path

import search_stub as stub

from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.progress import SearchEvent
from smnas.search.run import run_search
from smnas.search.study.settings import StageTrials
from smnas.space.preset import load_space

NANO = load_space("nano")


def run(folder: Path, began: int | None = None) -> None:
    def tell(_event: SearchEvent) -> None:
        if began is not None:
            os.write(began, b".")

    scorer = stub.StubScorer(diverge_share=0.1, seconds=0.01)
    settings = stub.settings(latency_ms=30.0, generation=3, trials=StageTrials(structural=8, modular=8))
    run_search(
        SearchContext(folder, settings, NANO, stub.StubLatency()),
        scorers=InProcess(scorer),
        complexity=stub.complexity,
        on_event=tell,
    )


def finished(folder: Path) -> dict[str, list[object]]:
    """Number -> state, values and end of every finished trial, by SQL of this script's own."""
    file = folder / "study.db"
    if not file.exists():
        return {}
    connection = sqlite3.connect(file)
    try:
        rows = connection.execute(
            "select number, state, datetime_complete, (select group_concat(value, ' ') from trial_values v"
            " where v.trial_id = t.trial_id) from trials t where state in ('COMPLETE', 'FAIL', 'PRUNED')"
        ).fetchall()
    except sqlite3.OperationalError:
        return {}  # killed before the tables were made
    finally:
        connection.close()
    return {str(number): rest for number, *rest in rows}


def kill_once(folder: Path, events: int, delay_s: float) -> bool:
    """Kill a search ``delay_s`` after its ``events``-th event; whether it was still searching then."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        run(folder, write_end)
        os._exit(0)
    os.close(write_end)
    for _ in range(events):
        os.read(read_end, 1)  # returns at once, empty, when the child has ended
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(read_end)
    return os.WIFSIGNALED(status)


def main() -> None:
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    snapshots = []
    killed = 0
    for round_ in range(kills):
        at_start = round_ % 3 == 2
        events, longest_s = (0, 0.3) if at_start else (rng.randint(1, 5), 0.04)
        killed += kill_once(folder, events, rng.uniform(0.0, longest_s))
        snapshots.append(finished(folder))
    run(folder)
    print(json.dumps({"killed": killed, "snapshots": snapshots, "final": finished(folder)}))  # noqa: T201


if __name__ == "__main__":
    main()
