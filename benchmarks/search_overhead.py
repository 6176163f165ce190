"""How long does the search itself take for a trial, everything but training and measuring, up to thousands of trials?

Runs searches in the small space through the real loop and study with a scorer and a latency that answer at once, and
keeps CPU seconds and peak memory after every few hundred trials. Short trainings are trials as well, and pruned ones.

    python benchmarks/search_overhead.py --trials 5500 --keep
"""

import argparse
import hashlib
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from answers import keep_answer

from profiler.predict import Latency
from smnas.scoring.base import Score
from smnas.scoring.pool import InProcess
from smnas.search.candidate import Complexity
from smnas.search.progress import SearchEvent
from smnas.search.run import run_search
from smnas.search.settings import DataFacts, SearchSettings, StageTrials
from smnas.search.strategies import STRATEGIES
from smnas.space.architecture import Architecture
from smnas.space.encoding import Encoding
from smnas.space.preset import load_space

QUESTION = "How long does the search itself take for a trial, up to thousands of trials?"


def luck(*key: object) -> float:
    """A number in 0..1 that only the key decides."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


class EnoughTrialsError(Exception):
    """The search has been followed as far as was asked."""


class InstantScorer:
    """AP that grows with the cost and the epochs, with luck."""

    name = "instant"

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

    def predict(self, architecture: Architecture) -> Latency:
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


def measure(
    strategy: str, trials: int, every: int, generation: int, on_row: Callable[[list[dict[str, float]]], None]
) -> None:
    """CPU milliseconds a trial and peak memory, for each ``every`` trials; the rows so far are told after each."""
    rows: list[dict[str, float]] = []
    last = (0, time.process_time())

    def on_event(event: SearchEvent) -> None:
        nonlocal last
        if event.state != "running" and event.number and event.number % every == 0 and event.number != last[0]:
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
            if event.number >= trials:
                raise EnoughTrialsError

    space = load_space("small")
    encoding = Encoding(space)
    stages = StageTrials(structural=trials // 2, modular=trials - trials // 2)
    settings = instant_settings(space.name, strategy, stages, generation=generation)
    with tempfile.TemporaryDirectory() as folder, suppress(EnoughTrialsError):
        run_search(
            Path(folder) / "run",
            settings,
            space,
            scorers=InProcess(InstantScorer(encoding)),
            latency=InstantLatency(encoding),
            complexity=partial(instant_complexity, encoding),
            on_event=on_event,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5500, help="a multiple of --every")
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--generation", type=int, default=2, help="candidates proposed at once; 2 is the command's own")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--keep", action="store_true", help="keep the answer")
    asked = parser.parse_args()
    for name in asked.strategies.split(","):

        def keep(rows: list[dict[str, float]], name: str = name) -> None:
            worst = float(np.max([row["cpu_ms_a_trial"] for row in rows]))
            print(f"{name}: {worst} ms a trial at most, so far")
            if asked.keep:
                found = {
                    "strategy": name,
                    "generation": asked.generation,
                    "load": os.getloadavg()[0],
                    "worst_cpu_ms": worst,
                    "rows": rows,
                }
                keep_answer(f"search-overhead-{name}", QUESTION, found)

        measure(name, asked.trials, asked.every, asked.generation, keep)


if __name__ == "__main__":
    main()
