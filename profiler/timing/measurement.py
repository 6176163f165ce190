"""Time a callable until its median is known well enough or a limit is reached.

The median's interval comes from order statistics: the probability that the k-th smallest and k-th largest of ``n``
samples enclose the true median is binomial, whatever their distribution. It assumes independent samples; slow drift
(clocks, neighbours on the machine) breaks that, hence the interleaved reference workload in profiling.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from scipy.special import bdtr

__all__ = [
    "CudaTimer",
    "Measurement",
    "StopReason",
    "Timer",
    "TimingSettings",
    "WallTimer",
    "measure",
    "median_interval",
]

_BATCH_BELOW_NS = 50_000
"""Shorter runs are timed in batches: reading the clock would weigh too much on a single one."""
_BATCH_TARGET_NS = 200_000
"""Minimum duration of such a batch."""
_CHECK_GROWTH = 1.25
"""Growth of the sample count between checks of the interval: checking after every sample would stop too often on an
interval that is narrow by luck."""


class StopReason(StrEnum):
    """Why sampling ended."""

    CONVERGED = "converged"
    TIME_LIMIT = "time_limit"
    MAX_SAMPLES = "max_samples"
    ROUNDS_DISAGREE = "rounds_disagree"


@dataclass(frozen=True)
class TimingSettings:
    """When a measurement is good enough, and when to give up.

    Attributes:
        confidence: of the median's interval.
        relative_half_width: stop when half the interval is at most this fraction of the median.
        min_samples: samples needed to count as converged.
        least_samples: samples to take despite the time limit (capped by ``min_samples``): one or two runs of a network
            that takes a second each say little.
        time_limit_s: give up after this long, warm-up included.
        warmup_runs: minimum, as is ``warmup_s``.
    """

    confidence: float = 0.95
    relative_half_width: float = 0.01
    min_samples: int = 12
    max_samples: int = 2000
    least_samples: int = 7
    time_limit_s: float = 2.0
    warmup_runs: int = 3
    warmup_s: float = 0.03

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"0 < confidence < 1 must hold, but got {self.confidence}")
        if self.relative_half_width <= 0:
            raise ValueError(f"relative_half_width > 0 must hold, but got {self.relative_half_width}")
        if not 1 <= self.min_samples <= self.max_samples:
            raise ValueError(
                f"1 <= min_samples <= max_samples must hold, but got {self.min_samples} and {self.max_samples}"
            )
        if self.least_samples < 1:
            raise ValueError(f"least_samples >= 1 must hold, but got {self.least_samples}")
        if self.time_limit_s <= 0 or self.warmup_s < 0 or self.warmup_runs < 1:
            raise ValueError(
                "time_limit_s > 0, warmup_s >= 0 and warmup_runs >= 1 must hold, but got "
                f"{self.time_limit_s}, {self.warmup_s} and {self.warmup_runs}"
            )


@dataclass(frozen=True)
class Measurement:
    """Latency of one callable, with its raw samples.

    Attributes:
        samples_ns: nanoseconds per run, in measured order; with ``inner_runs`` > 1 each is the mean of that many runs
            back to back.
        median_ms: median of the samples; ``low_ms`` and ``high_ms`` are its interval.
        stop_reason: anything but ``converged`` means that the interval is wider than requested.
    """

    samples_ns: tuple[float, ...]
    inner_runs: int
    median_ms: float
    low_ms: float
    high_ms: float
    stop_reason: StopReason

    @property
    def relative_half_width(self) -> float:
        """Half the interval relative to the median."""
        return (self.high_ms - self.low_ms) / 2 / self.median_ms if self.median_ms > 0 else math.inf

    def __str__(self) -> str:
        note = "" if self.stop_reason is StopReason.CONVERGED else f", stopped by {self.stop_reason}"
        return f"{self.median_ms:.4g} ms [{self.low_ms:.4g}, {self.high_ms:.4g}] of {len(self.samples_ns)}{note}"


class Timer(Protocol):
    """A clock that can time runs, on whichever device they run."""

    def elapsed_ns(self, run: Callable[[], None], count: int) -> float:
        """Time ``count`` runs back to back, in nanoseconds."""

    def now_ns(self) -> int:
        """Read the clock of the time limit."""


class WallTimer:
    """Times work that is finished when the call returns (a CPU)."""

    def __init__(self, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock_ns = clock_ns

    def elapsed_ns(self, run: Callable[[], None], count: int) -> float:
        """Time ``count`` runs back to back."""
        clock_ns = self._clock_ns
        start = clock_ns()
        for _ in range(count):
            run()
        return clock_ns() - start

    def now_ns(self) -> int:
        """Read the same clock."""
        return self._clock_ns()


class CudaTimer:
    """Times work queued on a CUDA device, by events on its current stream."""

    def __init__(self, device_index: int = 0) -> None:
        import torch

        self._cuda: Any = torch.cuda  # torch leaves its events untyped
        self._device_index = device_index

    def elapsed_ns(self, run: Callable[[], None], count: int) -> float:
        """Time ``count`` runs between two CUDA events."""
        with self._cuda.device(self._device_index):
            start = self._cuda.Event(enable_timing=True)
            end = self._cuda.Event(enable_timing=True)
            self._cuda.synchronize()
            start.record()
            for _ in range(count):
                run()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) * 1e6

    def now_ns(self) -> int:
        """Read the host's clock."""
        return time.perf_counter_ns()


