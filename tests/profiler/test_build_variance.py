"""Build-to-build variance: builds that differ are told from those that only look it."""

from collections.abc import Sequence

from torch import Tensor, nn

from profiler.backends import get_backend
from profiler.backends.eager import EagerBackend, EagerSession
from profiler.build_variance import BuildVariance, build_variance
from profiler.devices import cpu_device
from profiler.timing import TimingSettings
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
    assert [len(rounds) for rounds in found.rounds_ms] == [3] * 4
    assert found.spread >= 0


def test_builds_whose_rounds_overlap_are_not_called_different() -> None:
    assert not BuildVariance("x", (1.0, 1.1), ((1.0, 1.0, 1.2), (1.1, 1.1, 1.3)), 0.01).differs
    assert BuildVariance("x", (1.0, 1.3), ((1.0, 1.0, 1.2), (1.25, 1.3, 1.3)), 0.01).differs
    assert BuildVariance("x", (1.0, 1.5), ((1.0,), (1.5,)), 0.01).spread == 0.5 / 1.5
