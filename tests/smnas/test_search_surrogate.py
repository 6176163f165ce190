"""The model of AP, what a rung says of the end, and the gain that orders designs."""

import math
from dataclasses import replace

import numpy as np
import pytest

from smnas.search.candidate import Candidate
from smnas.search.expected_gain import expected_gain
from smnas.search.pareto import as_points, hypervolume
from smnas.search.rungs import lines_to_the_end, rung_epochs, trainings
from smnas.search.surrogate import GaussianProcess
from smnas.space.preset import load_space

NANO = load_space("nano")


def test_the_model_predicts_what_it_has_not_seen_and_knows_how_well() -> None:
    rng = np.random.default_rng(0)

    def truth(x: np.ndarray) -> np.ndarray:
        return np.sin(3 * x[:, 0]) + x[:, 1] ** 2 - 0.5 * x[:, 2] * x[:, 3]

    x, other = rng.random((80, 5)), rng.random((400, 5))
    model = GaussianProcess.fit(x, truth(x))
    mean, deviation = model.predict(other)
    errors = mean - truth(other)
    assert np.abs(errors).mean() < 0.2 * truth(other).std()
    assert 0.85 < (np.abs(errors) < 2 * deviation).mean() <= 1.0
    far = model.predict(np.full((1, 5), 5.0))[1]
    assert far[0] > 3 * deviation.max(), "far from everything it knows little"


def test_noisy_observations_count_for_less() -> None:
    x = np.linspace(0, 1, 9)[:, None]
    y = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    noise = np.where(y > 0, 1.0, 0.0)
    trusting = GaussianProcess.fit(x, y).predict(np.array([[0.5]]))[0][0]
    doubting = GaussianProcess.fit(x, y, noise).predict(np.array([[0.5]]))[0][0]
    assert doubting < 0.5 * trusting


@pytest.mark.parametrize("count", [1, 2])
def test_hardly_any_observations_are_enough(count: int) -> None:
    model = GaussianProcess.fit(np.zeros((count, 3)), np.full(count, 0.4))
    mean, deviation = model.predict(np.array([[0.0, 1.0, 2.0]]))
    assert mean[0] == pytest.approx(0.4)
    assert np.isfinite(deviation).all()


def test_the_expected_gain_is_the_mean_growth_of_the_hypervolume() -> None:
    front = as_points([(0.2, 2.0), (0.35, 4.0), (0.3, 5.0), (0.5, 8.0), (0.9, 12.0)])
    reference = (0.1, 10.0)
    mean, deviation = np.array([0.3, 0.45, 0.2, 0.6]), np.array([0.1, 0.05, 0.2, 0.1])
    latency = np.array([1.0, 4.0, 9.0, 11.0])
    before = hypervolume(front, reference)
    rng = np.random.default_rng(1)
    for i, gain in enumerate(expected_gain(front, mean, deviation, latency, reference)):
        drawn = rng.normal(mean[i], deviation[i], 3000)
        grown = [hypervolume(np.vstack([front, [ap, latency[i]]]), reference) - before for ap in drawn]
        assert gain == pytest.approx(np.mean(grown), abs=4 * np.std(grown) / math.sqrt(3000) + 1e-12)


def test_a_gain_needs_no_front() -> None:
    gain = expected_gain(as_points([]), np.array([0.5]), np.array([1e-9]), np.array([2.0]), (0.1, 10.0))
    assert gain[0] == pytest.approx(0.4 * 8.0)


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(1, (1,)), (3, (3,)), (8, (3, 8)), (9, (3, 9)), (27, (3, 9, 27)), (36, (4, 12, 36))]
)
def test_rungs_end_with_the_budget(epochs: int, rungs: tuple[int, ...]) -> None:
    assert rung_epochs(epochs) == rungs


def trial(number: int, index: int, ap: float, start: int, stop: int | None, state: str = "complete") -> Candidate:
    return Candidate(
        number,
        NANO.structures[index],
        "joint",
        "random",
        None,
        state,  # type: ignore[arg-type]
        0,
        9,
        start_epoch=start,
        stop_epoch=stop,
        latency_ms=5.0,
        ap=ap if state == "complete" else None,
    )


def test_a_history_is_read_as_trainings() -> None:
    history = [
        trial(0, 0, 0.1, 0, 1),
        trial(1, 1, 0.2, 0, 1),
        trial(2, 1, 0.3, 1, 3),
        trial(3, 1, 0.4, 3, None),
        trial(4, 2, 0.2, 0, 1),
        trial(5, 2, 0.0, 1, 3, state="running"),
        replace(trial(6, 3, 0.0, 0, 1, state="failed"), reason="diverged"),
        replace(trial(7, 4, 0.0, 0, 1, state="pruned"), reason="over"),
        replace(trial(8, 5, 0.9, 0, None), stage="final"),
    ]
    found = {NANO.structures.index(a): t for a, t in trainings(history).items()}
    assert sorted(found) == [0, 1, 2, 3]
    assert found[1].ap_at == {1: 0.2, 3: 0.3, 9: 0.4}
    assert [found[i].stopped for i in range(4)] == [True, False, False, False]
    assert [found[i].asked_epoch for i in range(4)] == [1, 9, 3, 1]
    assert [c.own_epochs for c in history[:4]] == [1, 1, 2, 6]


def test_lines_are_learned_from_the_trainings_that_went_on() -> None:
    rng = np.random.default_rng(3)
    history = []
    for i in range(40):
        end = 0.2 + 0.01 * i
        history.append(trial(len(history), i, 0.5 * end + rng.normal(0, 0.01), 0, 1))
        if i % 2:
            history.append(trial(len(history), i, end, 1, None))
    lines = lines_to_the_end(trainings(history).values(), (1, 9))
    assert lines[9].at(0.37) == 0.37
    assert lines[1].at(0.2) == pytest.approx(0.4, abs=0.03)
    assert lines[1].variance < 0.03**2
    unknown = lines_to_the_end(trainings([c for c in history if c.stop_epoch]).values(), (1, 9))
    assert unknown[1].at(0.2) == 0.2, "nobody went on: the AP stands for itself"
    assert unknown[1].variance > lines[1].variance
