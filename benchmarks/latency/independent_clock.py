"""Does our median agree with a plain loop and with ONNX Runtime's own profiler?

Ten detectors of a preset in ONNX Runtime on the CPU, one thread. Each is timed in turns by

- ours: ``profiler.timing.measurement.measure`` on a session with bound inputs, as latency tables are filled,
- a plain loop in the way of ``onnxruntime_perf_test``: ``session.run`` with its feeds, the clock read around each run,
- ONNX Runtime's own profiler: the ``model_run`` events of a session with profiling switched on,

in random order. What counts is the median over rounds of the ratios within a round, so that a drift of the machine
meets all alike. On a quiet machine the first two are expected within 2%. The profiler writes an event for every node,
which costs time, so it runs in the first rounds only.

    OMP_NUM_THREADS=1 python -m benchmarks.latency.independent_clock
"""

import importlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.detectors import deployed
from benchmarks.common.turns import ratios, take_turns
from profiler.backends import get_backend
from profiler.backends.onnxruntime import OnnxRuntimeBackend, session_options
from profiler.graphs.export import to_onnx
from profiler.precision import typed_copy
from profiler.timing.measurement import TimingSettings, measure
from profiler.workload import random_inputs
from smnas.latency.workloads import end_to_end_workload
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space

_TIMING = TimingSettings(relative_half_width=0.005, min_samples=20, time_limit_s=1.0)
_LOOP_RUNS = 60
_PROFILED_ROUNDS = 3
_QUIET_LOAD = 0.7


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    settings = parser.parse_args()
    load_before = os.getloadavg()[0]
    structures = load_space(settings.preset).structures
    order = np.random.default_rng(0).permutation(len(structures))[: settings.models].tolist()
    models = [compare(structures[index], settings.rounds) for index in order]
    loads = [load_before, os.getloadavg()[0]]
    for model in models:
        print(
            f"{model['architecture']}: {model['ours_ms']:.3f} ms, {model['loop_against_ours']:+.1%} by a plain loop, "
            f"{model['own_profile_against_ours']:+.1%} by ONNX Runtime's own profile"
        )
    # The processes of this measurement itself are one core of load.
    quiet = load_before < _QUIET_LOAD and loads[1] < 1 + _QUIET_LOAD
    print(f"load {loads[0]:.1f} before and {loads[1]:.1f} after: {'quiet' if quiet else 'NOT quiet, not for keeping'}")
    if quiet:
        keep_answer(
            "independent-clock",
            __doc__,
            {"load": loads, "rounds": settings.rounds, "models": models},
            backend="onnxruntime",
        )
    return 0


def compare(architecture: Architecture, rounds: int) -> dict[str, Any]:
    """One detector by all three clocks."""
    runtime: Any = importlib.import_module("onnxruntime")
    backend = get_backend("onnxruntime")
    if not isinstance(backend, OnnxRuntimeBackend):
        raise TypeError(f"the onnxruntime backend is an OnnxRuntimeBackend, but got {type(backend).__name__}")
    whole = end_to_end_workload(deployed(str(architecture), 80))
    inputs = random_inputs(whole.inputs, 0)
    ours = backend.prepare(whole.module, inputs)
    copied, typed = typed_copy(whole.module, inputs, "fp32", "cpu")
    model = to_onnx(copied, typed, input_names=["images"]).SerializeToString()
    feeds = {"images": typed[0].numpy()}
    providers = backend.provider_list()
    with tempfile.TemporaryDirectory() as folder:
        plain = runtime.InferenceSession(model, session_options(runtime, 1), providers=providers)
        clocks: dict[str, Callable[[], float]] = {
            "ours": lambda: measure(ours.run, timer=ours.timer, settings=_TIMING).median_ms,
            "loop": lambda: loop_ms(plain, feeds),
        }

        def own_profile() -> float:
            options = session_options(runtime, 1)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            profiled = runtime.InferenceSession(model, options, providers=providers)
            for _ in range(2 * _LOOP_RUNS):
                profiled.run(None, feeds)
            events = json.loads(Path(profiled.end_profiling()).read_text())
            runs: list[float] = [event["dur"] / 1e3 for event in events if event["name"] == "model_run"]
            return float(statistics.median(runs[_LOOP_RUNS:]))

        found = take_turns({**clocks, "own_profile": own_profile}, min(rounds, _PROFILED_ROUNDS))
        for name, times in take_turns(clocks, rounds - _PROFILED_ROUNDS).items():
            found[name] += times

    def against_ours(name: str) -> float:
        times = found[name]
        return statistics.median(ratios(times, found["ours"][: len(times)])) - 1

    return {
        "architecture": str(architecture),
        "ours_ms": statistics.median(found["ours"]),
        "loop_against_ours": against_ours("loop"),
        "own_profile_against_ours": against_ours("own_profile"),
        "rounds_ms": found,
    }


def loop_ms(session: Any, feeds: dict[str, Any]) -> float:
    """Median of a plain loop of 60 runs after 60 for warming up."""
    samples = []
    for _ in range(2 * _LOOP_RUNS):
        start = time.perf_counter()
        session.run(None, feeds)
        samples.append((time.perf_counter() - start) * 1e3)
    return statistics.median(samples[_LOOP_RUNS:])


if __name__ == "__main__":
    raise SystemExit(main())
