"""Do searches lose or repeat a finished trial when they are killed, a hundred times, and do they end where others do?

Short searches over the nano space, through the real loop and study, with a scorer and a latency that answer at once. A
process of its own is ended by SIGKILL at a random moment: every fourth time counted from its start, else from one of
its first events. It is started again until the search is done, and then the next search begins, with another seed and
the next strategy. After every kill: each trial that was finished before is in the study as it was, with the same values
and the same end. At the end of each search: no training that was finished was made again, and trials and front are
those of the same search that nobody killed.

    OMP_NUM_THREADS=1 python -m benchmarks.reliability.search_kills --kills 100
"""

import argparse
import os
import random
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna

from benchmarks.common.answers import keep_answer
from benchmarks.search.search_overhead import InstantLatency, InstantScorer, instant_complexity, instant_settings
from smnas.scoring.base import Score
from smnas.scoring.workers.processes import InProcess
from smnas.search.progress import SearchEvent
from smnas.search.ranking.ranking import read_ranking
from smnas.search.run import run_search
from smnas.search.study.candidate import Candidate
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.settings import StageTrials, read_settings
from smnas.space.encoding import Encoding
from smnas.space.preset import load_space

SPACE = load_space("nano")
ENCODING = Encoding(SPACE)
STRATEGIES = ("sm-nas", "halving", "regularized-evolution")
MADE = "training runs.txt"  # a line for every training that was finished, beside the study
Snapshot = dict[int, tuple[object, ...]]


class NotingScorer(InstantScorer):
    """Notes what it finishes, as a training leaves its checkpoint: before the study knows of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(ENCODING)
        self._made = folder / MADE

    def score(self, architecture, *, seed, epochs, out_dir, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
        return self._noted(architecture, seed, epochs, epochs)

    def score_until(self, architecture, *, seed, epochs, stop_epoch, out_dir, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
        return self._noted(architecture, seed, epochs, stop_epoch)

    def _noted(self, architecture, seed: int, epochs: int, reached: int) -> Score:  # type: ignore[no-untyped-def]
        time.sleep(0.005)
        score = self._score(architecture, epochs, reached)
        with self._made.open("a") as file:
            file.write(f"{architecture} {seed} {epochs} {reached}\n")
        return score


def search(folder: Path, strategy: str, seed: int, began: int | None = None) -> None:
    """Run a search to its end, telling the file descriptor ``began`` of every event."""

    def tell(_event: SearchEvent) -> None:
        if began is not None:
            os.write(began, b".")

    settings = instant_settings(
        "nano",
        strategy,
        StageTrials(structural=10, modular=10),
        seed=seed,
        generation=3,
        final_epochs=12,
        final_seeds=2,
        top=2,
    )
    folder.mkdir(exist_ok=True)
    scorer = NotingScorer(folder)
    run_search(
        folder / "run",
        settings,
        SPACE,
        scorers=InProcess(scorer),
        latency=InstantLatency(ENCODING),
        complexity=partial(instant_complexity, ENCODING),
        on_event=tell,
    )


def killed_search(folder: Path, strategy: str, seed: int, events: int, delay_s: float) -> bool:
    """Search in a process of its own, killed ``delay_s`` after its ``events``-th event; whether it was still there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            search(folder, strategy, seed, writing)
            code = 0
        finally:
            os._exit(code)  # nothing that the parent has begun is finished here
    os.close(writing)
    for _ in range(events):
        os.read(reading, 1)  # empty, and at once, when the child has ended
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)  # a child that has ended still waits to be asked how
    _, status = os.waitpid(child, 0)
    os.close(reading)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"the search ended with exit code {os.waitstatus_to_exitcode(status)}")
    return os.WIFSIGNALED(status)


def finished(folder: Path) -> Snapshot:
    """Every finished trial with its state, end and values, by SQL of this script's own."""
    file = folder / "run" / "study.db"
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
    return {number: tuple(facts) for number, *facts in rows}


def trials(folder: Path) -> list[Candidate]:
    """All trials, without the seconds, which are no result."""
    run = folder / "run"
    return [replace(candidate, seconds=None) for candidate in read_candidates(run, read_settings(run))]


def completed(folder: Path) -> set[str]:
    """The training runs of finished trials, as :class:`NotingScorer` writes them."""
    return {f"{c.architecture} {c.seed} {c.epochs} {c.reached_epoch}" for c in trials(folder) if c.state == "complete"}


def trainings(folder: Path) -> Counter[str]:
    """How often each training was made."""
    return Counter((folder / MADE).read_text().splitlines()) if (folder / MADE).exists() else Counter()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng = random.Random(asked.seed)
    lost = changed = repeated = between = other_trials = other_fronts = searches = rounds = 0
    finished_at_kill: list[int] = []
    with tempfile.TemporaryDirectory() as root:
        while len(finished_at_kill) < asked.kills:
            strategy, seed = STRATEGIES[searches % len(STRATEGIES)], 1 + searches
            folder, whole = Path(root) / f"killed-{searches}", Path(root) / f"whole-{searches}"
            known: Snapshot = {}
            settled: dict[str, int] = {}  # how often the training of a finished trial was made by then
            while True:
                rounds += 1
                at_start = rounds % 4 == 0
                events, longest_s = (0, 0.3) if at_start else (rng.randint(1, 12), 0.03)
                killed = killed_search(folder, strategy, seed, events, rng.uniform(0.0, longest_s))
                now = finished(folder)
                lost += sum(number not in now for number in known)
                changed += sum(now[number] != facts for number, facts in known.items() if number in now)
                known = now
                if not killed:
                    break
                if now:
                    settled = {key: settled.get(key, trainings(folder)[key]) for key in completed(folder)}
                finished_at_kill.append(len(now))
            search(whole, strategy, seed)
            made = trainings(folder)
            repeated += sum(made[key] != count for key, count in settled.items())
            # What a kill hits between the end of a training and that of its trial is made again here; a real training
            # finds its checkpoint then.
            between += sum(made.values()) - len(made)
            other_trials += trials(folder) != trials(whole)
            other_fronts += read_ranking(folder / "run") != read_ranking(whole / "run")
            searches += 1
            print(f"{searches} searches, {len(finished_at_kill)} kills", flush=True)
    found = {
        "kills": len(finished_at_kill),
        "searches": searches,
        "strategies": STRATEGIES,
        "finished_trials_at_each_kill": finished_at_kill,
        "finished_trials_lost": lost,
        "finished_trials_changed": changed,
        "finished_trials_trained_again": repeated,
        "trainings_killed_between_their_end_and_their_trials": between,
        "searches_with_other_trials_than_unkilled": other_trials,
        "searches_with_another_ranking_than_unkilled": other_fronts,
    }
    print(found)
    keep_answer("search-kills", "Does a search that is killed a hundred times end as one that is not?", found)
    return 0 if not (lost or changed or repeated or other_trials or other_fronts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
