"""Build-to-build variance: builds that differ are told from those that only look it."""

from collections.abc import Sequence

import numpy as np
import pytest
from torch import Tensor, nn

from profiler.backends import get_backend
from profiler.backends.eager import EagerBackend, EagerSession
from profiler.devices import cpu_device
from profiler.measuring.build_variance import BuildVariance, build_variance, rounds_for
from profiler.timing.measurement import TimingSettings
from profiler.workload import TensorSpec, Workload

BLOCK = Workload("conv", "conv", nn.Conv2d(4, 4, 3), (TensorSpec((1, 4, 16, 16)),))
QUICK = TimingSettings(time_limit_s=0.05, max_samples=40, warmup_s=0.0)


class EverSlower(EagerBackend):
    """Each build runs the module ten times as often as the one before."""

    built = 0

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor], precision: str = "fp32") -> EagerSession:
        repeated = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1)] * 10**self.built)
        self.built += 1
        return super().prepare(repeated, inputs, precision)


def test_builds_that_differ_are_found() -> None:
    found = build_variance(BLOCK, EverSlower(cpu_device(), 1), builds=3, timing=QUICK)
    assert found.differs
    assert found.spread > 2
    assert len(found.medians_ms) == 3
    assert list(found.medians_ms) == sorted(found.medians_ms)


def test_one_build_is_prepared_as_often_as_asked() -> None:
    found = build_variance(BLOCK, get_backend("eager"), builds=4, timing=QUICK)
    assert [len(rounds) for rounds in found.rounds_ms] == [rounds_for(4)] * 4
    assert found.spread >= 0


def test_builds_whose_rounds_overlap_are_not_called_different() -> None:
    assert not BuildVariance("x", (1.0, 1.1), ((1.0, 1.0, 1.2), (1.1, 1.1, 1.3)), 0.01).differs
    assert BuildVariance("x", (1.0, 1.3), ((1.0, 1.0, 1.2), (1.25, 1.3, 1.3)), 0.01).differs
    assert BuildVariance("x", (1.0, 1.5), ((1.0,), (1.5,)), 0.01).spread == 0.5 / 1.25


@pytest.mark.parametrize("builds", [2, 3, 4, 8])
def test_equal_builds_are_rarely_called_different(builds: int) -> None:
    rng = np.random.default_rng(builds)
    alarms = [
        BuildVariance(
            "x", (1.0,) * builds, tuple(map(tuple, rng.normal(size=(builds, rounds_for(builds))))), 0.01
        ).differs
        for _ in range(2000)
    ]
    assert np.mean(alarms) < 0.06
    assert rounds_for(builds) <= 7, "measuring must not take for ever"
