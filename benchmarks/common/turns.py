"""Measurements in turns: contenders alternate in random order, so a drift of the machine meets all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from profiler.backends import Session
from profiler.timing.measurement import median_interval

T = TypeVar("T")


def take_turns(
    runs: Mapping[str, Callable[[], T]], rounds: int, *, least: int = 0, until: float = math.inf
) -> dict[str, list[T]]:
    """Call each contender once a round, in random order.

    Args:
        runs: By name, a function that runs a contender and returns its measurement.
        rounds: At most.
        least: Rounds that are done even after ``until``.
        until: No round starts later, by :func:`time.monotonic`.

    Returns:
        By name, the measurements of all rounds.
    """
    rng, names = np.random.default_rng(0), list(runs)
    found: dict[str, list[T]] = {name: [] for name in names}
    for done in range(rounds):
        if done >= least and time.monotonic() > until:
            break
        for index in rng.permutation(len(names)).tolist():
            found[names[index]].append(runs[names[index]]())
    return found


def processor_ms(
    runs: Mapping[str, Session | Callable[[], object]], rounds: int, *, at_least_s: float = 0.1
) -> dict[str, list[float]]:
    """Processor time of one run, in milliseconds, in turns.

    On a machine that does other work the clock includes how long a run had to wait; for one thread processor time is
    what the clock would show on an idle machine.
    """

    def timed(contender: Session | Callable[[], object]) -> float:
        with nullcontext() if callable(contender) else contender:
            run = contender if callable(contender) else contender.run
            run()
            count, began = 0, time.process_time()
            while (spent := time.process_time() - began) < at_least_s or count < 3:
                run()
                count += 1
        return spent / count * 1e3

    return take_turns({name: partial(timed, run) for name, run in runs.items()}, rounds)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratios of the measurements of the same round."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def interval(values: Sequence[float]) -> dict[str, float]:
    """The median with its distribution-free 95% interval."""
    low, high = median_interval(values)
    return {"median": statistics.median(values), "low": low, "high": high}


def largest_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference; infinite where either side is not a number.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"the reference has shape {expected.shape}, but got {found.shape}")
    error = float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))
    return math.inf if math.isnan(error) else error