def measure(
    run: Callable[[], None],
    *,
    timer: Timer | None = None,
    settings: TimingSettings | None = None,
    before_each: Callable[[], None] | None = None,
) -> Measurement:
    """Warm up, then sample ``run`` until its median is known well enough or a limit is reached.

    Args:
        run: one run of the workload.
        timer: a :class:`WallTimer` if ``None``.
        settings: precision and limits.
        before_each: called untimed before every sample, to flush caches. Each sample is then a single run, even one so
            short that the clock weighs in.
    """
    timer = timer or WallTimer()
    settings = settings or TimingSettings()
    start = timer.now_ns()
    deadline = start + settings.time_limit_s * 1e9
    warm: list[float] = []
    with _without_collection():
        while True:
            if before_each is not None:
                before_each()
            warm.append(timer.elapsed_ns(run, 1))
            now = timer.now_ns()
            if now >= deadline or (len(warm) >= settings.warmup_runs and now - start >= settings.warmup_s * 1e9):
                break
        # Only the later half: the first runs pay for caches and lazy initialisation.
        typical_ns = max(1.0, statistics.median(warm[len(warm) // 2 :]))
        single = before_each is not None or typical_ns >= _BATCH_BELOW_NS
        inner_runs = 1 if single else math.ceil(_BATCH_TARGET_NS / typical_ns)

        samples: list[float] = []
        check_at = settings.min_samples
        while True:
            if before_each is not None:
                before_each()
            samples.append(timer.elapsed_ns(run, inner_runs) / inner_runs)
            if len(samples) >= check_at:
                if _narrow_enough(samples, settings):
                    reason = StopReason.CONVERGED
                    break
                check_at = math.ceil(len(samples) * _CHECK_GROWTH)
            if len(samples) >= settings.max_samples:
                reason = StopReason.MAX_SAMPLES
                break
            if len(samples) >= min(settings.least_samples, settings.min_samples) and timer.now_ns() >= deadline:
                reason = StopReason.CONVERGED if _narrow_enough(samples, settings) else StopReason.TIME_LIMIT
                break
    low, high = median_interval(samples, settings.confidence)
    return Measurement(tuple(samples), inner_runs, statistics.median(samples) / 1e6, low / 1e6, high / 1e6, reason)


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of the median from order statistics of at least one sample, in any order.

    Uses the largest ``k`` for which the k-th smallest and k-th largest of ``n`` samples enclose the median with at
    least ``confidence``: ``1 - 2 P(Binomial(n, 1/2) < k) >= confidence``. Below 6 samples (at 95%) no ``k`` does, and
    the smallest and largest sample are returned, which cover less than ``confidence``.
    """
    if not samples:
        raise ValueError("median_interval needs at least one sample, but got none")
    ordered = sorted(samples)
    n = len(ordered)
    tails = bdtr(np.arange(n // 2 + 1), n, 0.5)  # P(Binomial(n, 1/2) <= k)
    rank = max(1, int(np.searchsorted(tails, (1 - confidence) / 2, side="right")))
    return ordered[rank - 1], ordered[n - rank]


def _narrow_enough(samples: Sequence[float], settings: TimingSettings) -> bool:
    if len(samples) < settings.min_samples:
        return False
    low, high = median_interval(samples, settings.confidence)
    return (high - low) / 2 <= settings.relative_half_width * statistics.median(samples)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the garbage collector from running inside a sample."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
