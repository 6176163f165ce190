"""Scorers for ``test_scoring_ray.py`` and ``test_search_ray.py``, in a module that a cluster's processes can import."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import search_stub as stub

from smnas.scoring.base import Score, ScoringFailedError


@dataclass(frozen=True)
class Slow:
    """Takes a moment, says where it ran, and finds a finished score again."""

    devices: tuple[str, ...]
    name: str = "slow"

    def __call__(self, worker: int) -> "Slow":
        return self

    def score(self, architecture, *, seed, epochs, out_dir: Path, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
        out_dir.mkdir(parents=True, exist_ok=True)
        with (out_dir / "began").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        if seed == 13:
            raise ScoringFailedError("the loss is not finite")
        with (out_dir / "ended").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return Score(float(seed), {"ap": float(seed)}, 0.3, epochs, out_dir / "checkpoint.pt")


@dataclass(frozen=True)
class Searched:
    """Makes the stand-in of ``search_stub``, which takes a moment and notes that it ended."""

    devices: tuple[str, ...]

    def __call__(self, worker: int) -> "Noting":
        return Noting()


class Noting(stub.StubScorer):
    """The stand-in, slower."""

    def score(self, architecture, *, seed, epochs, out_dir: Path, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
        time.sleep(0.3)
        score: Score = super().score(architecture, seed=seed, epochs=epochs, out_dir=out_dir)
        with (out_dir / "ended").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return score
