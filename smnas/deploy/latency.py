"""Comparable latencies of detector files.

A machine's speed drifts: clocks, heat, neighbours. Files measured one after another differ by that drift. Here every
round measures all of them in random order, so drift affects them equally. The rounds of a file are combined as those of
a latency table's rows (:mod:`profiler.timing.rounds`), so that measured and predicted latencies compare.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiler.backends import Session, get_backend
from profiler.backends.base import measure_session
from profiler.backends.exporting import ExportingBackend
from profiler.devices import Device
from profiler.timing.measurement import Measurement, TimingSettings
from profiler.timing.rounds import combine
from smnas.inference.signature import INPUT_NAME

__all__ = ["DEFAULT_ROUNDS", "FileLatency", "interleaved", "measure_files"]

DEFAULT_ROUNDS = 9
"""More than a table's rows have: these are the numbers that a detector is deployed by, and there are few of them."""
_ROUND = TimingSettings(relative_half_width=0.02, min_samples=8, max_samples=400, time_limit_s=0.6)


@dataclass(frozen=True)
class FileLatency:
    """Latency of one image through one file, with its 95% interval, and the median of each round."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds_ms: tuple[float, ...]


def measure_files(
    files: Mapping[str, tuple[Path, NDArray[np.uint8]]],
    *,
    runtime: str = "onnxruntime",
    device: Device | None = None,
    threads: int = 1,
    rounds: int = DEFAULT_ROUNDS,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, FileLatency]:
    """Measure exported files in a runtime under the options of the latency tables.

    A run goes from a canvas in the device's memory to detections, without reading and resizing an image.

    Args:
        files: By name, the file and its canvas ``(1, 3, H, W)`` ``uint8``.
        runtime: One of :data:`smnas.inference.runtime.RUNTIMES`.
        device: This machine's CPU by default.
        threads: CPU threads of one run.
        rounds: Measurements per file.
        seed: Of the order within a round.
        on_progress: Gets the numbers of finished and of all measurements.

    Raises:
        BackendUnavailableError: The runtime is not installed, or can not run on the device.
    """
    backend = get_backend(runtime, device, threads=threads)
    if not isinstance(backend, ExportingBackend):
        raise TypeError(f"a runtime of files is an ExportingBackend, but got {type(backend).__name__}")
    sessions = {
        name: backend.load(path.read_bytes(), {INPUT_NAME: np.ascontiguousarray(canvas)})
        for name, (path, canvas) in files.items()
    }
    return interleaved(sessions, rounds=rounds, seed=seed, on_progress=on_progress)


def interleaved(
    sessions: Mapping[str, Session],
    *,
    rounds: int = DEFAULT_ROUNDS,
    seed: int = 0,
    settings: TimingSettings = _ROUND,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, FileLatency]:
    """Measure every session once per round, in random order; arguments as for :func:`measure_files`."""
    if rounds < 1:
        raise ValueError(f"rounds >= 1 must hold, but got {rounds}")
    rng = np.random.default_rng(seed)
    names = list(sessions)
    measured: dict[str, list[Measurement]] = {name: [] for name in names}
    for number in range(rounds):
        for position, index in enumerate(rng.permutation(len(names)).tolist()):
            name = names[index]
            measured[name].append(measure_session(sessions[name], settings))
            if on_progress is not None:
                on_progress(number * len(names) + position + 1, rounds * len(names))
    latencies = {}
    for name, found in measured.items():
        one = combine(found, settings)
        latencies[name] = FileLatency(one.median_ms, one.low_ms, one.high_ms, tuple(r.median_ms for r in found))
    return latencies
