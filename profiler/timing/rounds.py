"""Combine rounds of samples that lie apart in time into one latency.

The samples of one burst agree even when a neighbour on the machine slows all of them; rounds apart in time, between
measurements of other workloads, do not. Interference only adds, so where rounds disagree, the lowest ones that agree
are kept. The interval comes from the spread between the kept rounds, not within a burst; where too few agree, it
reaches to the third fastest round, as slower ones tell of the neighbour, and by the same factor below, as the
fastest may be slowed too.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import stdtrit  # Student's quantile

from profiler.timing.measurement import Measurement, StopReason, TimingSettings

__all__ = ["agree", "agreeing", "combine", "round_settings", "settled"]

_AGREE = 0.03
"""Minimum relative difference up to which two rounds agree; the noise within rounds widens it up to ``_AGREE_AT_MOST``:
on a machine that is busy throughout, noise would make any two agree."""
_AGREE_AT_MOST = 0.15
_LEAST_AGREEING = 3
_MOST = 2
"""Limit of rounds, as a multiple of the requested number."""


def round_settings(timing: TimingSettings, rounds: int) -> TimingSettings:
    """Return the settings of one of several rounds, which together cost as much as one burst under ``timing``."""
    if rounds == 1:
        return timing
    return replace(
        timing,
        relative_half_width=timing.relative_half_width * math.sqrt(rounds),
        min_samples=max(2, math.ceil(timing.min_samples / rounds)),
        max_samples=max(2, math.ceil(timing.max_samples / rounds)),
        least_samples=max(2, math.ceil(timing.least_samples / rounds)),
        time_limit_s=timing.time_limit_s / rounds,
        warmup_runs=max(1, math.ceil(timing.warmup_runs / rounds)),
        warmup_s=timing.warmup_s / rounds,
    )


def agreeing(rounds: Sequence[Measurement]) -> list[Measurement]:
    """Return the fastest round and those whose medians are within 3% of it, or within the noise of single rounds."""
    fastest = min(one.median_ms for one in rounds)
    noise = statistics.median(one.relative_half_width for one in rounds)
    return [one for one in rounds if one.median_ms <= fastest * (1 + min(max(_AGREE, 4 * noise), _AGREE_AT_MOST))]


def agree(rounds: Sequence[Measurement], wanted: int) -> bool:
    """Whether three rounds agree at the low end, or all of fewer wanted ones."""
    return bool(rounds) and len(agreeing(rounds)) >= min(wanted, _LEAST_AGREEING)


def settled(rounds: Sequence[Measurement], wanted: int) -> bool:
    """Whether no further round is needed: three agree, or there are twice the wanted number."""
    return len(rounds) >= wanted and (agree(rounds, wanted) or len(rounds) >= _MOST * wanted)


def combine(rounds: Sequence[Measurement], timing: TimingSettings) -> Measurement:
    """Combine rounds, given in measured order, into one measurement; a single one is returned as it is.

    Returns:
        All samples; the median of the kept rounds' samples; Student's interval from the kept rounds' medians. Where too
        few agree, it reaches to the third fastest round and by the same factor below.
    """
    if len(rounds) == 1:
        return rounds[0]
    kept = agreeing(rounds)
    median = statistics.median(sample for one in kept for sample in one.samples_ns) / 1e6
    if len(kept) < min(len(rounds), _LEAST_AGREEING):
        reason = StopReason.ROUNDS_DISAGREE
        high = sorted(one.median_ms for one in rounds)[:_LEAST_AGREEING][-1]
        low = median**2 / high
    else:
        spread = statistics.stdev(one.median_ms for one in kept) / math.sqrt(len(kept))
        half = float(stdtrit(len(kept) - 1, (1 + timing.confidence) / 2)) * spread
        low, high = max(median - half, 0.0), median + half
        reason = StopReason.CONVERGED
        if half > timing.relative_half_width * median:
            reasons = (one.stop_reason for one in kept if one.stop_reason != StopReason.CONVERGED)
            reason = next(reasons, StopReason.TIME_LIMIT)
    samples = tuple(np.concatenate([one.samples_ns for one in rounds]).tolist())
    return Measurement(samples, rounds[0].inner_runs, median, low, high, reason)
