"""Drift of the machine during profiling, from a reference workload."""

import torch
from torch import nn

from profiler.backends.base import Backend, measure_session
from profiler.timing.measurement import TimingSettings
from profiler.workload import TensorSpec, Workload, random_inputs

__all__ = ["DriftWatch", "reference_workload"]


def reference_workload() -> Workload:
    """Return a small fixed network whose latency should not change while others are measured."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.ReLU(),
        )
    return Workload("reference", "reference conv16-32-32|1x16x64x64", module, (TensorSpec((1, 16, 64, 64)),))


class DriftWatch:
    """Times the reference workload after every ``every`` measurements and compares each reading with the first."""

    def __init__(
        self, workload: Workload, backend: Backend, precision: str, timing: TimingSettings, every: int
    ) -> None:
        self._timing = timing
        self._every = every
        self._session = backend.prepare(workload.module, random_inputs(workload.inputs), precision)
        self._readings_ms: list[float] = []
        self._since = 0
        self.read()

    def read(self) -> None:
        """Take a reading."""
        self._readings_ms.append(measure_session(self._session, self._timing).median_ms)
        self._since = 0

    def count(self) -> None:
        """Count one measurement, and take a reading if due."""
        self._since += 1
        if self._since == self._every:
            self.read()

    def finish(self) -> None:
        """Take a last reading, unless nothing was measured since the previous one."""
        if self._since:
            self.read()

    @property
    def latest_ms(self) -> float:
        """Last reading."""
        return self._readings_ms[-1]

    @property
    def latest(self) -> float:
        """Relative change of the last reading from the first; 0 before the second."""
        return self.latest_ms / self._readings_ms[0] - 1

    @property
    def largest(self) -> float | None:
        """Relative change of the reading farthest from the first; ``None`` before the second."""
        return max((ms / self._readings_ms[0] - 1 for ms in self._readings_ms[1:]), key=abs, default=None)
