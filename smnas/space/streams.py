"""The random streams that share a user's seed, each independent of the others.

A trial has the stream of its number, so every other one begins beyond all of them.
"""

from functools import partial

import numpy as np

__all__ = ["audit", "calibration", "latency_sample", "measuring_order", "rebuilding", "trial", "zero_shot"]

_BEYOND_TRIALS = 1 << 32


def trial(seed: int, number: int) -> np.random.Generator:
    """The proposal of one trial."""
    return np.random.default_rng([seed, number])


def _beyond(place: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, _BEYOND_TRIALS << place])


calibration = partial(_beyond, 0)
"""The detectors that calibrate a search's latency predictions."""

zero_shot = partial(_beyond, 1)
"""The search of super-blocks by entropy."""

audit = partial(_beyond, 1)
"""The detectors of a table's audit, which no search draws from."""

rebuilding = partial(_beyond, 2)
"""The engines that are built again."""

measuring_order = partial(_beyond, 3)
"""The order in which blocks are measured."""

latency_sample = partial(_beyond, 4)
"""The designs whose latency is known before the first training run."""
