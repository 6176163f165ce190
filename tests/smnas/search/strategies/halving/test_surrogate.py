"""The model of AP, what a rung says of the end, and the gain that orders designs."""

import math
from dataclasses import replace

import numpy as np
import pytest

from smnas.search.pareto import as_points, hypervolume
from smnas.search.strategies.halving.expected_gain import expected_gain
from smnas.search.strategies.halving.rungs import expected_ends, reached_rungs, rung_epochs
from smnas.search.strategies.halving.surrogate import GaussianProcess, Observed, negative_log_posterior, prior
from smnas.search.study.candidate import Candidate
from smnas.search.study.history import History
from smnas.space.preset import load_space

NANO = load_space("nano")


def test_the_model_predicts_what_it_has_not_seen_and_knows_how_well() -> None:
    rng = np.random.default_rng(0)

    def truth(x: np.ndarray) -> np.ndarray:
        return np.sin(3 * x[:, 0]) + x[:, 1] ** 2 - 0.5 * x[:, 2] * x[:, 3]

    x, other = rng.random((80, 5)), rng.random((400, 5))
    observed = Observed(x)
    model = GaussianProcess.fit(observed, truth(x))
    mean, deviation = model.predict(observed.compared(other))
    errors = mean - truth(other)
    assert np.abs(errors).mean() < 0.2 * truth(other).std()
    assert 0.85 < (np.abs(errors) < 2 * deviation).mean() <= 1.0
    assert model.expect(observed.compared(other)).tolist() == mean.tolist()
    far = model.predict(observed.compared(np.full((1, 5), 5.0)))[1]
    assert far[0] > 3 * deviation.max(), "far from everything it knows little"


def noisy_data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardized features and values, and variances of their noise."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(30, 3))
    y = np.sin(x[:, 0]) + 0.3 * rng.normal(size=30)
    return (x - x.mean(axis=0)) / x.std(axis=0), (y - y.mean()) / y.std(), rng.uniform(0, 0.1, 30)


def kernel(a: np.ndarray, b: np.ndarray, scales: np.ndarray, alone: float, together: float) -> np.ndarray:
    apart = a[:, None, :] - b[None, :, :]
    bent = math.sqrt(5) * np.sqrt((apart**2 * scales).sum(axis=2))
    of_one = (a[:, None, :] * b[None, :, :] + 3 / (1 + apart**2)).mean(axis=2)
    found: np.ndarray = together * (1 + bent + bent**2 / 3) * np.exp(-bent) + alone * of_one
    return found


def test_mean_and_deviation_are_those_of_the_textbook() -> None:
    # Rasmussen & Williams (2006), equations 2.25 and 2.26, with an inverse.
    x, y, noise = noisy_data()
    other = np.random.default_rng(5).normal(size=(7, 3))
    observed = Observed(x)
    model = GaussianProcess.fit(observed, y, noise)
    parts = model.scales, model.alone, model.together
    inverse = np.linalg.inv(kernel(x, x, *parts) + np.diag(noise + model.noise))
    across = kernel(other, x, *parts)
    variance = np.diag(kernel(other, other, *parts) - across @ inverse @ across.T)
    expected = across @ inverse @ y, np.sqrt(variance)
    np.testing.assert_allclose(model.predict(observed.compared(other)), expected, rtol=1e-6, atol=1e-9)


def test_the_posterior_density_is_the_textbooks_and_the_fit_its_largest() -> None:
    # Equation 2.30, and the normal prior's.
    x, y, noise = noisy_data()
    observed, (centre, deviation) = Observed(x), prior(3)

    def expected(point: np.ndarray) -> float:
        scales, (alone, together, extra) = np.exp(point[:3]), np.exp(point[3:])
        covariance = kernel(x, x, scales, alone, together) + np.diag(noise + extra)
        evidence = -0.5 * y @ np.linalg.inv(covariance) @ y - 0.5 * np.linalg.slogdet(covariance)[1]
        return float(0.5 * (((point - centre) / deviation) ** 2).sum() - evidence)

    rng = np.random.default_rng(6)
    for _ in range(5):
        point = centre + rng.normal(size=6)
        value, gradient = negative_log_posterior(point, observed, y, noise)
        assert value == pytest.approx(expected(point), rel=1e-9)
        steps = 1e-5 * np.eye(6)
        slopes = [(expected(point + step) - expected(point - step)) / 2e-5 for step in steps]
        np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-5)
    model = GaussianProcess.fit(observed, y, noise)
    found = np.log([*model.scales, model.alone, model.together, model.noise])
    around = [found + 0.1 * rng.normal(size=6) for _ in range(50)]
    assert expected(found) < min(map(expected, around))


