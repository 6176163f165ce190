"""Independent random streams derived from the user's seed.

Each trial uses the stream of its number; all others start beyond the range of trials.
"""

from functools import partial

import numpy as np

__all__ = ["audit", "calibration", "latency_sample", "measuring_order", "rebuilding", "trial", "zero_shot"]

_BEYOND_TRIALS = 1 << 32


def trial(seed: int, number: int) -> np.random.Generator:
    """Stream of one trial's proposal."""
    return np.random.default_rng([seed, number])


def _beyond(place: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, _BEYOND_TRIALS << place])


calibration = partial(_beyond, 0)
"""Detectors on which a search calibrates its latency predictions."""

zero_shot = partial(_beyond, 1)
"""Zero-shot search of super-blocks by entropy."""

audit = partial(_beyond, 1)
"""Detectors of a table's audit; the stream of ``zero_shot``, which no audit uses."""

rebuilding = partial(_beyond, 2)
"""Engines that are rebuilt."""

measuring_order = partial(_beyond, 3)
"""Order in which blocks are measured."""

latency_sample = partial(_beyond, 4)
"""Random designs whose latency is determined before the first training run."""
