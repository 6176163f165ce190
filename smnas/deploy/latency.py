"""Latency of detector files, measured so that they can be compared with each other.

A machine's speed drifts: clocks, heat, neighbours. Files measured one after another differ by that drift; here all of
them are measured in every round, in random order, so that drift meets each alike, and the interval is that of the
rounds, so that what drift is left shows in it.
"""

import importlib
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiler.backends import Session, get_backend
from profiler.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSession
from profiler.devices import Device
from profiler.timing.measurement import TimingSettings, measure, median_interval
from smnas.inference.signature import INPUT_NAME

__all__ = ["DEFAULT_ROUNDS", "FileLatency", "interleaved", "measure_files"]

DEFAULT_ROUNDS = 9
"""The fewest rounds of which one may be an outlier: the second smallest to the second largest is a 95% interval."""
_ROUND = TimingSettings(relative_half_width=0.02, min_samples=8, max_samples=400, time_limit_s=0.6)


@dataclass(frozen=True)
class FileLatency:
    """The latency of one image through one file.

    Attributes:
        median_ms: Median of the rounds' medians.
        low_ms: Lower end of its 95% interval.
        high_ms: Upper end.
        rounds_ms: The median of every round, in order.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    rounds_ms: tuple[float, ...]


def measure_files(
    files: Mapping[str, tuple[Path, NDArray[np.uint8]]],
    *,
    device: Device | None = None,
    threads: int = 1,
    rounds: int = DEFAULT_ROUNDS,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, FileLatency]:
    """Measure exported files in ONNX Runtime under the options that latency tables are measured with.

    Timed is one run from a canvas in the device's memory to detections; reading and resizing an image is not.

    Args:
        files: By name, the file and the canvas ``(1, 3, H, W)`` ``uint8`` that it is run on.
        device: Where; this machine's CPU by default.
        threads: CPU threads of one run.
        rounds: How often each file is measured.
        seed: Of the order within a round.
        on_progress: Told how many measurements are done and of how many.

    Raises:
        BackendUnavailableError: ONNX Runtime can not run on the device.
    """
    backend = get_backend("onnxruntime", device, threads=threads)
    if not isinstance(backend, OnnxRuntimeBackend):
        raise TypeError(f"the onnxruntime backend is an OnnxRuntimeBackend, but got {type(backend).__name__}")
    runtime = importlib.import_module("onnxruntime")
    sessions = {
        name: OnnxRuntimeSession(runtime, path.read_bytes(), {INPUT_NAME: np.ascontiguousarray(canvas)}, backend)
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
    """Measure every session once in each round, in random order; the arguments are those of :func:`measure_files`."""
    if rounds < 1:
        raise ValueError(f"rounds >= 1 must hold, but got {rounds}")
    rng = np.random.default_rng(seed)
    names = list(sessions)
    medians: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for position, index in enumerate(rng.permutation(len(names)).tolist()):
            name = names[index]
            with sessions[name] as session:
                medians[name].append(measure(session.run, timer=session.timer, settings=settings).median_ms)
            if on_progress is not None:
                on_progress(number * len(names) + position + 1, rounds * len(names))
    return {
        name: FileLatency(statistics.median(found), *median_interval(found), tuple(found))
        for name, found in medians.items()
    }
