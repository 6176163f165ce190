"""What is counted of a search's trials as they come is what counting all of them anew gives."""

from dataclasses import replace

import numpy as np
import pytest

from smnas.search.strategies.halving.rungs import TrainingRuns
from smnas.search.study.candidate import Candidate, in_search, will_count
from smnas.search.study.history import History
from smnas.space.preset import load_space

NANO = load_space("nano")
EPOCHS = 9


def candidate(number: int, rng: np.random.Generator, generation: int) -> Candidate:
    state = str(rng.choice(["running", "running", "complete", "failed", "pruned"]))
    return Candidate(
        number,
        NANO.structures[int(rng.integers(40))],
        str(rng.choice(["baseline", "structural", "joint", "final"])),  # type: ignore[arg-type]
        str(rng.choice(["random", "mutation"])),  # type: ignore[arg-type]
        None,
        state,  # type: ignore[arg-type]
        0,
        EPOCHS,
        stop_epoch=[None, 3][int(rng.integers(2))],
        generation=generation if state == "running" else None,
        latency_ms=None if state == "failed" else float(rng.uniform(1, 9)),
        score=float(rng.random()) if state == "complete" else None,
    )


def check(history: History, every: list[Candidate]) -> None:
    assert list(history) == every
    assert len(history) == len(every)
    assert history[-1] is every[-1]
    assert list(history[2:5]) == every[2:5]
    assert set(history.seen) == {c.architecture for c in every}
    for c in every:
        assert history.latest(c.architecture) is [d for d in every if d.architecture == c.architecture][-1]
    assert list(history.running) == [c for c in every if c.state == "running"]
    assert list(history.whole) == [c for c in every if in_search(c)]
    last = max((c.generation for c in every if c.generation is not None), default=0)
    assert history.generation == last
    assert list(history.members) == [c for c in every if c.generation == last]
    for stage in ("baseline", "structural", "modular", "joint"):
        own = [c for c in every if c.stage == stage]
        counted = [c for c in own if will_count(c)]
        tally = history.tally(stage)  # type: ignore[arg-type]
        assert tally.trials == len(own)
        assert tally.failed == sum(c.state == "failed" for c in own)
        assert tally.training_runs == len(counted)
        assert tally.random == sum(c.origin == "random" for c in counted)
        assert tally.epochs == sum(c.own_epochs for c in counted)


@pytest.mark.parametrize("seed", range(4))
def test_counting_as_trials_come_and_end_is_counting_all_of_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    history, every = History(), []
    for step in range(60):
        running = [c for c in every if c.state == "running"]
        if running and rng.random() < 0.5:
            began = running[int(rng.integers(len(running)))]  # in any order, as workers end them
            ended = replace(began, state="complete", score=float(rng.random()))
            if rng.random() < 0.2:
                ended = replace(began, state="failed", reason="diverged")
            history.finish(ended)
            every[ended.number] = ended
        else:
            history.append(candidate(len(every), rng, step // 5))
            every.append(history[-1])
        check(history, every)
    check(History(every), every)


def test_a_history_of_a_history_is_itself() -> None:
    history = History([candidate(0, np.random.default_rng(0), 0)])
    assert History.of(history) is history
    assert list(History.of(list(history))) == list(history)


def columns(training_runs: TrainingRuns) -> list[list[object]]:
    return [
        [c.number for c in training_runs.last],
        training_runs.latency_ms.tolist(),
        training_runs.asked_epoch.tolist(),
        training_runs.stopped.tolist(),
        np.nan_to_num(training_runs.ap((3, EPOCHS)), nan=-1.0).tolist(),
    ]


def test_trainings_that_are_followed_are_those_of_the_whole_history() -> None:
    rng = np.random.default_rng(5)
    history = History()
    designs = iter(NANO.structures)
    for _ in range(80):
        stopped = [c for c in history.training_runs.last if c.state == "complete" and c.stop_epoch is not None]
        if history.running and rng.random() < 0.5:
            began = history.running[int(rng.integers(len(history.running)))]
            history.finish(replace(began, state="complete", score=float(rng.random())))
        elif stopped and rng.random() < 0.5:
            before = stopped[int(rng.integers(len(stopped)))]
            more = replace(before, number=len(history), state="running", score=None, start_epoch=3, stop_epoch=None)
            history.append(more)
        else:
            first = candidate(len(history), rng, 0)
            history.append(replace(first, architecture=next(designs), stage="joint", stop_epoch=3))
        assert columns(history.training_runs) == columns(History(history).training_runs)
    assert sum(c.start_epoch == 3 for c in history) > 10
