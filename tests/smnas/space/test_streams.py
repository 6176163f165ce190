"""The random streams: what earlier versions drew from, and none of them a trial's."""

import numpy as np
import pytest

from smnas.space import streams

_BEYOND = {
    "calibration": 1 << 32,
    "zero_shot": 1 << 33,
    "audit": 1 << 33,
    "rebuilding": 1 << 34,
    "measuring_order": 1 << 35,
    "latency_sample": 1 << 36,
}


@pytest.mark.parametrize(("name", "word"), _BEYOND.items())
def test_a_stream_is_the_seed_with_a_word_beyond_all_trials(name: str, word: int) -> None:
    drawn = getattr(streams, name)(7).random(3)
    assert drawn.tolist() == np.random.default_rng([7, word]).random(3).tolist()
    assert drawn.tolist() != getattr(streams, name)(8).random(3).tolist()


def test_a_trial_has_the_stream_of_its_number() -> None:
    drawn = {n: tuple(streams.trial(7, n).random(3)) for n in range(100)}
    assert drawn[5] == tuple(np.random.default_rng([7, 5]).random(3))
    beyond = {tuple(getattr(streams, name)(7).random(3)) for name in _BEYOND}
    assert len(beyond) == len(_BEYOND) - 1, "an audit and a zero-shot search share theirs"
    assert not beyond & set(drawn.values())
    assert len(set(drawn.values())) == 100


def test_every_stream_is_tested() -> None:
    assert set(streams.__all__) == {*_BEYOND, "trial"}
