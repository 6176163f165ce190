"""How long does the search itself take for a trial, everything but training and measuring, up to thousands of trials?

Runs searches in the small space through the real loop and study with a scorer and a latency that answer at once, and
keeps CPU seconds and peak memory after every few hundred trials. Short runs are trials as well, and pruned ones.
``--begin`` resumes a search that has that many trials already: random designs, trained to the end, written all at once.

    python -m benchmarks.search.search_overhead --trials 5500 --keep
    python -m benchmarks.search.search_overhead --begin 5000 --trials 5500 --strategies halving,sm-nas --keep
"""

import argparse
import hashlib
import json
import math
import os
import resource
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
from optuna.distributions import distribution_to_json

from benchmarks.common.answers import argument_parser, keep_answer
from profiler.prediction.predict import Latency
from smnas.scoring.base import Score
from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.progress import SearchEvent
from smnas.search.run import run_search
from smnas.search.strategies.by_name import STRATEGIES, get_strategy
from smnas.search.strategies.choices import DetectorChoices
from smnas.search.study.candidate import Candidate, Complexity, StageName
from smnas.search.study.optuna_study import Study, _attributes
from smnas.search.study.parameters import DISTRIBUTIONS, parameters_of
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import DataFacts, SearchSettings, StageTrials, prepare_run_folder
from smnas.space.architecture import Architecture
from smnas.space.encoding import Encoding
from smnas.space.preset import Space, load_space


def luck(*key: object) -> float:
    """A number in 0..1 that only the key decides."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


class EnoughTrialsError(Exception):
    """The search has made ``--trials`` trials."""


class InstantScorer:
    """AP that grows with the cost and the epochs, with luck."""

    name, metric, trains, stops = "instant", "AP", True, True

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def score(self, architecture, *, seed, epochs, out_dir, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
        return self._score(architecture, epochs, epochs)

    def score_until(self, architecture, *, seed, epochs, stop_epoch, out_dir, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
        return self._score(architecture, epochs, stop_epoch)

    def _score(self, architecture: Architecture, epochs: int, reached: int) -> Score:
        ap = 0.02 * float(self._encoding.vector(architecture)[-5]) * (1 - 0.6 ** (9 * reached / epochs))
        ap += 0.05 * luck("ap", architecture) + 0.01 * luck(architecture, reached)
        return Score(ap, {"ap": ap}, float(reached), reached, None)


class InstantLatency:
    """Latency that grows with the cost, with luck."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def __call__(self, architecture: Architecture) -> Latency:
        cost = math.exp(float(self._encoding.vector(architecture)[-5]) / 3)
        ms = 0.01 * cost * (0.9 + 0.2 * luck("latency", architecture))
        return Latency(ms=ms, low_ms=0.97 * ms, high_ms=1.03 * ms, calibrated=True)


def instant_complexity(encoding: Encoding, architecture: Architecture) -> Complexity:
    """Parameters and operations that grow with the cost."""
    cost = math.exp(float(encoding.vector(architecture)[-5]))
    return Complexity(int(cost / 100), int(cost))


def instant_settings(preset: str, strategy: str, trials: StageTrials, **changes: object) -> SearchSettings:
    """Settings of a search that trains nothing."""
    values = {
        "smnas": "0",
        "preset": preset,
        "data": DataFacts(root="none", classes=("one",), train_images=1, val_images=1),
        "device": "none",
        "backend": "none",
        "precision": "fp32",
        "recipe": {"epochs": 9},
        "epochs": 9,
        "scorer": "instant",
        "strategy": strategy,
        "trials": trials,
        "generation": 8,
        "final_epochs": 0,
    }
    return SearchSettings(**(values | changes))  # type: ignore[arg-type]


