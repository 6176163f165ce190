"""Do searches lose or repeat a finished trial when they are killed, a hundred times, and do they end where others do?

Short searches over the nano space, through the real loop and study, with a scorer and a latency that answer at once. A
process of its own is ended by SIGKILL at a random moment: every fourth time counted from its start, else from one of
its first events. It is started again until the search is done, and then the next search begins, with another seed and
the next strategy. After every kill: each trial that was finished before is in the study as it was, with the same values
and the same end. At the end of each search: no finished training run was made again, and trials and front are
those of the same search left alone.

    OMP_NUM_THREADS=1 python -m benchmarks.reliability.search_kills --kills 100
"""

import os
import random
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import optuna

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.kills import Survival, finished_trials, killed_process
from benchmarks.reliability.kill_resume import candidates
from benchmarks.search.search_overhead import InstantLatency, InstantScorer, instant_complexity, instant_settings
from smnas.scoring.base import Score
from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.progress import SearchEvent
from smnas.search.ranking.ranking import read_ranking
from smnas.search.run import run_search
from smnas.search.study.settings import StageTrials
from smnas.space.encoding import Encoding
from smnas.space.preset import load_space

SPACE = load_space("nano")
ENCODING = Encoding(SPACE)
STRATEGIES = ("sm-nas", "halving", "regularized-evolution")
MADE = "training runs.txt"  # a line for every finished training run, beside the study


class NotingScorer(InstantScorer):
    """Notes what it finishes, as a training run leaves its checkpoint: before the study has the trial."""

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


def search(folder: Path, strategy: str, seed: int, writing: int | None = None) -> None:
    """Run a search to its end, with a line to the file descriptor for every event."""

    def announce(_event: SearchEvent) -> None:
        if writing is not None:
            os.write(writing, b"event\n")

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
        SearchContext(folder / "run", settings, SPACE, InstantLatency(ENCODING)),
        scorers=InProcess(scorer),
        complexity=partial(instant_complexity, ENCODING),
        on_event=announce,
    )


def completed(folder: Path) -> set[str]:
    """The training runs of finished trials, as :class:`NotingScorer` writes them."""
    return {
        f"{c.architecture} {c.seed} {c.epochs} {c.reached_epoch}"
        for c in candidates(folder / "run")
        if c.state == "complete"
    }


def runs_made(folder: Path) -> Counter[str]:
    """How often each training run was made."""
    return Counter((folder / MADE).read_text().splitlines()) if (folder / MADE).exists() else Counter()


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng = random.Random(args.seed)
    repeated = between = other_trials = other_fronts = searches = rounds = 0
    finished_at_kill: list[int] = []
    trials = Survival()
    with tempfile.TemporaryDirectory() as root:
        while len(finished_at_kill) < args.kills:
            strategy, seed = STRATEGIES[searches % len(STRATEGIES)], 1 + searches
            folder, whole = Path(root) / f"killed-{searches}", Path(root) / f"whole-{searches}"
            trials.known = {}
            settled: dict[str, int] = {}  # how often the training run of a finished trial was made by then
            while True:
                rounds += 1
                events, longest_s = (0, 0.3) if rounds % 4 == 0 else (rng.randint(1, 12), 0.03)
                work = partial(search, folder, strategy, seed)
                _, killed = killed_process(work, events, rng.uniform(0.0, longest_s))
                trials.check(finished_trials(folder / "run"))
                if not killed:
                    break
                if trials.known:
                    settled = {key: settled.get(key, runs_made(folder)[key]) for key in completed(folder)}
                finished_at_kill.append(len(trials.known))
            search(whole, strategy, seed)
            made = runs_made(folder)
            repeated += sum(made[key] != count for key, count in settled.items())
            # What a kill hits between the end of a training run and that of its trial is made again here; real
            # training finds its checkpoint then.
            between += sum(made.values()) - len(made)
            other_trials += candidates(folder / "run") != candidates(whole / "run")
            other_fronts += read_ranking(folder / "run") != read_ranking(whole / "run")
            searches += 1
            print(f"{searches} searches, {len(finished_at_kill)} kills", flush=True)
    found = {
        "kills": len(finished_at_kill),
        "searches": searches,
        "strategies": STRATEGIES,
        "finished_trials_at_each_kill": finished_at_kill,
        "finished_trials_lost": trials.lost,
        "finished_trials_changed": trials.changed,
        "finished_trials_trained_again": repeated,
        "trainings_killed_between_their_end_and_their_trials": between,
        "searches_with_other_trials_than_unkilled": other_trials,
        "searches_with_another_ranking_than_unkilled": other_fronts,
    }
    print(found)
    keep_answer("search-kills", __doc__, found)
    return 0 if not (trials.lost or trials.changed or repeated or other_trials or other_fronts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
