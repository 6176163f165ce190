"""Latency variance between builds of the same workload.

A builder that picks kernels by timing them, or another placement in memory, gives two builds of one workload two
latencies. A table holds one of them, so its interval can not be narrower than the spread of builds.
"""

from dataclasses import dataclass
from itertools import count
from math import comb
from statistics import median

from profiler.backends.base import Backend, measure_session
from profiler.timing.measurement import TimingSettings
from profiler.workload import Workload, random_inputs

__all__ = ["BuildVariance", "build_variance", "rounds_for"]

_FALSE_ALARMS = 0.05
"""Bound on the probability that equal builds are reported as different."""


@dataclass(frozen=True)
class BuildVariance:
    """One workload built several times.

    Attributes:
        medians_ms: per build, the median of its rounds' medians.
        rounds_ms: per build, the medians of its rounds; the builds take turns.
        half_width: the widest relative half-width of a single measurement's interval.
    """

    name: str
    medians_ms: tuple[float, ...]
    rounds_ms: tuple[tuple[float, ...], ...]
    half_width: float

    @property
    def spread(self) -> float:
        """Difference between the slowest and the fastest build, relative to the median one."""
        return (max(self.medians_ms) - min(self.medians_ms)) / median(self.medians_ms)

    @property
    def differs(self) -> bool:
        """Whether all rounds of one build are slower than all of another: true for at most 5% of equal builds."""
        return any(min(one) > max(other) for one in self.rounds_ms for other in self.rounds_ms)


def build_variance(
    workload: Workload,
    backend: Backend,
    *,
    builds: int = 3,
    precision: str = "fp32",
    timing: TimingSettings | None = None,
) -> BuildVariance:
    """Build a workload several times, keep all builds, and measure them in turns.

    ``builds`` is at least 2; 3 or more give an idea of the spread.
    """
    if builds < 2:
        raise ValueError(f"builds >= 2 must hold, but got {builds}")
    inputs = random_inputs(workload.inputs)
    sessions = [backend.prepare(workload.module, inputs, precision) for _ in range(builds)]
    rounds = [[measure_session(session, timing) for session in sessions] for _ in range(rounds_for(builds))]
    of_build = [tuple(found[index].median_ms for found in rounds) for index in range(builds)]
    return BuildVariance(
        name=workload.name,
        medians_ms=tuple(map(median, of_build)),
        rounds_ms=tuple(of_build),
        half_width=max(found.relative_half_width for of_round in rounds for found in of_round),
    )


def rounds_for(builds: int) -> int:
    """Return the number of rounds that distinguishes builds.

    For two equal builds measured n times each, all of one exceed all of the other with probability 2 / (2n choose n)
    (as in the rank-sum test); every pair of builds may raise the alarm.
    """
    pairs = builds * (builds - 1) / 2
    return next(rounds for rounds in count(1) if pairs * 2 / comb(2 * rounds, rounds) <= _FALSE_ALARMS)
