"""How noisy this machine is for latency: a reference block in rounds apart in time, and what took time from it."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from profiler.backends import get_backend
from profiler.backends.base import measure_session
from profiler.devices import cpu_device
from profiler.errors import BackendUnavailableError
from profiler.measuring.drift import reference_workload
from profiler.timing import DEFAULT_ROUNDS
from profiler.timing.conditions import read_state, read_usage
from profiler.timing.measurement import Measurement, TimingSettings
from profiler.timing.rounds import combine, round_settings
from profiler.workload import random_inputs

__all__ = ["Noise", "Readers", "measure_noise", "noise_here"]

_ROUNDS = 24
_APART_S = 1.5  # from one round to the next: 36 s in all
_DRAWN = 400
_ERROR, _STOLEN, _WAITING, _BUSY, _CLOCK = 0.03, 0.01, 0.03, 0.2, 0.05  # from which on there is advice
_FREE = 0.6  # load up to which another core may be better


def _core() -> int | None:
    """The core that this process ran on last; None where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[36])
    return None


def _busy_s(stat: Path = Path("/proc/stat")) -> dict[int, float]:
    """Seconds since boot that each core was busy; empty where the system does not count them."""
    busy = {}
    with suppress(OSError, ValueError, IndexError):
        for line in stat.read_text(encoding="ascii").splitlines():
            name, *figures = line.split()
            if name.startswith("cpu") and name[3:].isdigit():
                ticks = [int(figure) for figure in figures[:8]]
                busy[int(name[3:])] = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # idle, iowait
    return busy


