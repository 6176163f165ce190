"""Scores made by worker processes: the same outcomes as in one process, whatever happens to a worker."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path

import pool_scorers as scripted
import pytest

from profiler.errors import UserError
from smnas.scoring.base import Score, ScoringFailedError
from smnas.scoring.workers.processes import InProcess, ScorerNotMadeError, ScorerPool, Workers

STAND_INS = next(folder for folder in Path(__file__).parents if folder.name == "tests") / "stand_ins"


def outcomes(pool: ScorerPool, jobs: list) -> dict[int, object]:  # type: ignore[type-arg]
    return {
        job.number: outcome.value if isinstance(outcome, Score) else outcome.reason
        for job, outcome in pool.score_all(jobs)
    }


@pytest.mark.slow
def test_workers_give_the_outcomes_of_one_process(tmp_path: Path) -> None:
    script = {11: "diverge", 13: "odd"}
    alone = outcomes(InProcess(scripted.make(script, 0)), scripted.jobs(tmp_path / "alone", 6))
    assert alone == {
        0: 10.0,
        1: "the loss is not finite in step 3",
        2: 12.0,
        3: "unexpected ZeroDivisionError: division by zero",
        4: 14.0,
        5: 15.0,
    }
    began: list[int] = []
    heard: list[int] = []
    with Workers(partial(scripted.make, script), 2, threads=1) as pool:
        jobs = scripted.jobs(tmp_path / "workers", 6)
        found = dict(
            pool.score_all(jobs, lambda job: began.append(job.number), lambda job, _progress: heard.append(job.number))
        )
        assert outcomes(pool, []) == {}
        again = outcomes(pool, scripted.jobs(tmp_path / "again", 2))
    assert {
        job.number: outcome.value if isinstance(outcome, Score) else outcome.reason for job, outcome in found.items()
    } == alone
    assert again == {0: 10.0, 1: alone[1]}
    assert began == [0, 1, 2, 3, 4, 5], "jobs begin in their order"
    assert sorted(heard) == began
    first = next(outcome for job, outcome in found.items() if job.number == 4)
    assert isinstance(first, Score)
    assert first.epochs == 5
    assert first.checkpoint == tmp_path / "workers" / "4" / "checkpoint.pt"
    workers = {int((tmp_path / "workers" / str(n) / "tries").read_text()) for n in range(6)}
    assert len(workers) == 2
    assert os.getpid() not in workers


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alone", "workers"])
def test_what_is_not_the_architectures_fault_is_raised(tmp_path: Path, kind: str) -> None:
    def pool(script: dict[int, str]) -> ScorerPool:
        make = partial(scripted.make, script)
        return InProcess(make(0)) if kind == "alone" else Workers(make, 1)

    user = pool({10: "user"})
    with pytest.raises(UserError, match="the data set is gone"):
        outcomes(user, scripted.jobs(tmp_path, 1))
    disk = pool({10: "disk"})
    with pytest.raises(OSError, match="No space left") as caught:
        outcomes(disk, scripted.jobs(tmp_path, 1))
    assert caught.value.errno == 28
    assert caught.value.filename == str(tmp_path / "0" / "checkpoint.pt")
    image = pool({10: "image"})
    with pytest.raises(OSError, match=r"^image file is truncated$"):
        outcomes(image, scripted.jobs(tmp_path, 1))
    for one in (user, disk, image):
        if isinstance(one, Workers):
            one.close()


def test_a_scorer_that_can_not_be_made_is_raised(tmp_path: Path) -> None:
    with Workers(scripted.refuse, 1) as pool, pytest.raises(UserError, match="no data for worker 0"):
        outcomes(pool, scripted.jobs(tmp_path, 1))


def test_a_worker_that_breaks_down_before_its_first_score_fails_no_architecture(tmp_path: Path) -> None:
    with Workers(scripted.break_down, 1) as pool, pytest.raises(ScorerNotMadeError) as error:
        outcomes(pool, scripted.jobs(tmp_path, 2))
    assert str(error.value) == "worker 0 has no scorer: RuntimeError: no CUDA for worker 0"


def test_nothing_of_a_failed_training_is_kept_while_the_next_one_runs(tmp_path: Path) -> None:
    class Weights:
        pass

    begun: list[weakref.ref[Weights]] = []
    left_behind: list[bool] = []

    class OutOfMemory(scripted.Scripted):
        def score(self, architecture, *, seed, epochs, out_dir, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
            left_behind.append(any(one() is not None for one in begun))
            weights = Weights()
            begun.append(weakref.ref(weights))
            try:
                raise MemoryError
            except MemoryError as error:
                raise ScoringFailedError("out of memory") from error

    pool = InProcess(OutOfMemory({}, 0))
    kept = None
    for _, outcome in pool.score_all(scripted.jobs(tmp_path, 3)):
        kept = outcome  # as the search's loop does until the next outcome is there
    assert isinstance(kept, ScoringFailedError)
    assert left_behind == [False] * 3


@pytest.mark.slow
def test_a_job_whose_worker_dies_is_tried_once_more(tmp_path: Path) -> None:
    script = {10: "die once", 11: "die", 12: "exit"}
    began: list[int] = []
    with Workers(partial(scripted.make, script), 2) as pool:
        found = {
            job.number: outcome
            for job, outcome in pool.score_all(scripted.jobs(tmp_path, 4), lambda job: began.append(job.number))
        }
    assert isinstance(found[0], Score)
    assert isinstance(found[3], Score)
    assert isinstance(found[1], ScoringFailedError)
    assert found[1].reason == "its process died 2 times, by SIGKILL (out of memory is the usual reason)"
    assert isinstance(found[2], ScoringFailedError)
    assert found[2].reason == "its process died 2 times, with exit code 3"
    assert sorted(began) == [0, 1, 2, 3], "a job begins once"
    tries = [len((tmp_path / str(n) / "tries").read_text().split()) for n in range(4)]
    assert tries == [2, 2, 2, 1]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc, which is Linux's")
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, str(STAND_INS / "pool_scorers.py"), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        workers = json.loads(parent.stdout.readline())
        assert all(map(_alive, workers))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, workers))
