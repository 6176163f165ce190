"""A scorer that prepares: in a module that worker processes and a cluster can import."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import search_stub as stub

from profiler.errors import UserError
from smnas.scoring.base import Score

STEPS = 5


@dataclass
class Preparing:
    """Writes a file in steps before the first score, notes every step and reading, and scores by what it has read.

    Attributes:
        dies_at: The process dies before this step, for as long as ``alive`` is not there beside the file.
        refuses: A user's mistake instead.
    """

    dies_at: int | None = None
    refuses: bool = False
    name: str = "preparing"
    metric: str = "shared score"
    trains: bool = False
    stops: bool = False
    shared: str = ""

    def prepare(self, context) -> None:  # type: ignore[no-untyped-def]
        if self.refuses:
            raise UserError("weights must be there, but there are none")
        file = context.folder / "shared.txt"
        done = file.read_text().split() if file.exists() else []
        for step in range(len(done), STEPS):
            if step == self.dies_at and not (context.folder / "alive").exists():
                os._exit(1)
            context.on_progress(f"step {step}", step / STEPS)
            with file.open("a") as out:
                out.write(f"{step}\n")
        self.shared = file.read_text()
        with (context.folder / "prepared-by").open("a") as out:
            out.write(f"{os.getpid()}\n")

    def score(self, architecture, *, seed, epochs, out_dir: Path, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
        assert self.shared.split() == [str(step) for step in range(STEPS)]
        time.sleep(0.02)
        return Score(stub.load_of(architecture))


@dataclass(frozen=True)
class Make:
    """Makes it, in a worker or on a cluster."""

    dies_at: int | None = None
    refuses: bool = False

    def __call__(self, worker: int) -> Preparing:
        return Preparing(self.dies_at, self.refuses)


def on_cluster(_devices: tuple[str, ...]) -> Make:
    return Make()


def main() -> None:
    """A whole search: ``python preparing_scorer.py FOLDER STEP`` dies at a step of preparing."""
    from smnas.scoring.workers.processes import InProcess
    from smnas.search.context import SearchContext
    from smnas.search.run import run_search
    from smnas.space.preset import load_space

    scorer = Preparing(dies_at=int(sys.argv[2]))
    run_search(
        SearchContext(Path(sys.argv[1]), settings(), load_space("nano"), stub.StubLatency()),
        scorers=InProcess(scorer),
        trainers=InProcess(stub.StubScorer()),
        complexity=stub.complexity,
    )


def settings():  # type: ignore[no-untyped-def]
    return stub.settings(
        scorer="preparing",
        metric="shared score",
        trains=False,
        partial_order=False,
        generation=2,
        final_seeds=1,
        trials=stub.StageTrials(structural=3, modular=2),
    )


if __name__ == "__main__":
    main()