def _siblings(core: int, cpus: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """Other hardware threads of a core; empty where it has none, or the system does not say."""
    with suppress(OSError, ValueError):
        text = (cpus / f"cpu{core}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
        ranges = [one.split("-") for one in text.strip().split(",")]
        return [one for ends in ranges for one in range(int(ends[0]), int(ends[-1]) + 1) if one != core]
    return []


@dataclass(frozen=True)
class Readers:
    """What the machine says of itself; see :mod:`profiler.timing.conditions`."""

    state: Callable[[], Mapping[str, Any]] = field(default=lambda: read_state(cpu_device()))
    usage: Callable[[], Mapping[str, float]] = read_usage
    core: Callable[[], int | None] = _core
    busy_s: Callable[[], Mapping[int, float]] = _busy_s
    siblings: Callable[[int], Sequence[int]] = _siblings
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Noise:
    """Noise of a machine; fractions are of 1, and None is what the system does not say.

    Attributes:
        median_ms: Latency of the reference block, from all rounds.
        rounds_ms: Median of each round.
        round_spread: The slowest round above the fastest one.
        burst_error: Error that 95% of the rounds keep within, each alone.
        table_error: The same for a row of a table, which is of several rounds.
        stolen: Of the time of all cores, what the hypervisor gave to others.
        waiting: Of a round's time, what its thread did not run.
        preemptions_per_s: Involuntary switches to other processes while measuring.
        clock_change: The highest clock above the lowest.
        governor: Of the clock.
        sibling_load: Of the other hardware thread of the core.
        idle_core: The least busy other core, if it has time.
        advice: What to do, one sentence each.
    """

    median_ms: float
    rounds_ms: tuple[float, ...]
    round_spread: float
    burst_error: float
    table_error: float
    stolen: float
    waiting: float
    preemptions_per_s: float
    clock_change: float | None
    governor: str | None
    sibling_load: float | None
    idle_core: int | None
    advice: tuple[str, ...] = ()


def measure_noise(
    one_round: Callable[[], Measurement],
    readers: Readers,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Noise:
    """Measure a reference block in rounds apart in time, and read what disturbs them.

    Args:
        one_round: Measures it once more.
        readers: Of the machine.
        on_progress: Called with the rounds done, and all.
    """
    found: list[Measurement] = []
    wall_s = cpu_s = preemptions = 0.0
    clocks: list[float] = []
    began, busy = readers.clock(), readers.busy_s()
    stolen_before, state = readers.usage()["steal_s"], readers.state()
    for number in range(_ROUNDS):
        on_progress(number, _ROUNDS)
        started, before = readers.clock(), readers.usage()
        found.append(one_round())
        after, state = readers.usage(), readers.state()
        wall_s += after["wall_s"] - before["wall_s"]
        cpu_s += after["cpu_s"] - before["cpu_s"]
        preemptions += after["preemptions"] - before["preemptions"]
        clocks += [float(state["clock_mhz"])] if state.get("clock_mhz") else []
        readers.sleep(max(0.0, started + _APART_S - readers.clock()))
    on_progress(_ROUNDS, _ROUNDS)
    whole_s = max(readers.clock() - began, 1e-9)
    load = {core: (s - busy.get(core, s)) / whole_s for core, s in readers.busy_s().items()}
    core = readers.core()
    beside = [load[one] for one in readers.siblings(core) if one in load] if core is not None else []
    others = {one: share for one, share in load.items() if one != core and share < _FREE}
    timing = TimingSettings()
    best = combine(found, timing).median_ms
    medians = [one.median_ms for one in found]
    rng = np.random.default_rng(0)
    rows = [
        combine([found[index] for index in rng.choice(_ROUNDS, DEFAULT_ROUNDS, replace=False).tolist()], timing)
        for _ in range(_DRAWN)
    ]
    noise = Noise(
        best,
        tuple(medians),
        max(medians) / min(medians) - 1,
        _within(medians, best),
        _within([one.median_ms for one in rows], best),
        (readers.usage()["steal_s"] - stolen_before) / whole_s / int(state.get("cpus") or 1),
        max(0.0, 1 - cpu_s / wall_s) if wall_s else 0.0,
        preemptions / wall_s if wall_s else 0.0,
        max(clocks) / min(clocks) - 1 if clocks else None,
        state.get("governor"),
        max(beside, default=None),
        min(others, key=lambda one: others[one], default=None),
    )
    return replace(noise, advice=tuple(_advice(noise)))


def _within(values_ms: Sequence[float], best_ms: float) -> float:
    return float(np.quantile(np.abs(np.array(values_ms) / best_ms - 1), 0.95))


def _advice(noise: Noise) -> list[str]:
    """What to do about the noise; a quiet machine needs nothing."""
    pin = "" if noise.idle_core is None else f": `taskset -c {noise.idle_core} smnas ...` takes the least busy one"
    advice = []
    if noise.stolen >= _STOLEN:
        advice.append(
            f"The hypervisor gives {noise.stolen:.0%} of this machine's time to others: measure at another time of "
            "day, or on a machine of your own."
        )
    if noise.waiting >= _WAITING:
        advice.append(
            f"Other processes run on the measured core {noise.waiting:.0%} of the time: end them, or pin{pin}."
        )
    if noise.sibling_load is not None and noise.sibling_load >= _BUSY:
        advice.append(f"The other thread of the measured core is {noise.sibling_load:.0%} busy: use another core{pin}.")
    if noise.governor not in (None, "performance"):
        advice.append(
            f"The clock's governor is {noise.governor}: `sudo cpupower frequency-set -g performance` holds the clock."
        )
    elif noise.clock_change is not None and noise.clock_change >= _CLOCK:
        advice.append(f"The clock changes by {noise.clock_change:.0%}: cool the machine, or limit its clock.")
    if noise.table_error >= _ERROR:
        advice.append(f"Measure in more rounds (`--rounds {2 * DEFAULT_ROUNDS}`), or when the machine is quieter.")
    return advice or ["Nothing: this machine is quiet enough for latencies."]


def noise_here(on_progress: Callable[[int, int], None] = lambda done, total: None) -> Noise:
    """Measure the noise of this machine's CPU, on one thread, in ONNX Runtime or else in eager PyTorch."""
    try:
        backend = get_backend("onnxruntime", cpu_device(), threads=1)
    except BackendUnavailableError:
        backend = get_backend("eager", cpu_device(), threads=1)
    reference = reference_workload()
    session = backend.prepare(reference.module, random_inputs(reference.inputs), "fp32")
    timing = round_settings(TimingSettings(), DEFAULT_ROUNDS)
    return measure_noise(lambda: measure_session(session, timing), Readers(), on_progress)