def test_a_feature_that_matters_has_a_short_length() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((60, 8))
    model = GaussianProcess.fit(Observed(x), np.sin(9 * x[:, 2]) * np.cos(7 * x[:, 5]))
    assert set(np.argsort(-model.scales)[:2].tolist()) == {2, 5}
    assert model.scales[[2, 5]].min() > 5 * np.delete(model.scales, [2, 5]).max()


def test_noisy_observations_count_for_less() -> None:
    x = np.linspace(0, 1, 9)[:, None]
    y = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    noise = np.where(y > 0, 1.0, 0.0)
    observed = Observed(x)
    at_it = observed.compared(np.array([[0.5]]))
    trusting = GaussianProcess.fit(observed, y).expect(at_it)[0]
    doubting = GaussianProcess.fit(observed, y, noise).expect(at_it)[0]
    assert doubting < 0.5 * trusting


@pytest.mark.parametrize("count", [1, 2])
def test_hardly_any_observations_are_enough(count: int) -> None:
    observed = Observed(np.zeros((count, 3)))
    model = GaussianProcess.fit(observed, np.full(count, 0.4))
    mean, deviation = model.predict(observed.compared(np.array([[0.0, 1.0, 2.0]])))
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
    ("epochs", "rungs"), [(1, (1,)), (3, (3,)), (8, (3, 8)), (9, (3, 9)), (27, (9, 27)), (36, (12, 36))]
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
        score=ap if state == "complete" else None,
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
    found = History(history).training_runs
    assert [NANO.structures.index(c.architecture) for c in found.last] == [0, 1, 2, 3]
    np.testing.assert_array_equal(
        found.ap((1, 3, 9)), [[0.1, math.nan, math.nan], [0.2, 0.3, 0.4], [0.2, math.nan, math.nan], [math.nan] * 3]
    )
    assert reached_rungs(found.ap((1, 3, 9))).tolist() == [0, 2, 0, -1]
    assert found.latency_ms.tolist() == [5.0] * 4
    assert found.stopped.tolist() == [True, False, False, False]
    assert found.asked_epoch.tolist() == [1, 9, 3, 1]
    assert [c.own_epochs for c in history[:4]] == [1, 1, 2, 6]


def test_lines_are_learned_from_the_trainings_that_went_on() -> None:
    rng = np.random.default_rng(3)
    history = []
    for i in range(40):
        end = 0.2 + 0.01 * i
        history.append(trial(len(history), i, 0.5 * end + rng.normal(0, 0.01), 0, 1))
        if i % 2:
            history.append(trial(len(history), i, end, 1, None))
    ap = History(history).training_runs.ap((1, 9))
    ends, (rung, end) = expected_ends(ap)
    assert (end.offset, end.slope, end.variance) == (0.0, 1.0, 0.0)
    assert ends[1::2].tolist() == ap[1::2, 1].tolist(), "who is at the end has the AP that it has"
    assert np.abs(ends[::2] - (0.2 + 0.01 * np.arange(0, 40, 2))).mean() < 0.03
    assert rung.offset + rung.slope * 0.2 == pytest.approx(0.4, abs=0.03)
    assert rung.variance < 0.03**2
    ap = History([c for c in history if c.stop_epoch]).training_runs.ap((1, 9))
    ends, (unknown, _) = expected_ends(ap)
    assert ends.tolist() == ap[:, 0].tolist(), "nobody went on: the AP stands for itself"
    assert unknown.variance > rung.variance
