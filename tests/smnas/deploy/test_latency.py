"""Latency of files that are compared with each other."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from profiler.timing.measurement import Timer, TimingSettings
from smnas.deploy.export import ExportReport
from smnas.deploy.latency import interleaved, measure_files

SETTINGS = TimingSettings(min_samples=3, max_samples=3, warmup_runs=1, warmup_s=0.0, time_limit_s=100.0)


class DriftingMachine:
    """A machine that becomes slower with every run on it, and its clock."""

    def __init__(self) -> None:
        self.time_ns = 0
        self.slowness = 1.0
        self.order: list[str] = []

    def elapsed_ns(self, run: Callable[[], None], count: int) -> float:
        start = self.time_ns
        for _ in range(count):
            run()
        return self.time_ns - start

    def now_ns(self) -> int:
        return self.time_ns


class FakeSession:
    def __init__(self, machine: DriftingMachine, name: str, milliseconds: float) -> None:
        self.timer: Timer = machine
        self._machine, self._name, self._ms = machine, name, milliseconds

    def __enter__(self) -> Self:
        self._machine.order.append(self._name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self) -> None:
        self._machine.time_ns += int(self._ms * 1e6 * self._machine.slowness)
        self._machine.slowness *= 1.001

    def outputs(self) -> tuple[Any, ...]:
        return ()

    def describe(self) -> dict[str, Any]:
        return {}


def test_a_drifting_machine_does_not_favour_whoever_comes_first() -> None:
    machine = DriftingMachine()
    sessions = {"a": FakeSession(machine, "a", 10.0), "b": FakeSession(machine, "b", 10.0)}
    steps: list[tuple[int, int]] = []
    found = interleaved(
        sessions, rounds=9, seed=1, settings=SETTINGS, on_progress=lambda done, total: steps.append((done, total))
    )
    assert machine.slowness > 1.06  # measured one after the other they would differ by 3%
    assert found["a"].median_ms == pytest.approx(found["b"].median_ms, rel=0.01)
    assert found["a"].low_ms < found["b"].median_ms < found["a"].high_ms
    assert all(len(set(machine.order[i : i + 2])) == 2 for i in range(0, 18, 2))
    assert len({tuple(machine.order[i : i + 2]) for i in range(0, 18, 2)}) == 2  # both orders occur
    assert steps == [(i, 18) for i in range(1, 19)]


class DisturbedSession(FakeSession):
    """Takes twice its time in four of nine rounds."""

    def run(self) -> None:
        self._machine.time_ns += int(self._ms * 1e6 * (2.0 if len(self._machine.order) in (2, 3, 6, 9) else 1.0))


def test_disturbed_rounds_are_not_in_the_latency() -> None:
    session = DisturbedSession(DriftingMachine(), "a", 5.0)
    (latency,) = interleaved({"a": session}, rounds=9, settings=SETTINGS).values()
    assert sorted(latency.rounds_ms) == pytest.approx([5.0] * 5 + [10.0] * 4)
    assert (latency.low_ms, latency.median_ms, latency.high_ms) == pytest.approx((5.0, 5.0, 5.0))


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds >= 1"):
        interleaved({}, rounds=0)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_real_files_are_measured(runtime: str, exported: Callable[[str], ExportReport]) -> None:
    pytest.importorskip(runtime)
    found = measure_files(
        {
            "rcnn": (exported("rcnn").path, np.zeros((1, 3, 64, 96), np.uint8)),
            "retina": (exported("retina").path, np.zeros((1, 3, 96, 64), np.uint8)),
        },
        runtime=runtime,
        rounds=3,
    )
    assert set(found) == {"rcnn", "retina"}
    for latency in found.values():
        assert 0.01 < latency.low_ms <= latency.median_ms <= latency.high_ms < 5_000
        assert len(latency.rounds_ms) == 3
