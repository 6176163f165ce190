"""Scorers for ``test_scoring_pool.py``, in a module that worker processes can import."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from profiler.errors import UserError
from smnas.scoring.base import Score, ScoringFailedError, ScoringProgress
from smnas.scoring.workers.processes import Job, Workers
from smnas.space.architecture import Architecture

ARCHITECTURE = Architecture.parse("basicblock_16_11-21-21-21+fpn_2-5_64+rpn+rcnn_256+128x128")


def jobs(folder: Path, count: int) -> list[Job]:
    return [Job(number, ARCHITECTURE, 10 + number, 1 + number, folder / str(number)) for number in range(count)]


class Scripted:
    """Does what its script says for a seed; else the score is the seed."""

    name = "scripted"

    def __init__(self, script: dict[int, str], worker: int) -> None:
        self.script = script
        self.worker = worker

    def score(self, architecture, *, seed, epochs, out_dir: Path, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
        out_dir.mkdir(parents=True, exist_ok=True)
        with (out_dir / "tries").open("a") as tries:
            tries.write(f"{os.getpid()}\n")
        first = len((out_dir / "tries").read_text().split()) == 1
        on_progress(ScoringProgress("train", 0.5, 1, epochs, 0.25, 10.0, None))
        match self.script.get(seed):
            case "diverge":
                raise ScoringFailedError("the loss is not finite in step 3")
            case "user":
                raise UserError("the data set is gone")
            case "disk":
                raise OSError(28, "No space left on device", str(out_dir / "checkpoint.pt"))
            case "image":
                raise OSError("image file is truncated")
            case "odd":
                raise ZeroDivisionError("division\nby zero")
            case "die once" if first:
                os.kill(os.getpid(), signal.SIGKILL)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "sleep":
                time.sleep(60)
        return Score(float(seed), {"worker": self.worker}, 0.0, epochs, out_dir / "checkpoint.pt")


def make(script: dict[int, str], worker: int) -> Scripted:
    return Scripted(script, worker)


def refuse(worker: int) -> Scripted:
    raise UserError(f"no data for worker {worker}")


def break_down(worker: int) -> Scripted:
    raise RuntimeError(f"no CUDA\nfor worker {worker}")


def main() -> None:
    """Begin two long scores and say who makes them: run by the test that kills this process."""
    folder = Path(sys.argv[1])
    with Workers(partial(make, {10: "sleep", 11: "sleep"}), 2) as pool:
        heard: list[int] = []

        def report(job: Job, _progress: ScoringProgress) -> None:
            heard.append(job.number)
            if len(heard) == 2:
                pids = [int((folder / str(n) / "tries").read_text()) for n in range(2)]
                print(json.dumps(pids), flush=True)  # noqa: T201

        list(pool.score_all(jobs(folder, 2), on_progress=report))


if __name__ == "__main__":
    main()
