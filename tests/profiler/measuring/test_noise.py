"""The noise of a stub machine is what was put in; every disturbance comes with what to do about it."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from profiler.measuring import noise as module
from profiler.measuring.noise import Noise, Readers, measure_noise
from profiler.timing.measurement import Measurement, StopReason

QUIET = ("Nothing: this machine is quiet enough for latencies.",)


class Machine:
    """A clock, and counters that run with it: 2 cores, of which this process is on core 0."""

    def __init__(
        self, stolen: float = 0.0, waiting: float = 0.0, sibling: float = 0.0, clocks: tuple[float, ...] = ()
    ) -> None:
        self.now, self.measured_s = 100.0, 0.0
        self.stolen, self.waiting, self.sibling = stolen, waiting, sibling
        self.clocks = itertools.cycle(clocks)
        self.has_clock = bool(clocks)

    def readers(self, siblings: tuple[int, ...] = (1,)) -> Readers:
        return Readers(
            self.state, self.usage, lambda: 0, self.busy_s, lambda core: siblings, lambda: self.now, self.sleep
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def state(self) -> Mapping[str, Any]:
        clock = {"clock_mhz": next(self.clocks), "governor": "performance"} if self.has_clock else {}
        return {"cpus": 2, **clock}

    def usage(self) -> Mapping[str, float]:
        return {
            "wall_s": self.now,
            "cpu_s": self.measured_s * (1 - self.waiting),
            "steal_s": self.now * 2 * self.stolen,
            "preemptions": 10 * self.measured_s * self.waiting,
        }

    def busy_s(self) -> Mapping[int, float]:
        return {0: self.measured_s, 1: self.now * self.sibling}

    def measure(self, *factors: float) -> Noise:
        times = itertools.cycle(factors or (1.0,))

        def one_round() -> Measurement:
            self.now, self.measured_s = self.now + 0.2, self.measured_s + 0.2
            ms = 2.0 * next(times)
            return Measurement((ms * 1e6,) * 4, 1, ms, ms, ms, StopReason.CONVERGED)

        return measure_noise(one_round, self.readers())


def test_a_quiet_machine_needs_nothing() -> None:
    machine = Machine()
    found = machine.measure()
    assert (found.median_ms, found.round_spread, found.burst_error, found.table_error) == (2.0, 0.0, 0.0, 0.0)
    assert (found.stolen, found.waiting, found.preemptions_per_s) == (0.0, pytest.approx(0.0, abs=1e-9), 0.0)
    assert (found.clock_change, found.governor, found.sibling_load) == (None, None, 0.0)
    assert found.advice == QUIET
    assert machine.now - 100 < 60, "within a minute"


def test_bursts_reach_single_rounds_and_hardly_a_row() -> None:
    """A quarter of the rounds is 1.5 times as long: six of them have three good ones all but always."""
    found = Machine().measure(1.0, 1.0, 1.0, 1.5)
    assert found.round_spread == pytest.approx(0.5)
    assert found.burst_error == pytest.approx(0.5)
    assert found.table_error < 0.01
    assert found.median_ms == 2.0


def test_a_machine_whose_rounds_never_agree_is_advised_more_of_them() -> None:
    found = Machine().measure(*(1 + 0.05 * step for step in range(24)))
    assert found.table_error > 0.03
    assert "`--rounds 12`" in found.advice[-1]


@pytest.mark.parametrize(
    ("machine", "field", "value", "advice"),
    [
        (Machine(stolen=0.1), "stolen", 0.1, "The hypervisor gives 10%"),
        (Machine(waiting=0.2), "waiting", 0.2, "Other processes run on the measured core 20% of the time"),
        (Machine(sibling=0.5), "sibling_load", 0.5, "The other thread of the measured core is 50% busy"),
        (Machine(clocks=(3000.0, 2400.0)), "clock_change", 0.25, "The clock changes by 25%"),
    ],
)
def test_every_disturbance_is_measured_and_has_its_advice(
    machine: Machine, field: str, value: float, advice: str
) -> None:
    found = machine.measure()
    assert getattr(found, field) == pytest.approx(value, abs=1e-6)
    assert len(found.advice) == 1
    assert found.advice[0].startswith(advice)
    assert ("`taskset -c 1 smnas ...`" in found.advice[0]) == (field in ("waiting", "sibling_load"))


def test_the_systems_own_files_are_read(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 0 100 700 50 0 0 50 0 0\ncpu1 0 0 0 900 0 0 0 0 0 0\nintr 5\n")
    busy = module._busy_s(stat)
    assert busy == {0: pytest.approx(250 / os.sysconf("SC_CLK_TCK")), 1: 0.0}
    assert module._busy_s(tmp_path / "none") == {}
    for text, others in (("0,4", [4]), ("0-2", [1, 2]), ("0", []), ("?", [])):
        folder = tmp_path / "cpu0" / "topology"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n")
        assert module._siblings(0, tmp_path) == others
    assert module._siblings(9, tmp_path) == []