def earlier(settings: SearchSettings, space: Space, encoding: Encoding, count: int) -> list[Candidate]:
    """The baseline and ``count - 1`` random designs as trials of the settings' strategy, without repetition."""
    rng = np.random.default_rng(1)
    choices, latency, scorer = DetectorChoices(space), InstantLatency(encoding), InstantScorer(encoding)
    stages = [
        stage.name for stage in get_strategy(settings.strategy).make(SearchContext(Path(), settings, space)).stages
    ]
    found: dict[Architecture, Candidate] = {}
    while len(found) < count:
        number = len(found)
        stage: StageName = stages[number * len(stages) // count] if found else "baseline"
        structure = choices.random_structure(rng)
        design = structure if stage == "structural" else choices.random_variant(structure, rng)
        design = design if found else space.baseline_architecture
        predicted, size = latency(design), instant_complexity(encoding, design)
        ap = scorer._score(design, settings.epochs, settings.epochs).value
        found.setdefault(
            design,
            Candidate(
                number,
                design,
                stage,
                "random" if found else "baseline",
                str(next(iter(found))) if stage == "modular" else None,
                "complete",
                settings.seed,
                settings.epochs,
                generation=number // settings.generation,
                latency_ms=predicted.ms,
                latency_low_ms=predicted.low_ms,
                latency_high_ms=predicted.high_ms,
                latency_calibrated=True,
                parameters=size.parameters,
                flops=size.flops,
                score=ap,
                metrics={"ap": ap},
                seconds=1.0,
            ),
        )
    return list(found.values())


def write_all(folder: Path, settings: SearchSettings, candidates: Sequence[Candidate]) -> None:
    """Make a run folder with these trials, by optuna's tables: one by one, as a search does, it would take minutes."""
    prepare_run_folder(folder, settings)
    Study(folder).close()
    now = datetime.now().isoformat(" ")
    with closing(sqlite3.connect(RunFolder(folder).study)) as database, database:
        trials, parameters, attributes, values = [], [], [], []
        for c in candidates:
            trials.append((c.number + 1, c.number, 1, "COMPLETE", now, now))
            for name, value in parameters_of(c.architecture).items():
                distribution = DISTRIBUTIONS[name]
                row = (c.number + 1, name, distribution.to_internal_repr(value), distribution_to_json(distribution))
                parameters.append(row)
            attributes += [(c.number + 1, name, json.dumps(value)) for name, value in _attributes(c).items()]
            values += [(c.number + 1, i, value, "FINITE") for i, value in enumerate(c.point)]
        put = "INSERT INTO {} VALUES ({})"
        database.executemany(put.format("trials", "?, ?, ?, ?, ?, ?"), trials)
        database.executemany(put.format("trial_params", "NULL, ?, ?, ?, ?"), parameters)
        database.executemany(put.format("trial_user_attributes", "NULL, ?, ?, ?"), attributes)
        database.executemany(put.format("trial_values", "NULL, ?, ?, ?, ?"), values)


def measure(strategy: str, args: argparse.Namespace, on_row: Callable[[list[dict[str, float]]], None]) -> None:
    """CPU milliseconds a trial and peak memory, for each ``every`` trials; ``on_row`` gets the rows so far."""
    rows: list[dict[str, float]] = []
    last: tuple[int, float] | None = None

    def on_event(event: SearchEvent) -> None:
        nonlocal last
        if event.state == "running":
            return
        if last is None:  # what it takes to open a study is not a trial's
            last = (event.number, time.process_time())
        if event.number % args.every == 0 and event.number > last[0]:
            now = time.process_time()
            rows.append(
                {
                    "trials": event.number,
                    "cpu_ms_a_trial": round(1000 * (now - last[1]) / (event.number - last[0]), 2),
                    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                }
            )
            print(f"{strategy:22s} {rows[-1]}", flush=True)
            on_row(rows)
            last = (event.number, time.process_time())
            if event.number >= args.trials:
                raise EnoughTrialsError

    space = load_space("small")
    encoding = Encoding(space)
    # A search that has a begin has its first stage behind it.
    stages = StageTrials(structural=(args.begin or args.trials) // 2 - bool(args.begin), modular=args.trials)
    settings = instant_settings(space.name, strategy, stages, generation=args.generation)
    with tempfile.TemporaryDirectory() as folder, suppress(EnoughTrialsError):
        if args.begin:
            write_all(Path(folder) / "run", settings, earlier(settings, space, encoding, args.begin))
        run_search(
            SearchContext(Path(folder) / "run", settings, space, InstantLatency(encoding)),
            scorers=InProcess(InstantScorer(encoding)),
            complexity=partial(instant_complexity, encoding),
            on_event=on_event,
        )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--trials", type=int, default=5500, help="a multiple of --every")
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--begin", type=int, default=0, help="trials that are there already")
    parser.add_argument("--generation", type=int, default=2, help="candidates proposed at once; 2 is the command's own")
    parser.add_argument(
        "--strategies", default=",".join(name for name, kind in STRATEGIES.items() if not kind.one_stage)
    )
    parser.add_argument("--keep", action="store_true", help="keep the answer")
    args = parser.parse_args()
    for name in args.strategies.split(","):

        def keep(rows: list[dict[str, float]], name: str = name) -> None:
            worst = float(np.max([row["cpu_ms_a_trial"] for row in rows]))
            print(f"{name}: {worst} ms a trial at most, so far")
            if args.keep:
                found = {
                    "strategy": name,
                    "begin": args.begin,
                    "generation": args.generation,
                    "load": os.getloadavg()[0],
                    "worst_cpu_ms": worst,
                    "rows": rows,
                }
                question = f"search-overhead-{name}" + (f"-from-{args.begin}" if args.begin else "")
                keep_answer(question, __doc__, found)

        measure(name, args, keep)


if __name__ == "__main__":
    main()
