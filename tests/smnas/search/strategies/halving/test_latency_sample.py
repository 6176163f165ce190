"""The random designs whose latency is asked for before anything is trained."""

import numpy as np

from smnas.search.strategies.choices import DetectorChoices
from smnas.search.strategies.halving.halving import HalvingStage
from smnas.search.strategies.halving.latency_sample import LatencySample
from smnas.search.study.candidate import Candidate
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space

NANO = load_space("nano")
CHOICES = DetectorChoices(NANO)


def milliseconds(architecture: Architecture) -> float | None:
    """From 1 to 100 ms, evenly on the logarithm's scale; every eighth design does not run."""
    number = int(architecture.id, 16)
    return None if number % 8 == 0 else 10.0 ** (number % 997 / 498)


def test_a_sample_is_its_seeds_and_holds_what_runs_and_is_fast_enough() -> None:
    sample = LatencySample.draw(CHOICES, milliseconds, 3, 64)
    again = LatencySample.draw(CHOICES, milliseconds, 3, 64)
    assert sample.designs == again.designs
    assert 40 < len(sample.designs) < 64
    assert sample.latency_ms.tolist() == [milliseconds(design) for design in sample.designs]
    assert LatencySample.draw(CHOICES, milliseconds, 4, 64).designs != sample.designs
    fast = LatencySample.draw(CHOICES, milliseconds, 3, 64, limit_ms=10.0)
    assert set(fast.designs) == {d for d, ms in zip(sample.designs, sample.latency_ms, strict=True) if ms <= 10.0}
    assert LatencySample.draw(CHOICES, lambda _: None, 3, 64).designs == ()


def test_the_first_designs_are_spread_over_latency() -> None:
    stage = HalvingStage(CHOICES, 40, (3, 9), latency=milliseconds)
    history = [
        Candidate(
            0, NANO.baseline_architecture, "baseline", "baseline", None, "complete", 0, 9, latency_ms=10.0, score=0.3
        )
    ]
    for number in range(1, 10):
        proposal = stage.ask(history, np.random.default_rng([0, number]))
        assert proposal is not None
        assert (proposal.origin, proposal.stop_epoch) == ("random", 3)
        a = proposal.architecture
        ms = milliseconds(a)
        assert ms is not None, "a design that does not run is not begun with"
        history.append(
            Candidate(number, a, "joint", "random", None, "complete", 0, 9, stop_epoch=3, latency_ms=ms, score=0.1)
        )
    bands = {int(3 * np.log10(c.latency_ms or 0.0)) for c in history}
    assert bands == {0, 1, 2, 3, 4, 5}, "ten designs, and all of the six sixths from 1 to 100 ms have some"


def test_where_all_of_a_sample_was_seen_it_has_no_more() -> None:
    sample = LatencySample.draw(CHOICES, milliseconds, 3, 64)
    rng = np.random.default_rng(0)
    assert sample.away_from([10.0], set(sample.designs), rng) is None
    last = sample.designs[-1]
    assert sample.away_from([10.0], set(sample.designs) - {last}, rng) == last


def test_a_small_search_asks_for_no_latency_first() -> None:
    asked: list[Architecture] = []

    def ask(architecture: Architecture) -> float | None:
        asked.append(architecture)
        return milliseconds(architecture)

    for trials, draws in ((39, 0), (40, 64)):
        proposal = HalvingStage(CHOICES, trials, (3, 9), latency=ask).ask([], np.random.default_rng(0))
        assert proposal is not None
        assert len(asked) == draws
